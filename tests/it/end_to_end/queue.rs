//! More requests than engines have room for.

use futures_util::future::join_all;
use serde_json::Value;

use crate::end_to_end::client::post;
use crate::end_to_end::pictures::{chat, streamed, text};
use crate::end_to_end::stack::{Stack, until};

/// A prompt of some hundred tokens that no other begins with.
fn prompt(number: usize, sentences: usize) -> Value {
    let words = format!("{number} goes on and on, ");
    chat(&[text(&words.repeat(sentences))])
}

#[tokio::test]
async fn a_burst_waits_its_turn_and_is_answered_whole() {
    let config = "[router]\nqueue_batch_tokens = 64\nqueue_threshold = 1.0\n";
    let words = "--workers 2 -- --prefill-tokens-per-second 4000";
    let stack = Stack::configured(words, config).await;
    let bodies = (0..24).map(|number| match number % 2 {
        0 => prompt(number, 20),
        _ => streamed(prompt(number, 20)),
    });
    let bodies: Vec<_> = bodies.collect();
    let answers = join_all(bodies.iter().map(|body| stack.ask(body)));
    let depth = async || stack.metric("kvlens_queue_depth").await;
    let seen = until("requests wait", async || depth().await > 4.0);
    let (answers, ()) = tokio::join!(answers, seen);
    assert_eq!(answers.len(), bodies.len());
    assert_eq!(
        (depth().await, stack.metric("kvlens_queue_tokens").await),
        (0.0, 0.0)
    );
    let refused = stack.metric("kvlens_queue_refusals_total").await;
    assert_eq!(refused, 0.0);
    let log = stack.log();
    let routed = log.lines().filter(|line| line.contains("routed"));
    let queued = routed.filter(|line| !line.contains("\"queued_ms\":0,"));
    assert!(queued.count() > 4, "{log}");
    until("the load is freed", async || stack.load().await == 0).await;
    stack.end().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_whoever_leaves_makes_room() {
    let config =
        "[router]\nqueue_batch_tokens = 64\nqueue_threshold = 1.0\nqueue_requests_max = 2\n";
    let words = "--workers 1 -- --prefill-tokens-per-second 20";
    let stack = Stack::configured(words, config).await;
    let url = stack.url("/v1/chat/completions");
    // Whole seconds of work each: none is answered while this goes on.
    let ask = |number| {
        stack
            .client
            .open(post(&url, prompt(number, 40).to_string()))
    };
    let depth = async |wanted: f64| stack.metric("kvlens_queue_depth").await == wanted;
    let running = async || stack.worker("mock-0").await["load"][0]["requests"] == 1;
    let mut first = Box::pin(ask(1));
    let mut second = Box::pin(ask(2));
    let mut third = Box::pin(ask(3));
    let early = "it was to take seconds";
    tokio::select! {
        _ = &mut first => panic!("{early}"),
        () = until("the first runs", running) => {}
    }
    tokio::select! {
        _ = &mut second => panic!("{early}"),
        _ = &mut third => panic!("{early}"),
        () = until("two wait", async || depth(2.0).await) => {}
    }
    let refused = stack.client.post(&url, &prompt(4, 40)).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.header("retry-after"), "5");
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "queue_full", "{error}");
    assert_eq!(error["type"], "rate_limit_error", "{error}");
    let full = "kvlens_queue_refusals_total{reason=\"requests\"}";
    assert_eq!(stack.metric(full).await, 1.0);

    drop(second);
    until("it has left", async || depth(1.0).await).await;
    let mut fourth = Box::pin(ask(4));
    tokio::select! {
        _ = &mut fourth => panic!("{early}"),
        () = until("two wait again", async || depth(2.0).await) => {}
    }
    drop((first, third, fourth));
    until("nobody waits", async || depth(0.0).await).await;
    until("the load is freed", async || stack.load().await == 0).await;
    stack.end().await;
}
