//! Many at once.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::Value;

use crate::end_to_end::client::Told;
use crate::end_to_end::pictures::{chat, data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{Stack, until};

const AT_ONCE: usize = 64;

const WORKERS: usize = 4;

/// A picture and some 1,500 tokens; every second time as a stream.
fn crowd() -> Vec<Value> {
    let words = "This page of rules stands before every question that is asked here. ";
    let picture = image(&data_uri(&png(64, 64, 5)));
    let body = chat(&[picture, text(&words.repeat(100))]);
    let bodies = [body.clone(), streamed(body)];
    bodies.into_iter().cycle().take(AT_ONCE).collect()
}

/// Those who found nothing cached.
fn cold(told: &[Told]) -> usize {
    let is_cold = |told: &&Told| told.cached_tokens * 2 < told.prompt_tokens;
    told.iter().filter(is_cold).count()
}

#[tokio::test]
async fn a_crowd_with_one_prompt_does_not_scatter() {
    let stack = Stack::start("--workers 4 -- --prefill-tokens-per-second 20000").await;
    let bodies = crowd();
    // Whoever comes while the first prompt is still being computed may be sent elsewhere, but no
    // engine computes it twice.
    let first = join_all(bodies.iter().map(|body| stack.ask(body))).await;
    let workers: BTreeSet<_> = first.iter().map(|told| &told.worker).collect();
    assert_eq!(cold(&first), workers.len(), "{first:?}");
    assert!(workers.len() <= WORKERS);

    // Once it is cached, nobody goes where it is not.
    stack.settle().await;
    let then = join_all(bodies.iter().map(|body| stack.ask(body))).await;
    assert_eq!(cold(&then), 0, "{then:?}");
    for told in &then {
        assert_eq!(told.cached_tokens, (told.prompt_tokens - 1) / 16 * 16);
    }
    until("the load is freed", async || stack.load().await == 0).await;
    let in_flight = async || stack.metric("kvlens_in_flight_requests").await;
    until("none is in flight", async || in_flight().await == 0.0).await;
    stack.end().await;
}

#[tokio::test]
async fn a_crowd_with_a_cached_prompt_stays_with_it() {
    let stack = Stack::start("--workers 4 -- --prefill-tokens-per-second 20000").await;
    let bodies = crowd();
    let first = stack.ask(&bodies[0]).await;
    stack.settle().await;
    let told = join_all(bodies.iter().map(|body| stack.ask(body))).await;
    assert_eq!(cold(&told), 0, "{told:?}");
    let elsewhere = told.iter().filter(|told| told.worker != first.worker);
    assert_eq!(elsewhere.count(), 0);
    stack.end().await;
}
