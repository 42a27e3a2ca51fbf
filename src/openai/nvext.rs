//! `nvext`: NVIDIA Dynamo's extension of the API, as far as it is read. It never reaches an engine.

use serde_json::{Map, Value};

use crate::openai::error::ApiError;
use crate::openai::fields::{self, UnknownFields};

/// Most entries of `extra_fields`: more than the reference knows.
const EXTRA_FIELDS_MAX: usize = 64;

/// What a request says and asks in its `nvext`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nvext {
    pub hints: AgentHints,
    /// The answer is to say which worker gave it.
    pub wants_worker: bool,
    /// The answer is to say what took how long.
    pub wants_timing: bool,
}

/// What a client says of its request's importance and length. A number out of range counts as the
/// nearest one within: the reference has signed ones, and who asks for less than nothing gets
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentHints {
    pub priority: u32,
    pub strict_priority: u32,
    /// Tokens that the answer is expected to have; at least one.
    pub output_tokens: Option<u32>,
}

impl Nvext {
    /// Whether the answer is to carry an `nvext` of its own.
    pub fn wants_answer(self) -> bool {
        self.wants_worker || self.wants_timing
    }

    /// Takes `nvext` out of a request's fields; the number of keys in it that nobody reads comes
    /// with it.
    ///
    /// # Errors
    /// When a value is of a wrong type; and for a key that nobody reads where such are refused.
    pub(crate) fn take(
        fields: &mut Map<String, Value>,
        unknown: UnknownFields,
    ) -> Result<(Self, u32), ApiError> {
        let Some(mut nvext) = fields::take_object(fields, "nvext")? else {
            return Ok((Self::default(), 0));
        };
        let hints = match nvext.shift_remove("agent_hints") {
            None | Some(Value::Null) => AgentHints::default(),
            Some(Value::Object(hints)) => AgentHints::read(&hints)?,
            Some(_) => return Err(fields::invalid_type("nvext.agent_hints", "an object")),
        };
        let extra = take_texts(&mut nvext, "extra_fields")?;
        let wants = |name: &str| extra.iter().any(|field| field == name);
        nvext.retain(|_, value| !value.is_null());
        if let (UnknownFields::Refuse, Some(name)) = (unknown, nvext.keys().next()) {
            let param = format!("nvext.{name}");
            let message = format!("unknown field {param}");
            return Err(ApiError::invalid("unknown_field", param, message));
        }
        let read = Self {
            hints,
            wants_worker: wants("worker_id"),
            wants_timing: wants("timing"),
        };
        Ok((read, nvext.len() as u32))
    }
}

impl AgentHints {
    fn read(hints: &Map<String, Value>) -> Result<Self, ApiError> {
        let output_tokens = number(hints, "osl")?;
        Ok(Self {
            priority: number(hints, "priority")?.unwrap_or(0),
            strict_priority: number(hints, "strict_priority")?.unwrap_or(0),
            output_tokens: output_tokens.map(|tokens| tokens.max(1)),
        })
    }
}

fn number(hints: &Map<String, Value>, name: &str) -> Result<Option<u32>, ApiError> {
    let Some(value) = hints.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let clamped = match (value.as_i64(), value.as_u64()) {
        (Some(number), _) => u32::try_from(number.max(0)).unwrap_or(u32::MAX),
        (None, Some(_)) => u32::MAX,
        (None, None) => {
            let param = format!("nvext.agent_hints.{name}");
            return Err(fields::invalid_type(&param, "a whole number"));
        }
    };
    Ok(Some(clamped))
}

fn take_texts(nvext: &mut Map<String, Value>, name: &str) -> Result<Vec<String>, ApiError> {
    let texts = match nvext.shift_remove(name) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) if list.len() <= EXTRA_FIELDS_MAX => {
            let text = |value: Value| value.as_str().map(str::to_owned);
            list.into_iter().map(text).collect()
        }
        Some(_) => None,
    };
    let expected = || format!("a list of at most {EXTRA_FIELDS_MAX} strings");
    texts.ok_or_else(|| fields::invalid_type(&format!("nvext.{name}"), &expected()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(nvext: Value, unknown: UnknownFields) -> Result<(Nvext, u32), ApiError> {
        let mut fields = Map::from_iter([("nvext".to_owned(), nvext)]);
        let read = Nvext::take(&mut fields, unknown);
        assert!(fields.is_empty(), "it stays for the engine: {fields:?}");
        read
    }

    #[test]
    fn hints_are_clamped() {
        for (hints, expected) in [
            (json!({}), (0, 0, None)),
            (json!(null), (0, 0, None)),
            (
                json!({"priority": 3, "strict_priority": 7, "osl": 200}),
                (3, 7, Some(200)),
            ),
            (
                json!({"priority": -3, "strict_priority": null, "osl": 0}),
                (0, 0, Some(1)),
            ),
            (
                json!({"priority": 1u64 << 40, "strict_priority": u64::MAX, "osl": -1}),
                (u32::MAX, u32::MAX, Some(1)),
            ),
        ] {
            let (nvext, unread) = read(json!({"agent_hints": hints}), UnknownFields::Drop).unwrap();
            let AgentHints {
                priority,
                strict_priority,
                output_tokens,
            } = nvext.hints;
            assert_eq!((priority, strict_priority, output_tokens), expected);
            assert_eq!(unread, 0);
        }
    }

    #[test]
    fn what_the_answer_is_to_say_is_told_apart() {
        for (fields, worker, timing) in [
            (json!([]), false, false),
            (json!(["worker_id"]), true, false),
            (json!(["engine_data", "timing", "worker_id"]), true, true),
        ] {
            let (nvext, _) = read(json!({"extra_fields": fields}), UnknownFields::Drop).unwrap();
            assert_eq!((nvext.wants_worker, nvext.wants_timing), (worker, timing));
            assert_eq!(nvext.wants_answer(), worker || timing);
        }
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        for (nvext, param) in [
            (json!("high"), "nvext"),
            (json!({"agent_hints": [1]}), "nvext.agent_hints"),
            (
                json!({"agent_hints": {"priority": "high"}}),
                "nvext.agent_hints.priority",
            ),
            (
                json!({"agent_hints": {"strict_priority": 1.5}}),
                "nvext.agent_hints.strict_priority",
            ),
            (
                json!({"agent_hints": {"osl": true}}),
                "nvext.agent_hints.osl",
            ),
            (json!({"extra_fields": "timing"}), "nvext.extra_fields"),
            (json!({"extra_fields": [1]}), "nvext.extra_fields"),
        ] {
            let error = read(nvext, UnknownFields::Drop).unwrap_err();
            assert_eq!(error.status, 400);
            assert_eq!(error.code, "invalid_type");
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn other_keys_are_treated_as_unknown_fields() {
        let nvext = json!({"annotations": ["x"], "greed_sampling": true, "token_data": null});
        for (unknown, unread) in [
            (UnknownFields::Drop, Some(2)),
            (UnknownFields::Pass, Some(2)),
            (UnknownFields::Refuse, None),
        ] {
            let read = read(nvext.clone(), unknown);
            assert_eq!(read.as_ref().ok().map(|(_, unread)| *unread), unread);
            if let Err(error) = read {
                assert_eq!(error.param.as_deref(), Some("nvext.annotations"));
            }
        }
    }
}
