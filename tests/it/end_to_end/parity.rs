//! Engines that make other prompts than we do: found out, shown, and not routed by.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::end_to_end::client::assert_error;
use crate::end_to_end::pictures::{chat, data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{FAST, Stack, until};

const QUESTION: &str = "Look closely at the picture below, count every house, tree and river in \
    it, and say which of them a painter would have left out, and why.";

const URL: &str = "/v1/chat/completions";

/// Waits until the agents of all workers have compared; what the first found.
async fn parity(stack: &Stack, state: &str) -> Value {
    let is_so = |worker: &Value| worker["parity"]["state"] == state;
    until("prompts were compared", async || {
        stack.workers().await.iter().all(is_so)
    })
    .await;
    stack.workers().await[0]["parity"].clone()
}

#[tokio::test]
async fn equal_prompts_are_exact_and_the_meters_stand_still() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    parity(&stack, "exact").await;
    let body = chat(&[text(QUESTION), image(&data_uri(&png(96, 64, 1)))]);
    for body in [body.clone(), streamed(body)] {
        stack.ask_settled(&body).await;
    }
    let difference = "kvlens_overlap_difference_tokens";
    for (name, wanted) in [
        ("kvlens_parity_failures_total", 0.0),
        ("kvlens_prompt_length_mismatch_total", 0.0),
        ("kvlens_overlap_difference_tokens_count", 2.0),
        ("kvlens_overlap_difference_tokens_bucket{le=\"-1.0\"}", 0.0),
        ("kvlens_overlap_difference_tokens_bucket{le=\"0.0\"}", 2.0),
    ] {
        let page = stack.client.get(&format!("{}/metrics", stack.admin)).await;
        let line = page.text().lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|value| value.rsplit(' ').next()?.parse::<f64>().ok());
        let found = match name.starts_with(difference) {
            true => value.expect("the metric"),
            false => stack.metric(name).await,
        };
        assert_eq!(found, wanted, "{name}");
    }
    stack.end().await;
}

#[tokio::test]
async fn prompts_that_differ_are_routed_as_far_as_they_are_the_same() {
    let picture = data_uri(&png(96, 64, 1));
    let with_image = chat(&[text(QUESTION), image(&picture)]);
    let text_alone = chat(&[text(&QUESTION.repeat(2))]);
    for (fault, scope, plain_mm) in [
        ("tokens", "text", "text_only; reason=parity"),
        ("expansion", "media", "exact"),
    ] {
        let stack = Stack::start(&format!("--workers 1 -- {FAST} --fault {fault}")).await;
        let found = parity(&stack, "failed").await;
        assert_eq!(found["scope"], scope, "{found}");
        assert!(
            found["reason"].as_str().unwrap().contains(" here and "),
            "{found}"
        );
        for (body, mm) in [
            (&text_alone, plain_mm),
            (&with_image, "text_only; reason=parity"),
        ] {
            stack.ask_settled(body).await;
            stack.settle().await;
            let answer = stack.client.post(&stack.url(URL), body).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("x-kvlens-mm"), mm, "{fault}");
            let overlap = answer.header("x-kvlens-overlap").split('/').next();
            // Sent before, it is assumed to be there, whatever the engine calls it.
            assert_ne!(overlap, Some("0"), "{fault}: {answer:?}");
            // The engine finds its own prompt in its cache, whatever we call it.
            let usage = &answer.json()["usage"]["prompt_tokens_details"];
            assert_ne!(usage["cached_tokens"], 0, "{fault}: {usage}");
        }
        let failures = "kvlens_parity_failures_total{check=\"registration\"}";
        assert_eq!(stack.metric(failures).await, 1.0);
        let texts = 2.0 * f64::from(u8::from(scope == "text"));
        assert_eq!(stack.metric("kvlens_text_only_total").await, 2.0 + texts);
        // Both prompts are longer there, or only the one with an image.
        let mismatches = stack.metric("kvlens_prompt_length_mismatch_total").await;
        assert_eq!(mismatches, 2.0 + texts);
        let told = stack.log();
        assert!(
            told.contains("engine makes other prompts than we do"),
            "{told}"
        );
        assert!(
            told.contains("engine counts another prompt length"),
            "{told}"
        );
        stack.end().await;
    }
}

#[tokio::test]
async fn an_engine_that_serves_other_prompts_than_it_tells_is_found_out() {
    let stack = Stack::start(&format!("--workers 1 -- {FAST} --fault served-expansion")).await;
    parity(&stack, "exact").await;
    // Words behind the picture: what is too long in the middle shows at the end.
    let body = |seed| {
        let picture = image(&data_uri(&png(96, 64, seed)));
        chat(&[text(QUESTION), picture, text(QUESTION)])
    };
    for seed in 0..3 {
        let told = stack.ask_settled(&body(seed)).await;
        assert_eq!(told.overlap_blocks == 0, seed == 0, "{told:?}");
    }
    // Text goes on meanwhile, and is right.
    let asked = Cell::new(0);
    until("the blocks were missed", async || {
        asked.set(asked.get() + 1);
        stack
            .ask(&chat(&[text(&format!("{} {QUESTION}", asked.get()))]))
            .await;
        let worker = stack.worker("mock-0").await;
        worker["parity"]["scope"] == "media"
    })
    .await;
    let operation = "kvlens_parity_failures_total{check=\"operation\"}";
    assert_eq!(stack.metric(operation).await, 1.0);
    let answer = stack.client.post(&stack.url(URL), &body(0)).await;
    assert_eq!(answer.header("x-kvlens-mm"), "text_only; reason=parity");
    let answer = stack
        .client
        .post(&stack.url(URL), &chat(&[text(QUESTION)]))
        .await;
    assert_eq!(answer.header("x-kvlens-mm"), "exact");
    assert!(
        stack
            .log()
            .contains("engine does not store the blocks that it computes")
    );
    stack.end().await;
}

#[tokio::test]
async fn explain_shows_the_prompt_when_asked() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let url = format!("{}/kvlens/v1/explain", stack.admin);
    let mut body = chat(&[
        text("One:"),
        image(&data_uri(&png(64, 64, 1))),
        text("Two:"),
        image(&data_uri(&png(300, 200, 2))),
    ]);
    let short = stack.client.post(&url, &body).await.json();
    assert!(short.get("prompt_token_ids").is_none(), "{short}");
    body["return_token_ids"] = json!(true);
    let told = stack.client.post(&url, &body).await.json();
    let answer = stack.client.post(&stack.url(URL), &body).await.json();
    let tokens = told["prompt_token_ids"].as_array().unwrap();
    assert_eq!(Some(tokens), answer["prompt_token_ids"].as_array());
    assert_eq!(told["prompt_tokens"], tokens.len());
    for (image, (size, mime)) in told["images"]
        .as_array()
        .unwrap()
        .iter()
        .zip([([64, 64], "image/png"), ([300, 200], "image/png")])
    {
        assert_eq!(
            (&image["size"], &image["mime"]),
            (&json!(size), &json!(mime))
        );
        assert_eq!(image["digest"].as_str().unwrap().len(), 64);
        let [start, count] = [0, 1].map(|at| image["span"][at].as_u64().unwrap() as usize);
        let pads = &tokens[start..start + count];
        assert!(
            count > 4 && pads.iter().all(|token| *token == pads[0]),
            "{image}"
        );
        assert!(
            tokens[start - 1] != pads[0] && tokens[start + count] != pads[0],
            "{image}"
        );
    }
    body["return_token_ids"] = json!("yes");
    let refused = stack.client.post(&url, &body).await;
    assert_error(
        &refused,
        (400, "invalid_value", json!("return_token_ids")),
        "yes",
    );
    stack.end().await;
}
