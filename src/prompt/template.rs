//! Renders messages with a chat template, as `transformers` does with Jinja2.

use std::fmt;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use crate::prompt::PromptError;
use crate::prompt::content::{self, ContentFormat};
use crate::prompt::tojson::tojson;

/// Steps a template may take: some thousand for each of the 4,096 messages a request may have,
/// and still an end, within a second, to one that loops without need.
const STEPS_MAX: u64 = 16_000_000;

/// Marks where the final message ends; `transformers` looks for the same text.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

const NAME: &str = "chat_template";

/// What one rendering sees.
#[derive(Clone, Copy, Debug)]
pub struct TemplateInput<'a> {
    /// Messages in the form that `normalise` gives them.
    pub messages: &'a [Json],
    pub tools: Option<&'a Json>,
    /// Extra variables; they cannot replace the ones named here.
    pub variables: Option<&'a Json>,
    /// `bos_token`, `eos_token` and their like.
    pub special_tokens: Option<&'a Json>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    /// What `strftime_now` sees.
    pub now: &'a Zoned,
}

/// A chat template, compiled.
#[derive(Clone)]
pub struct Template {
    environment: Environment<'static>,
    content_format: ContentFormat,
    knows_developer: bool,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("content_format", &self.content_format)
            .field("knows_developer", &self.knows_developer)
            .finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles `source` with the settings of `transformers`.
    ///
    /// # Errors
    /// When it is not a template.
    pub fn new(source: &str) -> Result<Self, PromptError> {
        let source = without_generation_tags(source);
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| uncompiled(&error))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(STEPS_MAX));
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        let content_format = content::detect(&source)?;
        // The engine decides by these two spellings as well.
        let knows_developer = source.contains("'developer'") || source.contains("\"developer\"");
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| uncompiled(&error))?;
        Ok(Self {
            environment,
            content_format,
            knows_developer,
        })
    }

    /// The form of message content that the template expects.
    pub fn content_format(&self) -> ContentFormat {
        self.content_format
    }

    /// True when the template treats the role `developer` itself.
    pub fn knows_developer(&self) -> bool {
        self.knows_developer
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// When the template refuses the messages, fails on them or takes too many steps, and when
    /// there is no final message to continue.
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<String, PromptError> {
        if !input.continue_final_message {
            let messages = input.messages.iter().map(value).collect();
            return self.render_messages(messages, input);
        }
        if input.add_generation_prompt {
            return Err(unfinished("add_generation_prompt is set as well"));
        }
        let (last, former) = input
            .messages
            .split_last()
            .ok_or(unfinished("there is no message"))?;
        let (last, text) = tagged(last).ok_or(unfinished("the final message has no text"))?;
        let messages = former.iter().map(value).chain([value(&last)]).collect();
        let rendered = self.render_messages(messages, input)?;
        cut_at_tag(rendered, &text)
    }

    fn render_messages(
        &self,
        messages: Value,
        input: &TemplateInput<'_>,
    ) -> Result<String, PromptError> {
        let extra = [input.special_tokens, input.variables];
        let extra = extra.into_iter().flatten().filter_map(Json::as_object);
        let extra = extra
            .flatten()
            .map(|(name, json)| (name.as_str(), value(json)));
        let now = input.now.clone();
        let strftime = Value::from_function(move |format: &str| strftime_now(&now, format));
        let named = [
            ("messages", messages),
            ("tools", input.tools.map_or(Value::from(()), value)),
            ("documents", Value::from(())),
            (
                "add_generation_prompt",
                Value::from(input.add_generation_prompt),
            ),
            ("strftime_now", strftime),
        ];
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| failure(&error))?;
        template
            .render(Value::from_pairs(extra.chain(named)))
            .map_err(|error| failure(&error))
    }
}

/// The text of `raise_exception`, kept apart from the engine's own errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
}

fn strftime_now(now: &Zoned, format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

fn uncompiled(error: &Error) -> PromptError {
    PromptError::Compile {
        reason: error.to_string(),
    }
}

fn failure(error: &Error) -> PromptError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(at) = cause {
        if let Some(Raised(reason)) = at.downcast_ref() {
            let reason = reason.clone();
            return PromptError::Refused { reason };
        }
        cause = at.source();
    }
    PromptError::Render {
        reason: error.to_string(),
    }
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(*yes),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, json)| (key.as_str(), value(json))))
        }
    }
}

fn unfinished(reason: &'static str) -> PromptError {
    PromptError::Continue { reason }
}

/// `message` with the tag after its last text, and that text.
fn tagged(message: &Json) -> Option<(Json, String)> {
    let mut message = message.clone();
    let content = message.get_mut("content")?;
    let slot = match content {
        Json::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => Some(other),
    };
    let slot = slot?;
    let text = slot.as_str()?.to_owned();
    *slot = Json::String(format!("{text}{CONTINUE_TAG}"));
    Some((message, text))
}

/// Cuts where the final message ends; a template that trimmed the tag's space trimmed the message
/// too, so the text before is trimmed as well.
fn cut_at_tag(mut rendered: String, text: &str) -> Result<String, PromptError> {
    let at = rendered.rfind(CONTINUE_TAG.trim_end());
    match at {
        Some(at) if rendered.contains(text.trim()) => {
            let spaced = rendered[at..].starts_with(CONTINUE_TAG);
            rendered.truncate(at);
            if !spaced {
                rendered.truncate(rendered.trim_end().len());
            }
            Ok(rendered)
        }
        _ => Err(unfinished("the template changes the final message")),
    }
}

/// `{% generation %}` marks what an assistant wrote, for training; here it is only a scope, and a
/// `with` block is the same scope.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let length = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(length);
        out.push_str(before);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}");
        match word.trim_matches(|c: char| c.is_whitespace() || "+-".contains(c)) {
            "generation" => out.push_str(&tag.replace("generation", "with")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endwith")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
