//! Answers in OpenAI's shape, whole or as a stream of server-sent events.

use ::http::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};

use crate::http::reply::Reply;
use crate::mock::answer::Finish;
use crate::mock::generation::{Generation, Piece};
use crate::mock::refusal::Refusal;
use crate::mock::server::{Terms, unix_seconds};

/// Which endpoint's shape an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Chat,
    Text,
}

/// Everything an answer needs beside its tokens.
#[derive(Debug)]
struct Envelope {
    id: String,
    created: u64,
    shape: Shape,
    terms: Terms,
}

/// Answers with all choices of `generation`.
pub async fn answer(shape: Shape, id: &str, terms: Terms, generation: Generation) -> Reply {
    let prefix = if shape == Shape::Chat {
        "chatcmpl"
    } else {
        "cmpl"
    };
    let envelope = Envelope {
        id: format!("{prefix}-{id}"),
        created: unix_seconds(),
        shape,
        terms,
    };
    if envelope.terms.stream {
        envelope.stream(generation)
    } else {
        envelope.whole(generation).await
    }
}

impl Envelope {
    async fn whole(self, generation: Generation) -> Reply {
        while !generation.is_finished() {
            generation.changed().await;
        }
        let choices: Option<Vec<_>> = (0..generation.choices.len())
            .map(|index| self.choice(&generation, index))
            .collect();
        let Some(choices) = choices else {
            return Refusal::Broken("a finished request has no answer".into()).reply();
        };
        let is_chat = self.shape == Shape::Chat;
        let mut body = self.head(if is_chat {
            "chat.completion"
        } else {
            "text_completion"
        });
        body["choices"] = Value::Array(choices);
        body["usage"] = generation.usage(is_chat);
        if is_chat {
            body["prompt_token_ids"] = json!(generation.prompt_token_ids);
        }
        Reply::json(StatusCode::OK, &body)
    }

    fn choice(&self, generation: &Generation, index: usize) -> Option<Value> {
        let (answer, text) = generation.whole(index)?;
        let ids = self.terms.return_token_ids.then_some(&answer.tokens[..]);
        let (finish, stop) = finish(Some(&answer.finish));
        let mut choice = json!({
            "index": index,
            "logprobs": null,
            "finish_reason": finish,
            "stop_reason": stop,
            "token_ids": ids,
        });
        match self.shape {
            Shape::Chat => {
                choice["message"] = json!({
                    "role": "assistant",
                    "content": text,
                    "refusal": null,
                    "reasoning": null,
                });
            }
            Shape::Text => {
                choice["text"] = Value::from(text);
                choice["prompt_token_ids"] = json!(generation.prompt_token_ids);
            }
        }
        Some(choice)
    }

    fn stream(self, generation: Generation) -> Reply {
        let start = Streamed {
            envelope: self,
            generation,
            begun: false,
            ended: false,
        };
        let chunks = stream::unfold(start, async |mut streamed| {
            let bytes = streamed.next().await?;
            Some((Ok(bytes), streamed))
        });
        Reply::events(chunks.boxed())
    }

    fn head(&self, object: &str) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.terms.model,
        })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let is_chat = self.shape == Shape::Chat;
        let mut chunk = self.head(if is_chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        });
        chunk["choices"] = Value::Array(choices);
        chunk
    }

    fn piece(&self, index: usize, piece: &Piece) -> Value {
        let ids = self.terms.return_token_ids.then_some([piece.token]);
        let (finish, stop) = finish(piece.finish.as_ref());
        let mut choice = json!({
            "index": index,
            "logprobs": null,
            "finish_reason": finish,
            "stop_reason": stop,
            "token_ids": ids,
        });
        match self.shape {
            Shape::Chat => choice["delta"] = json!({ "content": piece.text }),
            Shape::Text => choice["text"] = Value::from(piece.text.as_str()),
        }
        self.chunk(vec![choice])
    }
}

struct Streamed {
    envelope: Envelope,
    generation: Generation,
    begun: bool,
    ended: bool,
}

impl Streamed {
    /// The events that became ready together; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        loop {
            for index in 0..self.generation.choices.len() {
                self.read(index, &mut out);
            }
            if self
                .generation
                .choices
                .iter()
                .all(|choice| choice.is_read())
            {
                self.end(&mut out);
                return Some(out.into());
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            self.generation.changed().await;
        }
    }

    fn read(&mut self, index: usize, out: &mut Vec<u8>) {
        while let Some(piece) = self.generation.next_piece(index) {
            if !self.begun {
                self.begun = true;
                self.begin(out);
            }
            put_event(out, &self.envelope.piece(index, &piece));
        }
    }

    fn begin(&self, out: &mut Vec<u8>) {
        if self.envelope.shape == Shape::Text {
            return;
        }
        for index in 0..self.generation.choices.len() {
            let mut chunk = self.envelope.chunk(vec![json!({
                "index": index,
                "delta": { "role": "assistant", "content": "" },
                "logprobs": null,
                "finish_reason": null,
            })]);
            if let Some(ids) = &self.generation.prompt_token_ids {
                chunk["prompt_token_ids"] = json!(ids);
            }
            put_event(out, &chunk);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.ended = true;
        if self.envelope.terms.include_usage {
            let mut chunk = self.envelope.chunk(Vec::new());
            chunk["usage"] = self.generation.usage(self.envelope.shape == Shape::Chat);
            put_event(out, &chunk);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

fn put_event(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(b"data: ");
    // A `Value` has string keys only, and writing into memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, value);
    out.extend_from_slice(b"\n\n");
}

fn finish(finish: Option<&Finish>) -> (Option<&'static str>, Option<&str>) {
    match finish {
        None => (None, None),
        Some(Finish::Length) => (Some("length"), None),
        Some(Finish::Stop(stop)) => (Some("stop"), stop.as_deref()),
    }
}
