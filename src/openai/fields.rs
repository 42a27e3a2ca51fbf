//! How each top-level field of a request is treated, and the checks on those that pass.

use serde_json::{Map, Value};

use crate::openai::error::ApiError;

/// What to do with a field that is not in the tables.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownFields {
    /// Left out of the engine's request, and counted.
    #[default]
    Drop,
    /// Sent to the engine as it is.
    Pass,
    /// Answered 400.
    Refuse,
}

/// The legal values of a field that passes to the engine.
#[derive(Clone, Copy, Debug)]
enum Check {
    Bool,
    /// A whole number in this range, both ends included.
    Int(i64, i64),
    /// A number in this range, both ends included.
    Number(f64, f64),
    Text,
    /// A text, or at most so many.
    Texts(usize),
    /// A list of at most so many.
    List(usize),
    /// An object of at most so many keys.
    Object(usize),
    TextOrObject,
    OneOf(&'static [&'static str]),
}

/// Fields that pass to the engine, each with its check. Upper bounds without a better reason are
/// those of OpenAI or vLLM; the rest keep one request from tying up an engine.
const PASSED: &[(&str, Check)] = &[
    ("allowed_token_ids", Check::List(4_096)),
    ("bad_words", Check::List(256)),
    ("best_of", Check::Int(1, 128)),
    ("echo", Check::Bool),
    ("frequency_penalty", Check::Number(-2.0, 2.0)),
    ("ignore_eos", Check::Bool),
    ("include_reasoning", Check::Bool),
    ("include_stop_str_in_output", Check::Bool),
    ("length_penalty", Check::Number(-100.0, 100.0)),
    ("logit_bias", Check::Object(1_024)),
    ("max_completion_tokens", Check::Int(1, u32::MAX as i64)),
    ("max_tokens", Check::Int(1, u32::MAX as i64)),
    ("min_p", Check::Number(0.0, 1.0)),
    ("min_tokens", Check::Int(0, u32::MAX as i64)),
    ("n", Check::Int(1, 128)),
    ("parallel_tool_calls", Check::Bool),
    ("presence_penalty", Check::Number(-2.0, 2.0)),
    ("priority", Check::Int(i32::MIN as i64, i32::MAX as i64)),
    ("prompt_logprobs", Check::Int(0, 20)),
    (
        "reasoning_effort",
        Check::OneOf(&["none", "minimal", "low", "medium", "high", "xhigh"]),
    ),
    ("repetition_penalty", Check::Number(0.0, 100.0)),
    ("response_format", Check::Object(16)),
    ("return_token_ids", Check::Bool),
    ("seed", Check::Int(i64::MIN, i64::MAX)),
    ("skip_special_tokens", Check::Bool),
    ("spaces_between_special_tokens", Check::Bool),
    ("stop", Check::Texts(64)),
    ("stop_token_ids", Check::List(256)),
    ("structured_outputs", Check::Object(16)),
    ("suffix", Check::Text),
    ("temperature", Check::Number(0.0, 2.0)),
    ("tool_choice", Check::TextOrObject),
    ("top_k", Check::Int(-1, i32::MAX as i64)),
    ("top_logprobs", Check::Int(0, 20)),
    ("top_p", Check::Number(0.0, 1.0)),
    ("user", Check::Text),
];

/// Fields that change what the engine computes behind our hashes, or reach into it: refused.
const REFUSED: &[&str] = &[
    "chat_template",
    "documents",
    "ec_transfer_params",
    "image_embeds",
    "kv_transfer_params",
    "media_io_kwargs",
    "mm_hashes",
    "mm_processor_kwargs",
    "multi_modal_uuids",
    "prompt_embeds",
    "truncate_prompt_tokens",
    "vllm_xargs",
];

/// Fields of a content part that an engine would take for media of its own finding: vLLM reads some
/// of them in a part of any type.
const MEDIA: &[&str] = &[
    "audio_embeds",
    "audio_url",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "video_embeds",
    "video_url",
];

/// Refuses in a message what is refused beside it.
///
/// # Errors
/// Names the field.
pub(crate) fn refuse_inside(fields: &Map<String, Value>, param: &str) -> Result<(), ApiError> {
    refuse(fields, param, |name| REFUSED.contains(&name))
}

/// Refuses in a content part what is refused beside the messages, and media that are not those of
/// its own `kind`.
///
/// # Errors
/// Names the field.
pub(crate) fn refuse_in_part(
    fields: &Map<String, Value>,
    kind: &str,
    param: &str,
) -> Result<(), ApiError> {
    refuse_inside(fields, param)?;
    refuse(fields, param, |name| MEDIA.contains(&name) && name != kind)
}

/// `null` counts as absent here too.
fn refuse(
    fields: &Map<String, Value>,
    param: &str,
    is_refused: impl Fn(&str) -> bool,
) -> Result<(), ApiError> {
    let mut names = fields.iter().filter(|(_, value)| !value.is_null());
    match names.find(|(name, _)| is_refused(name)) {
        Some((name, _)) => Err(not_accepted(format!("{param}.{name}"))),
        None => Ok(()),
    }
}

fn not_accepted(param: String) -> ApiError {
    let message = format!("{param} is not accepted");
    ApiError::invalid("field_not_accepted", param, message)
}

/// Sorts the fields of a request that its parser has not taken: returns what passes to the engine
/// and the number of fields dropped. `null` counts as absent.
///
/// # Errors
/// When a field is refused, or a value is not legal.
pub(crate) fn sort(
    fields: Map<String, Value>,
    unknown: UnknownFields,
) -> Result<(Map<String, Value>, u32), ApiError> {
    let mut passed = Map::new();
    let mut dropped = 0;
    for (name, value) in fields {
        if value.is_null() {
            continue;
        }
        if REFUSED.contains(&name.as_str()) {
            return Err(not_accepted(name));
        }
        match (PASSED.iter().find(|(known, _)| *known == name), unknown) {
            (Some((_, check)), _) => {
                check_value(&name, &value, *check)?;
                passed.insert(name, value);
            }
            (None, UnknownFields::Pass) => drop(passed.insert(name, value)),
            (None, UnknownFields::Drop) => dropped += 1,
            (None, UnknownFields::Refuse) => {
                let message = format!("unknown field {name}");
                return Err(ApiError::invalid("unknown_field", name, message));
            }
        }
    }
    Ok((passed, dropped))
}

/// Takes a boolean; absent and `null` are `None`.
pub(crate) fn take_bool(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<bool>, ApiError> {
    match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(invalid_type(name, "a boolean")),
    }
}

/// Takes a text; absent and `null` are `None`.
pub(crate) fn take_text(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<String>, ApiError> {
    match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(value)) => Ok(Some(value)),
        Some(_) => Err(invalid_type(name, "a string")),
    }
}

/// Takes an object; absent and `null` are `None`.
pub(crate) fn take_object(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<Map<String, Value>>, ApiError> {
    match fields.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(value)) => Ok(Some(value)),
        Some(_) => Err(invalid_type(name, "an object")),
    }
}

/// A 400 that says what a field must be.
pub(crate) fn invalid_type(param: &str, expected: &str) -> ApiError {
    ApiError::invalid("invalid_type", param, format!("{param} must be {expected}"))
}

fn check_value(name: &str, value: &Value, check: Check) -> Result<(), ApiError> {
    let legal = match check {
        Check::Bool => value.is_boolean(),
        Check::Int(min, max) => value
            .as_i64()
            .is_some_and(|number| (min..=max).contains(&number)),
        Check::Number(min, max) => value
            .as_f64()
            .is_some_and(|number| (min..=max).contains(&number)),
        Check::Text => value.is_string(),
        Check::Texts(most) => value.is_string() || is_list(value, most) && all_texts(value),
        Check::List(most) => is_list(value, most),
        Check::Object(most) => value.as_object().is_some_and(|object| object.len() <= most),
        Check::TextOrObject => value.is_string() || value.is_object(),
        Check::OneOf(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
    };
    if legal {
        return Ok(());
    }
    let expected = match check {
        Check::Bool => "a boolean".to_owned(),
        Check::Int(min, max) => format!("a whole number from {min} to {max}"),
        Check::Number(min, max) => format!("a number from {min} to {max}"),
        Check::Text => "a string".to_owned(),
        Check::Texts(most) => format!("a string or at most {most} strings"),
        Check::List(most) => format!("a list of at most {most}"),
        Check::Object(most) => format!("an object of at most {most} keys"),
        Check::TextOrObject => "a string or an object".to_owned(),
        Check::OneOf(texts) => format!("one of {}", texts.join(", ")),
    };
    Err(ApiError::invalid(
        "invalid_value",
        name,
        format!("{name} must be {expected}"),
    ))
}

fn is_list(value: &Value, most: usize) -> bool {
    value.as_array().is_some_and(|list| list.len() <= most)
}

fn all_texts(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| list.iter().all(Value::is_string))
}
