//! The gate of `kvlens engine`: who and what passes, and how it drains.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use kvlens::dispatch::EngineAnswer;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine_role::running::{Role, chat, mock, read, request};

/// A gate with a key, in front of a mock engine.
struct Gated {
    role: Role,
    address: String,
    engine: String,
    _folder: TempDir,
}

const KEY: &str = "s3cret";

impl Gated {
    async fn start(words: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = folder.path().join("keys");
        std::fs::write(&keys, format!("# ours\nfrontend:{KEY}\n")).expect("a file");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&keys, private).expect("our file");
        let listen = format!("--listen 127.0.0.1:0 --key-file {} {words}", keys.display());
        let role = Role::start(&folder, &mock(&listen));
        role.until("state", "ready").await;
        let file = role.file().await;
        Self {
            role,
            address: file.public_address.expect("it has a gate"),
            engine: file.address,
            _folder: folder,
        }
    }

    async fn ask(&self, path: &str, body: &Value, key: &str) -> EngineAnswer {
        let method = match body {
            Value::Null => Method::GET,
            _ => Method::POST,
        };
        let request = request(method, body, key);
        self.role.ask(&self.address, path, request).await
    }

    async fn stream(&self, tokens: u32) -> EngineAnswer {
        let mut answer = self
            .ask("/v1/chat/completions", &chat(tokens, true), KEY)
            .await;
        assert_eq!(answer.status, StatusCode::OK);
        let first = answer.chunk().await.expect("a chunk").expect("a chunk");
        assert!(first.starts_with(b"data: "), "{first:?}");
        answer
    }

    /// Requests that run in the engine, by its own count.
    async fn running(&self) -> u64 {
        let page = self
            .role
            .client
            .get(&self.engine, "/metrics", Duration::from_secs(5));
        let (_, page) = page.await.expect("the engine answers");
        let page = String::from_utf8(page.to_vec()).expect("text");
        let line = page
            .lines()
            .find(|line| line.starts_with("vllm:num_requests_running"));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.expect("a gauge") as u64
    }
}

#[tokio::test]
async fn only_a_list_of_paths_passes_and_only_with_a_key() {
    let gated = Gated::start("-- --dev").await;
    let text = json!({"model": "demo", "prompt": "hello", "max_tokens": 1});
    let embed = json!({"model": "demo", "input": "hello"});
    let (none, empty) = (Value::Null, json!({}));
    for (path, body, key, status) in [
        ("/health", &none, KEY, 200),
        ("/v1/models", &none, KEY, 200),
        ("/metrics", &none, KEY, 200),
        ("/version", &none, KEY, 200),
        ("/v1/chat/completions", &chat(1, false), KEY, 200),
        ("/v1/completions", &text, KEY, 200),
        ("/v1/embeddings", &embed, KEY, 200),
        ("/tokenize", &text, KEY, 200),
        ("/v1/completions", &empty, KEY, 400),
        ("/v1/completions", &text, "", 401),
        ("/v1/completions", &text, "s3cre", 401),
        ("/health", &none, "", 401),
        ("/reset_prefix_cache", &empty, KEY, 404),
        ("/detokenize", &empty, KEY, 404),
        ("/kv_event_sources", &none, KEY, 404),
        ("/v1/../metrics", &none, KEY, 404),
        ("/v1/completions", &none, KEY, 405),
    ] {
        let answer = gated.ask(path, body, key).await;
        let challenge = answer.headers.get("www-authenticate").cloned();
        assert_eq!(answer.status.as_u16(), status, "{path} {key:?}");
        assert_eq!(challenge.is_some(), status == 401, "{path}");
        let (_, answer) = read(answer).await;
        let is_refusal = answer["error"]["message"].is_string();
        assert_eq!(is_refusal, status >= 400, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_request_keeps_its_id_and_its_rank() {
    let gated = Gated::start("--ranks 2").await;
    for (rank, status) in [("1", 200), ("2", 400)] {
        let mut said = request(Method::POST, &chat(1, false), KEY);
        for (name, value) in [("x-request-id", "my-req"), ("x-data-parallel-rank", rank)] {
            said.headers_mut().insert(name, value.parse().unwrap());
        }
        let path = "/v1/chat/completions";
        let answer = gated.role.ask(&gated.address, path, said).await;
        assert_eq!(answer.headers["x-request-id"], "my-req");
        assert_eq!(answer.headers["content-type"], "application/json");
        let (found, body) = read(answer).await;
        assert_eq!(found.as_u16(), status, "rank {rank} of two: {body}");
        if found == StatusCode::OK {
            assert_eq!(body["id"], "chatcmpl-my-req");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_aborts_its_request_in_the_engine() {
    let gated = Gated::start("-- --decode-tokens-per-second 20").await;
    let stream = gated.stream(2000).await;
    assert_eq!(gated.running().await, 1);
    gated.role.until("in_flight", 1).await;
    drop(stream);
    gated.role.until("in_flight", 0).await;
    let patience = Instant::now() + Duration::from_secs(10);
    while gated.running().await > 0 {
        assert!(Instant::now() < patience, "the request still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_drain_waits_for_what_is_in_flight_and_refuses_what_comes() {
    let gated = Gated::start("-- --decode-tokens-per-second 50").await;
    let mut stream = gated.stream(40).await;
    let drained = gated.role.control("/drain");
    let meanwhile = async {
        gated.role.until("draining", true).await;
        let refused = gated
            .ask("/v1/chat/completions", &chat(1, false), KEY)
            .await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(read(refused).await.1["error"]["code"], "draining");
        let page = gated.ask("/health", &Value::Null, KEY).await;
        assert_eq!(page.status, StatusCode::OK, "its pages are shown");
        assert_eq!(gated.role.until("in_flight", 1).await["draining"], true);
        let mut text = Vec::new();
        while let Some(chunk) = stream.chunk().await {
            text.extend_from_slice(&chunk.expect("a chunk"));
        }
        assert!(text.ends_with(b"data: [DONE]\n\n"));
    };
    let ((status, answer), ()) = tokio::join!(drained, meanwhile);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer, json!({"drained": true, "in_flight": 0}));
    assert_eq!(gated.role.control("/undrain").await.0, StatusCode::OK);
    let taken = gated
        .ask("/v1/chat/completions", &chat(1, false), KEY)
        .await;
    assert_eq!(taken.status, StatusCode::OK);
}

#[tokio::test]
async fn a_stop_lets_a_stream_finish() {
    let mut gated = Gated::start("-- --decode-tokens-per-second 50").await;
    let stream = gated.stream(30).await;
    gated.role.signal(Signal::TERM);
    let text = stream.whole().await.expect("a whole stream");
    assert!(text.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(
        gated.role.ended().await.code(),
        Some(0),
        "{}",
        gated.role.log()
    );
    let running = gated
        .role
        .client
        .get(&gated.address, "/health", Duration::from_secs(1));
    assert!(running.await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn an_engine_that_is_away_is_503() {
    let gated = Gated::start("").await;
    let status = gated.role.until("state", "ready").await;
    assert_eq!(status["life"], 1);
    // The engine's socket goes with it; the gate stays.
    gated.role.control("/restart").await;
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = gated
            .ask("/v1/chat/completions", &chat(1, false), KEY)
            .await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            let (_, body) = read(answer).await;
            assert_eq!(body["error"]["code"], "engine_unavailable");
            break;
        }
        assert!(Instant::now() < patience, "the engine never went away");
    }
    gated.role.until("life", 2).await;
}
