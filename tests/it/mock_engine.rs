//! The mock engine over HTTP, as a frontend meets it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::mock_client::{FAST, Mock, ask, ask_about, png};

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
        (image("http://127.0.0.1/a.png"), &[], 400, "domains: []"),
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
