//! The mock engine over HTTP and ZMQ, as a frontend and an agent meet it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kvlens::mock::MockEngine;
use kvlens::mock::options::Options;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

const EVENTS: &str = "--kv-events-endpoint tcp://127.0.0.1:0 --kv-events-replay tcp://127.0.0.1:0";
const FAST: &str = "--prefill-tokens-per-second 0 --decode-tokens-per-second 0";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

struct Mock {
    address: String,
    endpoints: Vec<(Option<String>, Option<String>)>,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Mock {
    async fn start(words: &str) -> Self {
        let words = format!("mock-engine --port 0 {words}");
        let line = Line::try_parse_from(words.split_whitespace()).expect("a command line");
        let ranks = line.options.data_parallel_size;
        let engine = MockEngine::bind(line.options).await.expect("bound");
        let owned = |(events, replay): (Option<&str>, Option<&str>)| {
            (events.map(str::to_owned), replay.map(str::to_owned))
        };
        let endpoints = (0..ranks).map(|rank| owned(engine.event_endpoints(rank)));
        let endpoints = endpoints.collect();
        let address = engine.address().expect("an address").to_string();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(engine.serve(stop.clone()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            address,
            endpoints,
            client,
            stop,
            tasks,
        }
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
        let response = self.client.request(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body");
        (status, body.to_bytes())
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, bytes) = self.call(self.request(path, body, &[])).await;
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    async fn chat(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/chat/completions", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::get(uri).body(Full::default()).expect("a request");
        let (status, bytes) = self.call(request).await;
        (status, String::from_utf8(bytes.to_vec()).expect("text"))
    }

    fn request(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let mut request = Request::post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .body(Full::from(body.to_string()))
            .expect("a request")
    }

    async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let lines = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse().ok());
        lines
            .filter_map(value)
            .fold(0.0, |sum: f64, value: f64| sum + value)
    }

    /// Waits until a metric has a value.
    async fn until(&self, name: &str, expected: f64) {
        let patience = Instant::now() + Duration::from_secs(10);
        while self.metric(name).await != expected {
            assert!(Instant::now() < patience, "{name} never became {expected}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn replay(&self, rank: usize, start: u64) -> Vec<Vec<Bytes>> {
        let endpoint = self.endpoints[rank]
            .1
            .as_deref()
            .expect("a replay endpoint");
        let mut dealer = DealerSocket::new();
        dealer.connect(endpoint).await.expect("connected");
        let mut request = ZmqMessage::from(Bytes::new());
        request.push_back(Bytes::copy_from_slice(&start.to_be_bytes()));
        dealer.send(request).await.expect("sent");
        let mut batches = Vec::new();
        loop {
            let frames = dealer.recv().await.expect("a batch").into_vec();
            assert_eq!(frames.len(), 4);
            if frames[2][..] == [0xff; 8] {
                assert!(frames[1].is_empty() && frames[3].is_empty());
                return batches;
            }
            batches.push(frames[1..].to_vec());
        }
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no panic");
        }
    }
}

fn png(width: u32, height: u32) -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::DynamicImage::new_rgb8(width, height);
    image
        .write_to(&mut png, image::ImageFormat::Png)
        .expect("a PNG");
    let data = base64_simd::STANDARD.encode_to_string(png.into_inner());
    format!("data:image/png;base64,{data}")
}

fn ask(text: &str, max_tokens: usize) -> Value {
    json!({
        "model": "demo",
        "messages": [{ "role": "user", "content": text }],
        "max_tokens": max_tokens,
        "return_token_ids": true,
    })
}

fn ask_about(image: &Value, text: &str) -> Value {
    let mut body = ask("", 8);
    body["messages"][0]["content"] = json!([image, { "type": "text", "text": text }]);
    body
}

fn events(payload: &[u8]) -> Vec<Value> {
    let batch = as_json(&decode(payload));
    batch[1].as_array().cloned().unwrap_or_default()
}

fn as_json(value: &rmpv::Value) -> Value {
    match value {
        rmpv::Value::Array(items) => items.iter().map(as_json).collect(),
        rmpv::Value::Map(fields) => {
            let field = |(key, value): &(rmpv::Value, rmpv::Value)| {
                let key = key.as_str().expect("a named field");
                (key.to_owned(), as_json(value))
            };
            Value::Object(fields.iter().map(field).collect())
        }
        rmpv::Value::String(text) => json!(text.as_str()),
        rmpv::Value::Integer(number) => number.as_u64().map_or(json!(number.as_i64()), Value::from),
        rmpv::Value::F64(number) => json!(number),
        _ => Value::Null,
    }
}

fn decode(payload: &[u8]) -> rmpv::Value {
    rmpv::decode::read_value(&mut &payload[..]).expect("MessagePack")
}

#[tokio::test]
async fn an_image_is_cached_with_its_prompt() {
    let mock = Mock::start(FAST).await;
    let image =
        json!({ "type": "image_url", "image_url": { "url": png(640, 480) }, "uuid": "ab12cd" });
    let body = ask_about(&image, "What is in this image?");
    let cold = mock.chat(body.clone()).await;
    let hot = mock.chat(body.clone()).await;
    let prompt = cold["usage"]["prompt_tokens"].as_u64().expect("a count");
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&cold), 0);
    assert_eq!(cached(&hot), (prompt - 1) / 16 * 16);
    let images = &hot["usage"]["prompt_tokens_details"]["multimodal_tokens"]["image"];
    assert!(images.as_u64().expect("a count") > 100, "{images}");
    assert_eq!(
        cold["prompt_token_ids"].as_array().map(Vec::len),
        Some(prompt as usize)
    );
    let mut long = body.clone();
    long["max_tokens"] = json!(64);
    let text = mock.chat(long).await["choices"][0]["message"]["content"].to_string();
    assert!(
        text.contains("I see 1 image (640x480 png ab12cd) and "),
        "{text}"
    );
    // The name alone is enough now; another image under it is not even looked at.
    let bare = json!({ "type": "image_url", "image_url": null, "uuid": "ab12cd" });
    let again = mock.chat(ask_about(&bare, "What is in this image?")).await;
    assert_eq!(again["prompt_token_ids"], cold["prompt_token_ids"]);
    let (status, tokens) = mock.post("/tokenize", &body).await;
    assert_eq!(
        (status, &tokens["tokens"]),
        (StatusCode::OK, &cold["prompt_token_ids"])
    );
    mock.end().await;
}

#[tokio::test]
async fn a_stream_has_one_chunk_per_token() {
    let mock = Mock::start(FAST).await;
    let mut body = ask("Count the tokens.", 80);
    let _ = mock.chat(body.clone()).await;
    let whole = mock.chat(body.clone()).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let headers = [("x-request-id", "my-req-1")];
    let request = mock.request("/v1/chat/completions", &body, &headers);
    let (status, bytes) = mock.call(request).await;
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    let mut lines: Vec<_> = text.split_terminator("\n\n").collect();
    assert_eq!(lines.pop(), Some("data: [DONE]"));
    let chunk =
        |line: &&str| serde_json::from_str(line.trim_start_matches("data: ")).expect("JSON");
    let chunks: Vec<Value> = lines.iter().map(chunk).collect();
    assert_eq!(chunks.len(), 1 + 80 + 1);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["id"] == "chatcmpl-my-req-1")
    );
    let pieces = || chunks[1..=80].iter().map(|chunk| &chunk["choices"][0]);
    let text: String = pieces()
        .filter_map(|piece| piece["delta"]["content"].as_str())
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert!(text.contains("läuft, 走る"), "{text}");
    let ids: Vec<_> = pieces()
        .map(|piece| piece["token_ids"][0].clone())
        .collect();
    assert_eq!(whole["choices"][0]["token_ids"], Value::Array(ids));
    assert_eq!(chunks[80]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[81]["usage"], whole["usage"]);
    mock.end().await;
}

#[tokio::test]
async fn answers_end_as_asked() {
    let mock = Mock::start(FAST).await;
    let mut natural = ask("Be short.", 1);
    natural["max_tokens"] = Value::Null;
    let natural = mock.chat(natural).await;
    assert_eq!(natural["choices"][0]["finish_reason"], "stop");
    assert_eq!(natural["usage"]["completion_tokens"], 64);
    let mut stopped = ask("Be short.", 64);
    stopped["stop"] = json!(["never said", " mock"]);
    let stopped = mock.chat(stopped).await;
    let choice = &stopped["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!(" mock"))
    );
    let text = choice["message"]["content"].as_str().expect("text");
    assert!(text.ends_with("made up by a"), "{text}");
    let mut twice = ask("Be short.", 8);
    twice["n"] = json!(2);
    let twice = mock.chat(twice).await;
    assert_eq!(twice["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!(twice["usage"]["completion_tokens"], 16);
    let body = json!({ "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 2 });
    let (status, texts) = mock.post("/v1/completions", &body).await;
    assert_eq!(
        (status, &texts["usage"]["prompt_tokens"]),
        (StatusCode::OK, &json!(5))
    );
    assert_eq!(texts["choices"][1]["index"], 1);
    let (_, vectors) = mock
        .post("/v1/embeddings", &json!({ "input": ["a", "b"] }))
        .await;
    assert_ne!(
        vectors["data"][0]["embedding"],
        vectors["data"][1]["embedding"]
    );
    mock.end().await;
}

#[tokio::test]
async fn requests_are_refused_as_vllm_does() {
    let mock = Mock::start(&format!("{FAST} --max-model-len 200")).await;
    let with = |key: &str, value: Value| {
        let mut body = ask("hello", 4);
        body[key] = value;
        body
    };
    let image = |url: &str| {
        ask_about(
            &json!({ "type": "image_url", "image_url": { "url": url } }),
            "?",
        )
    };
    let unknown = json!({ "type": "image_url", "image_url": null, "uuid": "unseen" });
    let long = "word ".repeat(300);
    let rows = [
        (
            with("model", json!("other")),
            &[][..],
            404,
            "does not exist",
        ),
        (with("cache_salt", json!("")), &[], 400, "cache_salt"),
        (with("n", json!(0)), &[], 400, "n must be"),
        (with("max_tokens", json!(0)), &[], 400, "max_tokens"),
        (
            with("max_tokens", json!(200)),
            &[],
            400,
            "maximum context length is 200",
        ),
        (with("messages", json!([])), &[], 400, "messages"),
        (ask(&long, 1), &[], 400, "maximum context length is 200"),
        (
            ask("hello", 4),
            &[("x-data-parallel-rank", "1")],
            400,
            "out of range",
        ),
        (
            ask_about(&unknown, "?"),
            &[],
            400,
            "Cache miss for image at index 0",
        ),
        (
            image("data:image/png;base64,AAAA"),
            &[],
            400,
            "cannot identify image",
        ),
        (image("http://127.0.0.1/a.png"), &[], 400, "only data: URIs"),
    ];
    for (body, headers, status, message) in rows {
        let request = mock.request("/v1/chat/completions", &body, headers);
        let (got, bytes) = mock.call(request).await;
        let error: Value = serde_json::from_slice(&bytes).expect("JSON");
        let said = error["error"]["message"].as_str().expect("a message");
        assert_eq!(
            (got.as_u16(), &error["error"]["code"]),
            (status, &json!(status)),
            "{said}"
        );
        assert!(said.contains(message), "{said}");
    }
    let (status, _) = mock.post("/reset_prefix_cache", &json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    mock.end().await;
}

#[tokio::test]
async fn events_are_published_and_replayed() {
    let mock = Mock::start(&format!("{FAST} {EVENTS} --kv-events-topic kv --dev")).await;
    let mut subscriber = SubSocket::new();
    let endpoint = mock.endpoints[0].0.as_deref().expect("an endpoint");
    subscriber.connect(endpoint).await.expect("connected");
    subscriber.subscribe("kv").await.expect("subscribed");
    // The subscription is on its way; requests of their own show when it has arrived.
    let mut live = None;
    for index in 0.. {
        mock.chat(ask(&format!("{index} {}", "subscribed? ".repeat(20)), 1))
            .await;
        let frames = tokio::time::timeout(Duration::from_millis(50), subscriber.recv()).await;
        if let Ok(frames) = frames {
            live = frames.ok();
            break;
        }
        assert!(index < 100, "no event arrived");
    }
    let live = live.expect("a batch").into_vec();
    assert_eq!((live.len(), &live[0][..]), (3, &b"kv"[..]));
    let sequence = u64::from_be_bytes(live[1][..].try_into().expect("eight bytes"));
    let answer = mock.chat(ask(&"What do events say? ".repeat(20), 1)).await;
    let (status, reset) = mock.post("/reset_prefix_cache", &json!({})).await;
    assert_eq!(
        (status, reset),
        (StatusCode::OK, json!({ "success": true }))
    );
    let mut salted = ask(&"What do events say? ".repeat(20), 1);
    salted["cache_salt"] = json!("s");
    mock.chat(salted).await;
    let batches = mock.replay(0, sequence).await;
    assert_eq!(batches.len(), 3);
    assert_eq!(batches[0], live, "the same batch comes back");
    let stored = &events(&batches[1][2])[0];
    let ids = answer["prompt_token_ids"].as_array().expect("ids");
    // Every prompt starts alike, so the first blocks may have been cached before.
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let from = cached.expect("a count") as usize;
    assert_eq!(stored["token_ids"], json!(ids[from..ids.len() / 16 * 16]));
    let last = events(&batches[2][2]);
    assert_eq!(last[0], json!({ "type": "AllBlocksCleared" }));
    assert_eq!(
        (&last[1]["parent_block_hash"], &last[1]["extra_keys"][0]),
        (&Value::Null, &json!(["s"]))
    );
    assert_eq!(mock.replay(0, sequence + 3).await, Vec::<Vec<Bytes>>::new());
    mock.end().await;
}

#[tokio::test]
async fn reused_blocks_are_reported_when_asked() {
    let mock = Mock::start(&format!("{FAST} {EVENTS} --lora poet")).await;
    let mut body = ask(&"Repeat after me. ".repeat(20), 1);
    body["model"] = json!("poet");
    mock.chat(body.clone()).await;
    mock.chat(body.clone()).await;
    body["vllm_xargs"] = json!({ "kv_cache_report_mode": "full" });
    body["session_id"] = json!("learn");
    mock.chat(body).await;
    let batches = mock.replay(0, 0).await;
    assert_eq!(batches.len(), 2, "a mere hit publishes nothing");
    let [first, full] = [0, 1].map(|index| events(&batches[index][2])[0].clone());
    for key in [
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "extra_keys",
        "lora_id",
    ] {
        assert_eq!(first[key], full[key], "{key}");
    }
    assert_eq!(
        (&first["lora_name"], &first["extra_keys"][0]),
        (&json!("poet"), &json!(["poet"]))
    );
    assert_eq!(
        (&first["session_id"], &full["session_id"]),
        (&Value::Null, &json!("learn"))
    );
    mock.end().await;
}

#[tokio::test]
async fn ranks_have_caches_and_streams_of_their_own() {
    let mock = Mock::start(&format!("{FAST} {EVENTS} --data-parallel-size 2")).await;
    let body = ask(&"Which rank is this? ".repeat(10), 1);
    let mut cached = Vec::new();
    for rank in ["0", "1", "1", "0"] {
        let headers = [("x-data-parallel-rank", rank)];
        let request = mock.request("/v1/chat/completions", &body, &headers);
        let (_, bytes) = mock.call(request).await;
        let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"] != 0);
    }
    assert_eq!(cached, [false, false, true, true]);
    for rank in 0..2 {
        let batches = mock.replay(rank, 0).await;
        assert_eq!(batches.len(), 1);
        let rmpv::Value::Array(parts) = decode(&batches[0][2]) else {
            panic!("an array")
        };
        assert_eq!(parts[2].as_u64(), Some(rank as u64));
    }
    mock.end().await;
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_blocks() {
    let mock = Mock::start("--prefill-tokens-per-second 0 --decode-tokens-per-second 10").await;
    for stream in [true, false] {
        let mut body = ask("Tell me a long story.", 1000);
        body["stream"] = json!(stream);
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut going = JoinSet::new();
        let request = mock.request("/v1/chat/completions", &body, &[]);
        going.spawn(async move {
            let response = client.request(request).await.expect("an answer");
            response.into_body().collect().await.expect("never whole");
        });
        mock.until("vllm:num_requests_running", 1.0).await;
        assert!(mock.metric("vllm:kv_cache_usage_perc").await > 0.0);
        going.shutdown().await;
        mock.until("vllm:num_requests_running", 0.0).await;
        assert_eq!(mock.metric("vllm:kv_cache_usage_perc").await, 0.0);
    }
    mock.end().await;
}

#[tokio::test]
async fn requests_wait_for_blocks() {
    let mock = Mock::start(&format!("{FAST} --num-gpu-blocks 20")).await;
    let texts: Vec<_> = (0..6).map(|index| format!("{index} ").repeat(60)).collect();
    let pending = texts.iter().map(|text| mock.chat(ask(text, 40)));
    for answer in futures_util::future::join_all(pending).await {
        assert_eq!(answer["usage"]["completion_tokens"], 40);
    }
    mock.until("vllm:kv_cache_usage_perc", 0.0).await;
    mock.end().await;
}

#[tokio::test]
async fn a_hit_is_faster() {
    let mock = Mock::start("--prefill-tokens-per-second 500 --decode-tokens-per-second 0").await;
    let body = ask(&"Slow and steady. ".repeat(30), 1);
    let mut took = Vec::new();
    for _ in 0..2 {
        let start = Instant::now();
        mock.chat(body.clone()).await;
        took.push(start.elapsed());
    }
    assert!(
        took[0] > Duration::from_millis(200) && took[1] * 2 < took[0],
        "{took:?}"
    );
    mock.end().await;
}
