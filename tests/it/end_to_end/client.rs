//! A plain HTTP client: whole answers, and streams read event by event.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// Longest wait for an answer's head, for its end, and between two events of a stream: no test
/// waits without end.
const PATIENCE: Duration = Duration::from_secs(40);

/// Asks over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An answer that is read event by event. Dropped, it closes its connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) headers: HeaderMap,
    body: Incoming,
    text: String,
}

/// What an answer says of its routing and of the engine's cache, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) worker: String,
    pub(crate) overlap_blocks: u64,
    pub(crate) prompt_blocks: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) text: String,
}

impl Client {
    pub(crate) fn new() -> Self {
        let http = Http::builder(TokioExecutor::new()).build_http();
        Self { http }
    }

    /// The head of an answer.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let asked = timeout(PATIENCE, self.http.request(request)).await;
        asked.expect("a head in time").expect("an answer")
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        read(self.open(request).await)
            .await
            .expect("a whole answer")
    }

    pub(crate) async fn get(&self, url: &str) -> Answer {
        self.reach(url).await.expect("an answer")
    }

    /// The same of one who may be away.
    pub(crate) async fn reach(&self, url: &str) -> Option<Answer> {
        let request = Request::get(url).body(Full::default()).expect("a request");
        let asked = timeout(PATIENCE, self.http.request(request)).await;
        read(asked.expect("a head in time").ok()?).await
    }

    pub(crate) async fn post(&self, url: &str, body: &Value) -> Answer {
        self.send(post(url, body.to_string())).await
    }

    /// Opens a stream, which must be one.
    pub(crate) async fn stream(&self, url: &str, body: &Value) -> Stream {
        let (head, body) = self.open(post(url, body.to_string())).await.into_parts();
        let content_type = header(&head.headers, "content-type");
        assert!(content_type.starts_with("text/event-stream"), "{head:?}");
        Stream {
            headers: head.headers,
            body,
            text: String::new(),
        }
    }

    /// Asks and reads to the end, as a stream where `body` wants one; it must succeed.
    pub(crate) async fn ask(&self, url: &str, body: &Value) -> Told {
        if body["stream"] == true {
            let stream = self.stream(url, body).await;
            let headers = stream.headers.clone();
            return told_by_events(&headers, &stream.rest().await);
        }
        let answer = self.post(url, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answered = answer.json();
        told(&answer.headers, &answered["usage"], text_of(&answered))
    }
}

/// The whole of an answer; `None` when it breaks off.
async fn read(response: Response<Incoming>) -> Option<Answer> {
    let (head, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect()).await;
    Some(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.expect("a body in time").ok()?.to_bytes(),
    })
}

/// A POST of JSON.
pub(crate) fn post(url: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post(url).header("content-type", "application/json");
    request.body(Full::from(body.into())).expect("a request")
}

/// A header's text; empty where it is missing.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).map(|value| value.to_str());
    value.and_then(Result::ok).unwrap_or_default()
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }

    pub(crate) fn json(&self) -> Value {
        let json = serde_json::from_slice(&self.body);
        json.unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Stream {
    /// The payload of the next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let payload = event.strip_prefix("data: ").expect("a data event");
                let (payload, rest) = (payload.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(payload);
            }
            let frame = timeout(PATIENCE, self.body.frame()).await;
            let Some(frame) = frame.expect("an event in time") else {
                assert_eq!(self.text, "", "half an event");
                return None;
            };
            let bytes = frame.expect("an unbroken stream").into_data();
            let bytes = bytes.expect("no trailers");
            self.text += std::str::from_utf8(&bytes).expect("text");
        }
    }

    /// The payloads of all events that are left.
    pub(crate) async fn rest(mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// Asserts status, code and field of an error, in the form that every error has.
pub(crate) fn assert_error(answer: &Answer, (status, code, param): (u16, &str, Value), what: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/json", "{what}");
    assert!(!answer.header("x-request-id").is_empty(), "{what}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{what}: {error}");
    assert_eq!(error["param"], param, "{what}: {error}");
    assert_eq!(error["type"], "invalid_request_error", "{what}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.len() > 10, "{what}: {message}");
    // Nothing of the inside: no address resolved, no path, no object of a process.
    for inside in ["127.0.", " 0x", "/tmp", "<_", "os error"] {
        assert!(!message.contains(inside), "{what}: {message}");
    }
}

/// The `code` of an error event.
pub(crate) fn error_code(event: &str) -> Option<String> {
    let event: Value = serde_json::from_str(event).ok()?;
    event["error"]["code"].as_str().map(str::to_owned)
}

fn told_by_events(headers: &HeaderMap, events: &[String]) -> Told {
    let (done, events) = events.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    let events: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let usage = events.iter().find(|event| event["usage"].is_object());
    let usage = usage.map_or(Value::Null, |event| event["usage"].clone());
    told(headers, &usage, events.iter().map(text_of).collect())
}

fn told(headers: &HeaderMap, usage: &Value, text: String) -> Told {
    let overlap = header(headers, "x-kvlens-overlap");
    let (overlap_blocks, prompt_blocks) = overlap.split_once('/').expect("an overlap");
    let tokens = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64);
    Told {
        worker: header(headers, "x-kvlens-worker").to_owned(),
        overlap_blocks: overlap_blocks.parse().expect("a number"),
        prompt_blocks: prompt_blocks.parse().expect("a number"),
        prompt_tokens: tokens("/prompt_tokens").expect("usage"),
        cached_tokens: tokens("/prompt_tokens_details/cached_tokens").unwrap_or(0),
        text,
    }
}

fn text_of(answer: &Value) -> String {
    let choice = &answer["choices"][0];
    let texts = [
        &choice["message"]["content"],
        &choice["delta"]["content"],
        &choice["text"],
    ];
    let text = texts.iter().find_map(|text| text.as_str());
    text.unwrap_or_default().to_owned()
}
