//! How a streamed answer whose engine died goes on: the prompt, with the answer so far behind it,
//! placed and sent as a request of its own.
//!
//! Without images it goes as token ids, the prompt's own and the answer's behind them, so that no
//! template has a say. A prompt with images can only go as a chat: its last message is then the
//! answer so far, to be continued, and it goes only if our own rendering of it shows that the
//! template leaves both the prompt and the answer as they were. Either way the answer so far is known
//! as text: where the engine had spelled it in other tokens than its tokenizer does, the continued
//! prompt has the tokenizer's.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::frontend::prompt::{self, Exactness, Known};
use crate::frontend::relay::Outgoing;
use crate::frontend::transcript::Tokens;
use crate::frontend::{Asked, Frontend};
use crate::model::chat::Chat;
use crate::openai::request::RequestOptions;
use crate::prompt::ExpandedPrompt;
use crate::router::footprint::Footprint;
use crate::telemetry::labels::Continuation;

/// Largest request that is held to the end of its stream, images included.
const HELD_BYTES_MAX: usize = 16 << 20;

/// What it takes to continue an answer, held until its stream ends.
#[derive(Debug)]
pub(crate) struct Continuable {
    pub(crate) asked: Asked,
    /// Known to the last token.
    pub(crate) prompt: ExpandedPrompt,
    pub(crate) salt: String,
    pub(crate) reads_cache: bool,
    /// As the client limits it.
    pub(crate) answer_tokens_max: Option<u32>,
    /// Its share of what may be held for all streams.
    pub(crate) _held: OwnedSemaphorePermit,
}

/// A request that goes on where another broke off.
#[derive(Debug)]
pub(crate) struct Continued {
    pub(crate) outgoing: Outgoing,
    pub(crate) tokens: Tokens,
}

impl Frontend {
    /// Room to hold so many bytes to the end of a stream; `None` where they are too many, or too many
    /// are held for others, or streams are not to be continued.
    pub(crate) fn hold(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if !self.recovery.continue_streams || bytes > HELD_BYTES_MAX {
            return None;
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        let held = self.recovery.held.clone();
        held.try_acquire_many_owned(kib).ok()
    }
}

/// The most tokens that an answer may have, where a client limits it: vLLM reads them in this order.
pub(crate) fn answer_tokens_max(options: &RequestOptions) -> Option<u32> {
    let limits = ["max_completion_tokens", "max_tokens"];
    let limit = limits.iter().find_map(|name| options.passed.get(*name));
    limit.and_then(Value::as_u64)?.try_into().ok()
}

/// Whether a request's answer goes on as it would have, given the answer so far as part of the prompt.
/// What counts or matches over the whole answer (stop strings, penalties, least lengths, grammars,
/// log-probabilities) does not, nor do several answers; fields not named here are not known to.
pub(crate) fn allows(options: &RequestOptions) -> bool {
    const HARMLESS: [&str; 17] = [
        "allowed_token_ids",
        "ignore_eos",
        "include_reasoning",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "parallel_tool_calls",
        "priority",
        "reasoning_effort",
        "seed",
        "skip_special_tokens",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
        "user",
    ];
    // As they are when nobody sets them.
    let is_default = |name: &str, value: &Value| match name {
        "n" | "best_of" | "repetition_penalty" => value.as_f64() == Some(1.0),
        "frequency_penalty" | "presence_penalty" | "min_tokens" => value.as_f64() == Some(0.0),
        "stop" | "bad_words" => value.as_array().is_some_and(Vec::is_empty),
        "echo" | "logprobs" | "return_token_ids" => *value == json!(false),
        _ => false,
    };
    let mut passed = options.passed.iter();
    options.stream
        && passed.all(|(name, value)| HARMLESS.contains(&&**name) || is_default(name, value))
}

/// The request that continues an answer of which the client has `text`.
///
/// # Errors
/// Why there is none.
pub(crate) fn go_on(
    outgoing: &Outgoing,
    continuable: &Continuable,
    text: &str,
) -> Result<Continued, Continuation> {
    let fields = outgoing.body.fields();
    let (sent, messages) = match outgoing.has_images {
        false => {
            let sent = continuable.asked.model.encode(text, false);
            (sent.map_err(|_| Continuation::Inexact)?, None)
        }
        true => {
            let (sent, messages) = render(continuable, &fields, text)?;
            (sent, Some(messages))
        }
    };
    // What cannot be read back has been changed on the way.
    if continuable.asked.model.decode(&sent) != text {
        return Err(Continuation::Inexact);
    }
    let prompt_tokens = continuable.prompt.tokens.len() as u32;
    let mut prompt = continuable.prompt.clone();
    prompt.tokens.extend(&sent);
    let tokens = Tokens {
        prompt: prompt_tokens,
        sent: sent.len() as u32,
    };
    let left = tokens_left(continuable, tokens)?;
    let (path, body) = match messages {
        None => {
            let body = outgoing.body.continued_tokens(&prompt.tokens, left);
            ("/v1/completions", body)
        }
        Some(messages) => (outgoing.path, outgoing.body.continued_chat(messages, left)),
    };
    let known = Known {
        prompt,
        exactness: Exactness::Exact,
        estimated_tokens: 0,
    };
    let (asked, salt) = (&continuable.asked, &continuable.salt);
    let footprint = Footprint {
        tenant: outgoing.footprint.tenant.clone(),
        media: outgoing.footprint.media.clone(),
        stream: true,
        hints: outgoing.footprint.hints,
        ..prompt::footprint(asked, &known, salt, continuable.reads_cache)
    };
    let outgoing = Outgoing {
        id: outgoing.id.clone(),
        received: outgoing.received,
        path,
        footprint,
        exactness: Exactness::Exact,
        stream: true,
        include_usage: outgoing.include_usage,
        has_images: outgoing.has_images,
        wants_choices: false,
        body: Arc::new(body),
        wish: outgoing.wish.clone(),
        nvext: outgoing.nvext,
        continuable: None,
    };
    Ok(Continued { outgoing, tokens })
}

/// The tokens that the rest of the answer may have. A completion has few where it is not told, so it
/// is told what the context leaves.
fn tokens_left(continuable: &Continuable, tokens: Tokens) -> Result<Option<u32>, Continuation> {
    let used = tokens.prompt + tokens.sent;
    let context = continuable.asked.context_tokens_max();
    let left = [
        continuable
            .answer_tokens_max
            .map(|most| most.saturating_sub(tokens.sent)),
        context.map(|most| most.saturating_sub(used)),
    ];
    match left.into_iter().flatten().min() {
        // Nobody says where the answer is to end.
        None | Some(0) => Err(Continuation::NotAllowed),
        left => Ok(left),
    }
}

/// The tokens of an answer so far behind a chat's, and the messages with it.
fn render(
    continuable: &Continuable,
    fields: &Map<String, Value>,
    text: &str,
) -> Result<(Vec<u32>, Vec<Value>), Continuation> {
    let messages = fields.get("messages").and_then(Value::as_array);
    let mut messages = messages.cloned().unwrap_or_default();
    let images = continuable.prompt.spans.len();
    let tokens = |messages: &[Value], is_continued: bool| {
        let chat = Chat {
            messages,
            tools: None,
            variables: fields.get("chat_template_kwargs"),
            add_generation_prompt: !is_continued,
            continue_final_message: is_continued,
            images,
        };
        let tokens = continuable.asked.model.chat_tokens(&chat);
        tokens.map_err(|_| Continuation::Inexact)
    };
    let before = tokens(&messages, false)?;
    messages.push(json!({"role": "assistant", "content": text}));
    let mut after = tokens(&messages, true)?;
    if !after.starts_with(&before) {
        return Err(Continuation::Inexact);
    }
    Ok((after.split_off(before.len()), messages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::completion::CompletionRequest;
    use crate::openai::fields::UnknownFields;
    use crate::openai::request::RequestLimits;

    fn options(fields: &Value) -> RequestOptions {
        let mut body = json!({"model": "m", "prompt": "a", "stream": true});
        let fields = fields.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        let limits = RequestLimits {
            messages_max: 1,
            images_max: 1,
            unknown_fields: UnknownFields::Pass,
        };
        let request = CompletionRequest::parse(body.to_string().as_bytes(), limits);
        request.unwrap().options
    }

    #[test]
    fn what_spans_the_whole_answer_is_not_continued() {
        for (fields, allowed) in [
            (json!({}), true),
            (json!({"stream": false}), false),
            (
                json!({"temperature": 0.7, "top_p": 0.9, "top_k": 4, "seed": 1, "user": "u"}),
                true,
            ),
            (
                json!({"max_tokens": 9, "ignore_eos": true, "stop_token_ids": [7]}),
                true,
            ),
            (
                json!({"n": 1, "best_of": 1, "echo": false, "logprobs": false}),
                true,
            ),
            (
                json!({"presence_penalty": 0, "frequency_penalty": 0.0, "stop": []}),
                true,
            ),
            (json!({"repetition_penalty": 1.0, "min_tokens": 0}), true),
            (json!({"n": 2}), false),
            (json!({"best_of": 2}), false),
            (json!({"stop": ["a"]}), false),
            (json!({"stop": "a"}), false),
            (json!({"min_tokens": 3}), false),
            (json!({"presence_penalty": 0.1}), false),
            (json!({"frequency_penalty": -0.1}), false),
            (json!({"repetition_penalty": 1.1}), false),
            (json!({"logprobs": 2}), false),
            (json!({"prompt_logprobs": 0}), false),
            (json!({"echo": true}), false),
            (json!({"return_token_ids": true}), false),
            (json!({"response_format": {"type": "json_object"}}), false),
            (json!({"structured_outputs": {"regex": "a"}}), false),
            (json!({"tool_choice": "auto"}), false),
            (json!({"suffix": "b"}), false),
            (json!({"a_field_of_tomorrow": 1}), false),
        ] {
            assert_eq!(allows(&options(&fields)), allowed, "{fields}");
        }
    }

    #[test]
    fn the_limit_is_the_one_that_the_engine_reads() {
        for (fields, expected) in [
            (json!({}), None),
            (json!({"max_tokens": 9}), Some(9)),
            (
                json!({"max_completion_tokens": 7, "max_tokens": 9}),
                Some(7),
            ),
        ] {
            assert_eq!(answer_tokens_max(&options(&fields)), expected, "{fields}");
        }
    }
}
