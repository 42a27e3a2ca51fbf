//! What a client wishes by headers and by `nvext`, and what it is told.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::end_to_end::client::{Answer, error_code, post};
use crate::end_to_end::pictures::{chat, streamed, text};
use crate::end_to_end::stack::{FAST, Stack, until};

const LETTING: &str = "[router]\nallow_overrides = true\n";

fn wishing(url: &str, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = post(url, chat(&[text("short")]).to_string());
    for (name, value) in headers {
        let value = value.parse().expect("a legal value");
        request.headers_mut().insert(*name, value);
    }
    request
}

fn code(answer: &Answer) -> Option<String> {
    error_code(std::str::from_utf8(&answer.body).expect("text"))
}

#[tokio::test]
async fn headers_choose_where_the_operator_lets_them() {
    let stack = Stack::configured(&format!("-- {FAST}"), LETTING).await;
    let url = stack.url("/v1/chat/completions");
    let ask =
        async |headers: &[(&'static str, &str)]| stack.client.send(wishing(&url, headers)).await;
    for worker in ["mock-0", "mock-1", "mock-0", "mock-1"] {
        let answer = ask(&[("x-kvlens-worker", worker), ("x-kvlens-rank", "0")]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("x-kvlens-worker"), worker);
    }
    assert_eq!(ask(&[("x-kvlens-router-mode", "random")]).await.status, 200);
    let placed = stack
        .metric(r#"kvlens_placements_total{mode="random"}"#)
        .await;
    assert_eq!(placed, 1.0);
    for (name, value, status, expected) in [
        ("x-kvlens-worker", "mock-7", 404, "worker_not_found"),
        ("x-kvlens-worker", "No Such", 404, "worker_not_found"),
        ("x-kvlens-rank", "9", 400, "invalid_value"),
        ("x-kvlens-rank", "first", 400, "invalid_value"),
        ("x-kvlens-router-mode", "best", 400, "invalid_value"),
    ] {
        let answer = ask(&[(name, value)]).await;
        assert_eq!(answer.status, status, "{value}: {answer:?}");
        assert_eq!(code(&answer).as_deref(), Some(expected), "{value}");
        assert_eq!(answer.json()["error"]["param"], name, "{value}");
    }
    // A pinned request is never placed elsewhere.
    stack.engine_process("mock-1").kill();
    until("its worker is known to be away", async || {
        let answer = ask(&[("x-kvlens-worker", "mock-1")]).await;
        let served = answer.header("x-kvlens-worker");
        assert!(served.is_empty() || served == "mock-1", "{answer:?}");
        code(&answer).as_deref() == Some("worker_unavailable") && answer.status == 409
    })
    .await;
    stack.end().await;
}

#[tokio::test]
async fn headers_are_refused_where_nobody_let_them() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let url = stack.url("/v1/chat/completions");
    for header in ["x-kvlens-worker", "x-kvlens-rank", "x-kvlens-router-mode"] {
        let request = wishing(&url, &[(header, "mock-0")]);
        let answer = stack.client.send(request).await;
        assert_eq!(answer.status, 403, "{answer:?}");
        assert_eq!(code(&answer).as_deref(), Some("overrides_not_allowed"));
        assert_eq!(answer.json()["error"]["param"], header);
    }
    stack.end().await;
}

#[tokio::test]
async fn an_answer_says_what_nvext_asks() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let nvext = json!({"extra_fields": ["worker_id", "timing"], "agent_hints": {"priority": 2}});
    let mut body = chat(&[text("short")]);
    body["nvext"] = nvext;
    let url = stack.url("/v1/chat/completions");
    let answer = stack.client.post(&url, &body).await;
    check(
        &answer.json()["nvext"],
        answer.header("x-kvlens-worker"),
        false,
    );

    let with_usage = streamed(body.clone());
    body["stream"] = true.into();
    for body in [with_usage, body] {
        let events = stack.stream(&body).await.rest().await;
        let (done, events) = events.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        let events: Vec<Value> = events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        let (last, before) = events.split_last().unwrap();
        let worker = last["nvext"]["worker_id"]["decode_worker_id"].clone();
        check(&last["nvext"], worker.as_str().unwrap(), true);
        assert!(before.iter().all(|event| event.get("nvext").is_none()));
        let finishes = |event: &&Value| event["choices"][0]["finish_reason"].is_string();
        assert_eq!(events.iter().filter(finishes).count(), 1);
    }

    // Nobody asks, nobody is told.
    let plain = stack.client.post(&url, &chat(&[text("short")])).await;
    assert_eq!(plain.json().get("nvext"), None);
    stack.end().await;
}

fn check(nvext: &Value, worker: &str, is_stream: bool) {
    let ids = &nvext["worker_id"];
    assert_eq!(ids["prefill_worker_id"], worker);
    assert_eq!(ids["decode_worker_id"], worker);
    assert_eq!(
        (&ids["prefill_dp_rank"], &ids["decode_dp_rank"]),
        (&json!(0), &json!(0))
    );
    let timing = &nvext["timing"];
    let number = |name: &str| timing[name].as_f64();
    assert!(number("request_received_ms") > Some(1.7e12), "{timing}");
    assert!(number("total_time_ms") > Some(0.0), "{timing}");
    assert_eq!(number("ttft_ms").is_some(), is_stream, "{timing}");
    let rate = number("kv_hit_rate").expect("the mock says what it found");
    assert!((0.0..1.0).contains(&rate), "{timing}");
}
