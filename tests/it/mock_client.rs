//! A mock engine in this process, and a client of it.

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

pub(crate) const EVENTS: &str =
    "--kv-events-endpoint tcp://127.0.0.1:0 --kv-events-replay tcp://127.0.0.1:0";
pub(crate) const FAST: &str = "--prefill-tokens-per-second 0 --decode-tokens-per-second 0";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

pub(crate) struct Mock {
    address: String,
    pub(crate) endpoints: Vec<(Option<String>, Option<String>)>,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Mock {
    pub(crate) async fn start(words: &str) -> Self {
        let words = format!("mock-engine --port 0 {words}");
        let line = Line::try_parse_from(words.split_whitespace()).expect("a command line");
        let ranks = line.options.data_parallel_size;
        let engine = MockEngine::bind(line.options).await.expect("bound");
        let owned = |(events, replay): (Option<&str>, Option<&str>)| {
            (events.map(str::to_owned), replay.map(str::to_owned))
        };
        let endpoints = (0..ranks).map(|rank| owned(engine.event_endpoints(rank)));
        let endpoints = endpoints.collect();
        let address = engine.address().to_string();
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

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn call(&self, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
        let response = self.client.request(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body");
        (status, body.to_bytes())
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, bytes) = self.call(self.request(path, body, &[])).await;
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    pub(crate) async fn chat(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/chat/completions", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::get(uri).body(Full::default()).expect("a request");
        let (status, bytes) = self.call(request).await;
        (status, String::from_utf8(bytes.to_vec()).expect("text"))
    }

    pub(crate) fn request(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Request<Full<Bytes>> {
        let mut request = Request::post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .body(Full::from(body.to_string()))
            .expect("a request")
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
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
    pub(crate) async fn until(&self, name: &str, expected: f64) {
        let patience = Instant::now() + Duration::from_secs(10);
        while self.metric(name).await != expected {
            assert!(Instant::now() < patience, "{name} never became {expected}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no panic");
        }
    }
}

pub(crate) fn png(width: u32, height: u32) -> String {
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::DynamicImage::new_rgb8(width, height);
    image
        .write_to(&mut png, image::ImageFormat::Png)
        .expect("a PNG");
    let data = base64_simd::STANDARD.encode_to_string(png.into_inner());
    format!("data:image/png;base64,{data}")
}

pub(crate) fn ask(text: &str, max_tokens: usize) -> Value {
    json!({
        "model": "demo",
        "messages": [{ "role": "user", "content": text }],
        "max_tokens": max_tokens,
        "return_token_ids": true,
    })
}

pub(crate) fn ask_about(image: &Value, text: &str) -> Value {
    let mut body = ask("", 8);
    body["messages"][0]["content"] = json!([image, { "type": "text", "text": text }]);
    body
}
