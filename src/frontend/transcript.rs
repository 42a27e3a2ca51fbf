//! What a client has seen of a streamed answer, so that another engine can go on with it, and that
//! engine's events in the form of the first one's.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// Longest answer that is kept: some 250,000 tokens, more than contexts leave for one.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Which endpoint's events a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Completion,
}

/// What every event of an answer begins with.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Head {
    id: String,
    created: u64,
    model: String,
}

/// The text of an answer of one choice, as far as the client has it.
#[derive(Debug)]
pub(crate) struct Transcript {
    shape: Shape,
    head: Option<Head>,
    text: String,
    /// Nothing has come but text.
    is_text: bool,
    is_finished: bool,
}

#[derive(Deserialize)]
struct Event {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<Delta>,
    text: Option<String>,
    logprobs: Option<IgnoredAny>,
    finish_reason: Option<String>,
    stop_reason: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    refusal: Option<String>,
    function_call: Option<IgnoredAny>,
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

impl Delta {
    fn is_text(&self) -> bool {
        let texts = [&self.reasoning, &self.reasoning_content, &self.refusal];
        let is_empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        texts.into_iter().all(is_empty)
            && self.function_call.is_none()
            && self.tool_calls.as_ref().is_none_or(Vec::is_empty)
    }
}

/// The JSON of an event.
fn payload(event: &[u8]) -> &[u8] {
    let event = event.trim_ascii();
    event.strip_prefix(b"data:").unwrap_or(event)
}

impl Transcript {
    /// Of an answer that has not begun.
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            head: None,
            text: String::new(),
            is_text: true,
            is_finished: false,
        }
    }

    /// Takes note of one piece of the answer that the client gets.
    pub(crate) fn note(&mut self, event: &[u8]) {
        let payload = payload(event);
        if self.head.is_none() {
            self.head = serde_json::from_slice(payload).ok();
        }
        let Ok(Event { choices }) = serde_json::from_slice::<Event>(payload) else {
            self.is_text = false;
            return;
        };
        for choice in choices {
            let delta = choice.delta.unwrap_or_default();
            let is_text = choice.index == 0 && choice.logprobs.is_none() && delta.is_text();
            self.is_text &= is_text && self.text.len() <= TEXT_BYTES_MAX;
            if self.is_text {
                let text = delta.content.or(choice.text);
                self.text.push_str(text.as_deref().unwrap_or_default());
            }
            self.is_finished |= choice.finish_reason.is_some();
        }
    }

    /// The text so far; `None` where more than text has come, or nothing at all.
    pub(crate) fn text(&self) -> Option<&str> {
        (self.is_text && self.head.is_some()).then_some(&self.text)
    }

    /// Whether the last piece has come: only the stream's end is missing.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// A piece of the engine that goes on, as one of the first engine's; `None` for one that says
    /// nothing new.
    pub(crate) fn piece(&self, event: &[u8]) -> Option<Bytes> {
        let Event { choices } = serde_json::from_slice(payload(event)).ok()?;
        let choice = choices.into_iter().next()?;
        let text = choice.delta.unwrap_or_default().content.or(choice.text);
        let text = text.unwrap_or_default();
        if text.is_empty() && choice.finish_reason.is_none() {
            return None;
        }
        let mut piece = json!({"index": 0});
        match self.shape {
            Shape::Chat => piece["delta"] = json!({"content": text}),
            Shape::Completion => piece["text"] = Value::String(text),
        }
        piece["logprobs"] = Value::Null;
        piece["finish_reason"] = json!(choice.finish_reason);
        piece["stop_reason"] = json!(choice.stop_reason);
        self.event(&json!([piece]), None)
    }

    /// The usage of the whole answer, from the one that the engine which went on reports: its prompt
    /// held the answer's first tokens.
    pub(crate) fn usage(&self, event: &[u8], tokens: Tokens) -> Option<Bytes> {
        let mut event: Value = serde_json::from_slice(payload(event)).ok()?;
        let mut usage = event.get_mut("usage")?.take();
        let counted = usage.get("completion_tokens").and_then(Value::as_u64);
        let completion = counted.unwrap_or(0) + u64::from(tokens.sent);
        let prompt = u64::from(tokens.prompt);
        usage["prompt_tokens"] = prompt.into();
        usage["completion_tokens"] = completion.into();
        usage["total_tokens"] = (prompt + completion).into();
        if let Some(cached) = usage.pointer_mut("/prompt_tokens_details/cached_tokens") {
            let found = cached.as_u64().map(|found| found.min(prompt));
            *cached = json!(found);
        }
        self.event(&json!([]), Some(usage))
    }

    fn event(&self, choices: &Value, usage: Option<Value>) -> Option<Bytes> {
        let Head { id, created, model } = self.head.as_ref()?;
        let object = match self.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completion => "text_completion",
        };
        let mut event = json!({
            "id": id, "object": object, "created": created, "model": model, "choices": choices,
        });
        if let Some(usage) = usage {
            event["usage"] = usage;
        }
        Some(format!("data: {event}\n\n").into())
    }
}

/// The lengths of a prompt, and of what the client had of its answer when another engine went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) prompt: u32,
    pub(crate) sent: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(choices: &Value) -> Vec<u8> {
        let event = json!({"id": "chatcmpl-1", "created": 7, "model": "m", "choices": choices});
        format!("data: {event}\n\n").into_bytes()
    }

    fn chat(delta: &Value) -> Vec<u8> {
        event(&json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]))
    }

    #[test]
    fn only_text_can_be_continued() {
        let role = json!({"role": "assistant", "content": ""});
        for (deltas, expected) in [
            (vec![], None),
            (vec![role.clone()], Some("")),
            (
                vec![
                    role.clone(),
                    json!({"content": "a \""}),
                    json!({"content": "b"}),
                ],
                Some("a \"b"),
            ),
            (
                vec![role.clone(), json!({"content": "a", "tool_calls": []})],
                Some("a"),
            ),
            (
                vec![json!({"content": "a"}), json!({"reasoning": "hm"})],
                None,
            ),
            (
                vec![json!({"reasoning_content": "hm"}), json!({"content": "a"})],
                None,
            ),
            (vec![json!({"tool_calls": [{"index": 0}]})], None),
            (vec![json!({"refusal": "no"})], None),
        ] {
            let mut transcript = Transcript::new(Shape::Chat);
            for delta in &deltas {
                transcript.note(&chat(delta));
            }
            assert_eq!(transcript.text(), expected, "{deltas:?}");
        }
        for choices in [
            json!([{"index": 1, "delta": {"content": "a"}}]),
            json!([{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}}]),
        ] {
            let mut transcript = Transcript::new(Shape::Chat);
            transcript.note(&event(&choices));
            assert_eq!(transcript.text(), None, "{choices}");
        }
        let mut transcript = Transcript::new(Shape::Completion);
        transcript.note(b"data: no JSON\n\n");
        assert_eq!(transcript.text(), None);
    }

    #[test]
    fn what_goes_on_looks_as_what_came_before() {
        for (shape, object, part) in [
            (
                Shape::Chat,
                "chat.completion.chunk",
                json!({"delta": {"content": " b"}}),
            ),
            (Shape::Completion, "text_completion", json!({"text": " b"})),
        ] {
            let mut transcript = Transcript::new(shape);
            transcript.note(&event(&json!([{"index": 0, "text": "a"}])));
            let other = json!({"id": "cmpl-2", "created": 9, "model": "n", "choices": [{
                "index": 0, "text": " b", "finish_reason": "length", "stop_reason": null}]});
            let piece = transcript
                .piece(format!("data: {other}\n\n").as_bytes())
                .unwrap();
            let piece: Value = serde_json::from_slice(payload(&piece)).unwrap();
            let mut expected = json!({"id": "chatcmpl-1", "object": object, "created": 7, "model": "m",
                "choices": [{"index": 0, "logprobs": null, "finish_reason": "length", "stop_reason": null}]});
            let choice = expected["choices"][0].as_object_mut().unwrap();
            choice.extend(part.as_object().unwrap().clone());
            assert_eq!(piece, expected);
            // The role has been told.
            let role = chat(&json!({"role": "assistant", "content": ""}));
            assert_eq!(transcript.piece(&role), None);
        }
    }

    #[test]
    fn usage_counts_the_prompt_and_the_whole_answer() {
        let mut transcript = Transcript::new(Shape::Chat);
        transcript.note(&chat(&json!({"content": "a"})));
        let other = json!({"id": "x", "choices": [], "usage": {"prompt_tokens": 110,
            "completion_tokens": 30, "total_tokens": 140,
            "prompt_tokens_details": {"cached_tokens": 104}}});
        let tokens = Tokens {
            prompt: 100,
            sent: 10,
        };
        let usage = transcript.usage(format!("data: {other}\n\n").as_bytes(), tokens);
        let usage: Value = serde_json::from_slice(payload(&usage.unwrap())).unwrap();
        assert_eq!(usage["id"], "chatcmpl-1");
        assert_eq!(
            usage["usage"],
            json!({"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140,
                "prompt_tokens_details": {"cached_tokens": 100}})
        );
    }

    #[test]
    fn an_end_is_seen() {
        let mut transcript = Transcript::new(Shape::Chat);
        transcript.note(&chat(&json!({"content": "a"})));
        assert!(!transcript.is_finished());
        transcript.note(&event(
            &json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        ));
        assert!(transcript.is_finished());
        assert_eq!(transcript.text(), Some("a"));
    }
}
