//! Clients that go away.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::end_to_end::client::post;
use crate::end_to_end::pictures::{chat, streamed, text};
use crate::end_to_end::stack::{Stack, until};

/// From the client's going to the end of the engine's work.
const ABORTED_WITHIN: Duration = Duration::from_millis(100);

/// A prompt of about 2,000 tokens.
fn long_chat(number: usize) -> Value {
    let words = format!("{number} goes on and on, ");
    let mut body = chat(&[text(&words.repeat(250))]);
    body["max_tokens"] = 2_000.into();
    body
}

/// Steps of some 20 ms, so that the engine's own figures are never older.
const STEPPING: &str = "--workers 1 -- --prefill-tokens-per-second 800 --max-num-batched-tokens 16 \
    --decode-tokens-per-second 50";

/// Waits until nothing is left of a request anywhere; how long the engine worked on.
async fn gone(stack: &Stack, engine: &str) -> Duration {
    let since = Instant::now();
    until("the engine drops it", async || {
        stack.running(engine).await == Some(0.0)
    })
    .await;
    let aborted = since.elapsed();
    until("its load is freed", async || stack.load().await == 0).await;
    let in_flight = async || stack.metric("kvlens_in_flight_requests").await;
    until("it is no longer in flight", async || {
        in_flight().await == 0.0
    })
    .await;
    aborted
}

#[tokio::test]
async fn a_client_that_goes_before_the_first_token_frees_the_engine() {
    let stack = Stack::start(STEPPING).await;
    let engine = stack.engine("mock-0").await;
    let url = stack.url("/v1/chat/completions");
    let mut delays = Vec::new();
    for number in 0..6 {
        let body = match number % 2 {
            0 => long_chat(number),
            _ => streamed(long_chat(number)),
        };
        let asked = stack.client.open(post(&url, body.to_string()));
        let begun = until("the engine works", async || {
            stack.running(&engine).await == Some(1.0)
        });
        tokio::select! {
            answer = asked => panic!("it was to take seconds: {answer:?}"),
            () = begun => {}
        }
        delays.push(gone(&stack, &engine).await);
    }
    // The shortest is the program's own doing; a busy machine's own delays come on top.
    assert!(delays.iter().min() < Some(&ABORTED_WITHIN), "{delays:?}");
    stack.end().await;
}

#[tokio::test]
async fn a_client_that_goes_in_mid_stream_frees_the_engine() {
    let stack = Stack::start(STEPPING).await;
    let engine = stack.engine("mock-0").await;
    let mut delays = Vec::new();
    for number in 0..3 {
        let mut body = streamed(chat(&[text("Tell me a long story.")]));
        body["max_tokens"] = 2_000.into();
        let mut stream = stack.stream(&body).await;
        for _ in 0..4 {
            stream.next().await.unwrap();
        }
        assert_eq!(stack.running(&engine).await, Some(1.0), "round {number}");
        assert_eq!(stack.metric("kvlens_in_flight_requests").await, 1.0);
        let load = &stack.worker("mock-0").await["load"][0];
        assert_eq!(
            (&load["requests"], &load["prefill_tokens"]),
            (&1.into(), &0.into())
        );
        drop(stream);
        delays.push(gone(&stack, &engine).await);
    }
    assert!(delays.iter().min() < Some(&ABORTED_WITHIN), "{delays:?}");
    stack.end().await;
}
