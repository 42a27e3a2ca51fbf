//! Engines that die under their requests.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::end_to_end::client::{error_code, header};
use crate::end_to_end::pictures::{chat, data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{Stack, until};

/// A prompt of some 1,200 tokens with an image in it.
fn long_chat(word: &str) -> Value {
    let words = format!("{word} and the next one, then ");
    let picture = image(&data_uri(&png(64, 64, 9)));
    chat(&[picture, text(&words.repeat(120))])
}

#[tokio::test]
async fn a_stream_whose_engine_dies_ends_with_an_error_and_others_go_on() {
    let stack = Stack::start("-- --decode-tokens-per-second 50").await;
    let mut body = streamed(long_chat("one"));
    body["max_tokens"] = 2_000.into();
    // Nobody could go on with it exactly.
    body["stop"] = json!(["never said"]);
    let mut stream = stack.stream(&body).await;
    let worker = header(&stream.headers, "x-kvlens-worker").to_owned();
    for _ in 0..3 {
        stream.next().await.unwrap();
    }
    stack.settle().await;
    assert!(
        stack.worker(&worker).await["indexed_blocks"]
            .as_u64()
            .unwrap()
            > 50
    );

    let engine = stack.engine_process(&worker);
    engine.kill();
    let events = stream.rest().await;
    let last = events.last().unwrap();
    assert_eq!(error_code(last).as_deref(), Some("engine_failed"), "{last}");
    assert!(!events.iter().any(|event| event == "[DONE]"));
    until("it says why it is away", async || {
        let entry = stack.worker(&worker).await;
        let cause = entry["cause"].as_str().unwrap_or_default();
        entry["verdict"] != "healthy" && cause.contains("it ended with signal: 9")
    })
    .await;

    for number in 0..6 {
        let told = stack.ask(&long_chat(["one", "two"][number % 2])).await;
        assert_ne!(told.worker, worker, "request {number}");
    }
    until("its blocks leave the index", async || {
        stack.worker(&worker).await["indexed_blocks"] == 0
    })
    .await;
    until("its load is freed", async || stack.load().await == 0).await;

    // Used again once it is back, from an empty cache.
    until("the engine is back", async || {
        let engines = stack.engines();
        engines.len() == 2 && engines.iter().all(|other| other.pid != engine.pid)
    })
    .await;
    // A salt that nobody used leaves no block in common, and so no reason to prefer the other.
    let salt = Cell::new(0);
    until("it is used again", async || {
        salt.set(salt.get() + 1);
        let mut body = chat(&[text("short")]);
        body["cache_salt"] = salt.get().to_string().into();
        stack.ask(&body).await.worker == worker
    })
    .await;
    stack.end().await;
}

#[tokio::test]
async fn a_request_whose_engine_dies_before_the_first_byte_is_answered_by_another() {
    // 1,200 tokens take three seconds, in steps of 16.
    let slow = "-- --prefill-tokens-per-second 400 --max-num-batched-tokens 16";
    let stack = Stack::start(slow).await;
    for (number, body) in [long_chat("one"), streamed(long_chat("two"))]
        .iter()
        .enumerate()
    {
        until("both take requests", async || {
            let workers = stack.workers().await;
            workers.iter().all(|entry| entry["verdict"] == "healthy")
        })
        .await;
        let (told, died) = tokio::join!(stack.ask(body), kill_the_busy_one(&stack));
        assert_ne!(told.worker, died);
        assert!(told.text.starts_with('I'), "{told:?}");
        assert_eq!(told.cached_tokens, 0);
        let retries = stack.metric("kvlens_retries_total").await;
        assert_eq!(retries, (number + 1) as f64);
        until("the worker has left", async || {
            let workers = stack.workers().await;
            workers
                .iter()
                .all(|entry| entry["worker"] != *died || entry["indexed_blocks"] == 0)
        })
        .await;
    }
    until("its load is freed", async || stack.load().await == 0).await;
    stack.end().await;
}

/// Kills the engine that works on a request; the worker's name.
async fn kill_the_busy_one(stack: &Stack) -> String {
    let workers = stack.workers().await;
    loop {
        for entry in &workers {
            let address = entry["address"].as_str().expect("an address");
            if stack.running(address).await == Some(1.0) {
                let worker = entry["worker"].as_str().expect("a name").to_owned();
                stack.engine_process(&worker).kill();
                return worker;
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_every_engine_dies_under_is_answered_502() {
    let slow = "-- --prefill-tokens-per-second 400 --max-num-batched-tokens 16";
    let stack = Stack::start(slow).await;
    let url = stack.url("/v1/chat/completions");
    let body = long_chat("one");
    let kill_both = async {
        let first = kill_the_busy_one(&stack).await;
        let second = kill_the_busy_one(&stack).await;
        assert_ne!(first, second);
    };
    let (answer, ()) = tokio::join!(stack.client.post(&url, &body), kill_both);
    assert_eq!(answer.status, 502, "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], json!("engine_failed"));
    until("its load is freed", async || stack.load().await == 0).await;
    // Sent again, it would take one engine after the other.
    let again = stack.client.post(&url, &body).await;
    assert_eq!(again.status, 422, "{again:?}");
    let error = &again.json()["error"];
    assert_eq!(error["code"], json!("request_killed_engines"));
    assert_eq!(stack.metric("kvlens_deadly_requests_total").await, 1.0);
    assert_eq!(stack.metric("kvlens_deadly_refused_total").await, 1.0);
    assert!(
        !stack.log().contains("and the next one"),
        "a prompt in the log"
    );
    until("the box serves again", async || {
        let url = stack.url("/v1/chat/completions");
        let answer = stack.client.post(&url, &chat(&[text("short")])).await;
        // None is left to take it, or the last one is seen to be dead just now.
        assert!(matches!(answer.status, 200 | 502 | 503), "{answer:?}");
        let comes_again = !answer.header("retry-after").is_empty();
        assert_eq!(answer.status == 503, comes_again, "{answer:?}");
        answer.status == 200
    })
    .await;
    stack.end().await;
}

#[tokio::test]
async fn without_a_retry_left_the_failure_is_answered() {
    let slow = "-- --prefill-tokens-per-second 400 --max-num-batched-tokens 16";
    let none = "[frontend.retries]\nratio = 0\nper_second = 0\n";
    let stack = Stack::configured(slow, none).await;
    let url = stack.url("/v1/chat/completions");
    let body = long_chat("one");
    let (answer, _) = tokio::join!(stack.client.post(&url, &body), kill_the_busy_one(&stack));
    assert_eq!(answer.status, 502, "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], json!("retry_budget_exhausted"));
    assert_eq!(stack.metric("kvlens_retries_refused_total").await, 1.0);
    assert_eq!(stack.metric("kvlens_retries_total").await, 0.0);
    stack.end().await;
}
