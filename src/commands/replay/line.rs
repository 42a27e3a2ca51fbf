//! One line of a trace, in either of two forms.
//!
//! As Mooncake publishes them: `{"timestamp": 0, "input_length": 700, "output_length": 20,
//! "hash_ids": [0, 7]}`, the time in milliseconds; each id names 512 tokens and all before them.
//!
//! Our own, which knows images: `{"arrival_ms": 0, "tenant": "a", "parts": [{"text": "system",
//! "tokens": 120}, {"image": "cat.png", "tokens": 361}, {"text": "q1", "tokens": 20}],
//! "output_tokens": 41}`. Parts of one id have one content, so that prompts share what they begin
//! with; `tenant` may be left out.
//!
//! Fields that are not known are passed over.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::commands::replay::prompt::{NAMED_TOKENS, Part, PartKind, Prompt};
use crate::commands::replay::trace::Request;

/// Longest prompt and longest answer; the longest contexts of today's models are a million.
const TOKENS_MAX: u32 = 1 << 22;

/// Latest arrival: ten years, so that times can be added without a care.
const ARRIVAL_MS_MAX: f64 = 3.2e11;

/// Why a line is no request.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("is not a request as JSON")]
    Json(#[from] serde_json::Error),
    #[error("has no {field}")]
    Missing { field: &'static str },
    #[error("arrives at {milliseconds} ms, which is not between 0 and {ARRIVAL_MS_MAX}")]
    Arrival { milliseconds: f64 },
    #[error("has a prompt of {tokens} tokens, which is not between 1 and {TOKENS_MAX}")]
    PromptTokens { tokens: u64 },
    #[error("has an answer of {tokens} tokens, more than {TOKENS_MAX}")]
    OutputTokens { tokens: u64 },
    #[error("has {ids} hash_ids for {tokens} tokens, which take {wanted}")]
    Ids {
        ids: usize,
        tokens: u64,
        wanted: u64,
    },
    #[error("part {index} is not one of text and image")]
    Part { index: usize },
}

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "timestamp")]
    arrival_ms: Option<f64>,
    #[serde(alias = "output_length")]
    output_tokens: Option<u64>,
    // As Mooncake publishes them.
    input_length: Option<u64>,
    hash_ids: Option<Vec<u64>>,
    // Our own.
    #[serde(default)]
    tenant: String,
    parts: Option<Vec<LinePart>>,
}

#[derive(Deserialize)]
struct LinePart {
    text: Option<String>,
    image: Option<String>,
    tokens: u64,
}

/// Reads one line.
///
/// # Errors
/// When it is no request, or one beyond the limits.
pub(crate) fn parse(text: &[u8]) -> Result<Request, LineError> {
    let line: Line = serde_json::from_slice(text)?;
    let missing = |field| LineError::Missing { field };
    let prompt = match (&line.parts, &line.hash_ids) {
        (Some(parts), _) => prompt_of_parts(parts)?,
        (None, Some(ids)) => {
            let tokens = line.input_length.ok_or(missing("input_length"))?;
            named_prompt(ids, tokens)?
        }
        (None, None) => return Err(missing("hash_ids or parts")),
    };
    let milliseconds = line.arrival_ms.ok_or(missing("timestamp or arrival_ms"))?;
    if !(0.0..=ARRIVAL_MS_MAX).contains(&milliseconds) {
        return Err(LineError::Arrival { milliseconds });
    }
    let output = line.output_tokens;
    let tokens = output.ok_or(missing("output_length or output_tokens"))?;
    let output_tokens = within(tokens).ok_or(LineError::OutputTokens { tokens })?;
    Ok(Request {
        arrival: Duration::from_secs_f64(milliseconds / 1e3),
        tenant: Arc::from(line.tenant),
        prompt,
        output_tokens,
    })
}

fn within(tokens: u64) -> Option<u32> {
    u32::try_from(tokens).ok().filter(|t| *t <= TOKENS_MAX)
}

fn prompt_tokens(tokens: u64) -> Result<u32, LineError> {
    let known = within(tokens).filter(|tokens| *tokens > 0);
    known.ok_or(LineError::PromptTokens { tokens })
}

fn named_prompt(ids: &[u64], tokens: u64) -> Result<Prompt, LineError> {
    let known_tokens = prompt_tokens(tokens)?;
    let wanted = tokens.div_ceil(u64::from(NAMED_TOKENS));
    if (ids.len() as u64) < wanted {
        let ids = ids.len();
        return Err(LineError::Ids {
            ids,
            tokens,
            wanted,
        });
    }
    Ok(Prompt::Named {
        ids: ids[..wanted as usize].into(),
        tokens: known_tokens,
    })
}

fn prompt_of_parts(parts: &[LinePart]) -> Result<Prompt, LineError> {
    let sum = |sum: u64, part: &LinePart| sum.saturating_add(part.tokens);
    prompt_tokens(parts.iter().fold(0, sum))?;
    let part = |(index, part): (usize, &LinePart)| {
        let (kind, id) = match (&part.text, &part.image) {
            (Some(id), None) => (PartKind::Text, id),
            (None, Some(id)) => (PartKind::Image, id),
            _ => return Err(LineError::Part { index }),
        };
        Ok(Part {
            kind,
            id: xxh3_64(id.as_bytes()),
            tokens: part.tokens as u32,
        })
    };
    let parts: Result<Box<[Part]>, _> = parts.iter().enumerate().map(part).collect();
    Ok(Prompt::Parts(parts?))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        let id = |text: &str| xxh3_64(text.as_bytes());
        let ids = Box::new([0, 7]);
        let named = Prompt::Named { ids, tokens: 700 };
        let parts = [
            Part::text(id("system"), 120),
            Part::image(id("cat"), 361),
            Part::text(id("q"), 0),
        ];
        for (text, tenant, prompt) in [
            (
                r#"{"timestamp": 1500, "input_length": 700, "output_length": 20, "hash_ids": [0, 7, 9], "type": "x"}"#,
                "",
                named,
            ),
            (
                r#"{"arrival_ms": 1500.0, "tenant": "a", "parts": [{"text": "system", "tokens": 120},
                  {"image": "cat", "tokens": 361, "width": 9}, {"text": "q", "tokens": 0}], "output_tokens": 20}"#,
                "a",
                Prompt::Parts(parts.into()),
            ),
        ] {
            let request = parse(text.as_bytes()).unwrap();
            assert_eq!(request.arrival, Duration::from_millis(1_500));
            assert_eq!(&*request.tenant, tenant);
            assert_eq!(request.prompt, prompt);
            assert_eq!(request.output_tokens, 20);
        }
    }

    #[test]
    fn a_bad_line_says_why() {
        let line = |fields: &str| format!("{{\"timestamp\":0,\"output_length\":1,{fields}}}");
        for (text, said) in [
            ("7".to_owned(), "is not a request as JSON: invalid type"),
            ("{".to_owned(), "is not a request as JSON: EOF"),
            (line("\"x\":1"), "has no hash_ids or parts"),
            (line("\"hash_ids\":[1]"), "has no input_length"),
            (
                line("\"hash_ids\":[1],\"input_length\":513"),
                "has 1 hash_ids for 513 tokens, which take 2",
            ),
            (
                line("\"hash_ids\":[],\"input_length\":0"),
                "has a prompt of 0",
            ),
            (
                line("\"hash_ids\":[],\"input_length\":4294967297"),
                "has a prompt of 4294967297 tokens, which is not between 1 and 4194304",
            ),
            (line("\"parts\":[]"), "has a prompt of 0 tokens"),
            (
                line("\"parts\":[{\"text\":\"a\",\"tokens\":1},{\"tokens\":1}]"),
                "part 1 is not one of text and image",
            ),
            (
                line("\"parts\":[{\"text\":\"a\",\"image\":\"a\",\"tokens\":1}]"),
                "part 0 is not one",
            ),
            (
                "{\"hash_ids\":[1],\"input_length\":5}".to_owned(),
                "has no timestamp or arrival_ms",
            ),
            (
                "{\"hash_ids\":[1],\"input_length\":5,\"timestamp\":-1}".to_owned(),
                "arrives at -1 ms",
            ),
            (
                "{\"hash_ids\":[1],\"input_length\":5,\"timestamp\":1}".to_owned(),
                "has no output_length or output_tokens",
            ),
        ] {
            let error = parse(text.as_bytes()).expect_err(&text);
            let cause = error.source().map(|cause| format!(": {cause}"));
            let whole = format!("{error}{}", cause.unwrap_or_default());
            assert!(whole.starts_with(said), "{text}: {whole}");
        }
    }
}
