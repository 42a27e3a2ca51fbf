//! Streams whose engine dies: another worker goes on with the same words, or the client is told.

use serde_json::{Value, json};

use crate::end_to_end::client::{Stream, error_code, header};
use crate::end_to_end::pictures::{chat, data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{Stack, until};

const WORDS: &str = "Tell me a long story, and then another one.";

/// Answers of 120 tokens take more than a second.
const SLOW: &str = "-- --decode-tokens-per-second 100";

fn parsed(events: &[String]) -> Vec<Value> {
    let read = |event: &String| serde_json::from_str(event).expect("JSON");
    events.iter().map(read).collect()
}

/// The text of an event's first choice.
fn piece(event: &Value) -> &str {
    let choice = &event["choices"][0];
    if choice["index"] == 1 {
        return "";
    }
    let texts = [&choice["delta"]["content"], &choice["text"]];
    texts.iter().find_map(|text| text.as_str()).unwrap_or("")
}

/// The events until the mock has said what it saw, and some more.
async fn begun(stream: &mut Stream) -> Vec<String> {
    let (mut events, mut said, mut more) = (Vec::new(), String::new(), 0);
    while more < 9 {
        let event = stream.next().await.expect("an event");
        said += piece(&serde_json::from_str(&event).expect("JSON"));
        events.push(event);
        more += usize::from(said.contains("came from my cache."));
    }
    events
}

async fn both_take_requests(stack: &Stack) {
    until("both take requests", async || {
        let workers = stack.workers().await;
        workers.len() == 2 && workers.iter().all(|entry| entry["verdict"] == "healthy")
    })
    .await;
}

/// Streams a request, and kills its engine in the middle.
async fn broken(stack: &Stack, body: &Value) -> Vec<String> {
    both_take_requests(stack).await;
    let mut stream = stack.stream(body).await;
    let mut events = begun(&mut stream).await;
    let worker = header(&stream.headers, "x-kvlens-worker").to_owned();
    stack.engine_process(&worker).kill();
    events.extend(stream.rest().await);
    events
}

/// What a client makes of a whole stream.
#[derive(Debug, PartialEq)]
struct Heard {
    text: String,
    roles: usize,
    finish: Vec<Value>,
    usage: Vec<Value>,
}

fn heard(events: &[String]) -> Heard {
    let (done, events) = events.split_last().expect("events");
    assert_eq!(done, "[DONE]", "{events:?}");
    assert!(!events.iter().any(|event| event == "[DONE]"));
    let events = parsed(events);
    for name in ["id", "object", "created", "model"] {
        let first = &events[0][name];
        assert!(!first.is_null(), "{name}");
        assert!(events.iter().all(|event| event[name] == *first), "{name}");
    }
    let counts = ["prompt_tokens", "completion_tokens", "total_tokens"];
    let usage = |event: &Value| counts.map(|name| event["usage"][name].clone());
    let has =
        |event: &&Value, pointer: &str| event.pointer(pointer).is_some_and(|it| !it.is_null());
    let with = |pointer| events.iter().filter(move |event| has(event, pointer));
    Heard {
        text: events.iter().map(piece).collect(),
        roles: with("/choices/0/delta/role").count(),
        finish: with("/choices/0/finish_reason")
            .map(|event| event["choices"][0]["finish_reason"].clone())
            .collect(),
        usage: with("/usage").map(|event| json!(usage(event))).collect(),
    }
}

#[tokio::test]
async fn another_worker_goes_on_with_the_same_words() {
    let stack = Stack::start(SLOW).await;
    let picture = image(&data_uri(&png(64, 64, 3)));
    let completion = json!({"model": "demo", "prompt": WORDS});
    let mut bodies = [
        chat(&[text(WORDS)]),
        chat(&[picture, text(WORDS)]),
        completion,
    ];
    for body in &mut bodies {
        *body = streamed(body.take());
        body["max_tokens"] = 120.into();
        body["temperature"] = 0.into();
    }
    for (number, body) in bodies.iter().enumerate() {
        // Neither finds anything cached, so both are told the same.
        let salted = |salt: &str| {
            let mut body = body.clone();
            body["cache_salt"] = json!(format!("{salt} {number}"));
            body
        };
        both_take_requests(&stack).await;
        let uncut = stack.stream(&salted("uncut")).await.rest().await;
        let uncut = heard(&uncut);
        let mended = heard(&broken(&stack, &salted("cut")).await);
        assert_eq!(mended, uncut, "{body}");
        assert_eq!((uncut.finish.len(), uncut.usage.len()), (1, 1));
        assert_eq!(uncut.usage[0][1], 120);
        let continued = r#"kvlens_stream_continuations_total{outcome="continued"}"#;
        assert_eq!(stack.metric(continued).await, (number + 1) as f64);
    }
    assert_eq!(stack.metric("kvlens_stream_failures_total").await, 0.0);
    assert!(stack.log().contains("stream continued on another worker"));
    assert!(!stack.log().contains("long story"), "a prompt in the log");
    until("its load is freed", async || stack.load().await == 0).await;
    stack.end().await;
}

#[tokio::test]
async fn a_chat_without_limit_ends_where_it_would_have() {
    let stack = Stack::start(SLOW).await;
    let mut body = chat(&[text(WORDS)]);
    body.as_object_mut().unwrap().remove("max_tokens");
    body["stream"] = true.into();
    let mended = heard(&broken(&stack, &body).await);
    assert_eq!(mended.finish, ["stop"]);
    assert_eq!(mended.usage, [Value::Null; 0], "nobody asked");
    assert_eq!(mended.roles, 1);
    stack.end().await;
}

#[tokio::test]
async fn what_cannot_go_on_exactly_ends_with_an_error() {
    let stack = Stack::start(SLOW).await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    for (name, value) in [
        ("tools", json!([tool])),
        ("n", json!(2)),
        ("stop", json!(["never said"])),
        ("frequency_penalty", json!(0.5)),
    ] {
        let mut body = streamed(chat(&[text(WORDS)]));
        body["max_tokens"] = 400.into();
        body[name] = value;
        let events = broken(&stack, &body).await;
        let last = events.last().unwrap();
        assert_eq!(error_code(last).as_deref(), Some("engine_failed"), "{name}");
        assert!(!events.iter().any(|event| event == "[DONE]"), "{name}");
    }
    let not_allowed = r#"kvlens_stream_continuations_total{outcome="not_allowed"}"#;
    assert_eq!(stack.metric(not_allowed).await, 4.0);
    assert_eq!(stack.metric("kvlens_stream_failures_total").await, 4.0);
    stack.end().await;
}

#[tokio::test]
async fn streams_are_not_continued_where_that_is_turned_off() {
    let off = "[frontend]\ncontinue_streams = false\n";
    let stack = Stack::configured(SLOW, off).await;
    let mut body = streamed(chat(&[text(WORDS)]));
    body["max_tokens"] = 400.into();
    let events = broken(&stack, &body).await;
    let last = events.last().unwrap();
    assert_eq!(error_code(last).as_deref(), Some("engine_failed"), "{last}");
    stack.end().await;
}
