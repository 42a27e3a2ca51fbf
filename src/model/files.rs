//! The files of a model's folder, or of the demo model inside the binary.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use crate::model::ModelError;

/// Largest file read: some times the largest tokenizer of a public model (33 MB).
const BYTES_MAX: u64 = 256 << 20;

/// Where a model's files are.
pub(super) enum Source<'a> {
    Folder(&'a Path),
    Demo,
}

/// A template and the path of the file it is from.
pub(super) type Named = (String, String);

/// What a model's folder says, parsed; what may be absent and is, is null.
pub(super) struct Files {
    pub(super) config: Value,
    pub(super) generation_config: Value,
    pub(super) preprocessor: Value,
    pub(super) tokenizer: Value,
    pub(super) tokenizer_config: Value,
    pub(super) template: Option<Named>,
    pub(super) tool_template: Option<Named>,
}

impl Files {
    pub(super) fn read(source: &Source<'_>) -> Result<Self, ModelError> {
        let tokenizer_config = source.json("tokenizer_config.json")?;
        let (template, tool_template) = templates(source, &tokenizer_config)?;
        Ok(Self {
            config: required(source, "config.json")?,
            generation_config: source.json("generation_config.json")?,
            preprocessor: preprocessor(source)?,
            tokenizer: required(source, "tokenizer.json")?,
            tokenizer_config,
            template,
            tool_template,
        })
    }
}

fn required(source: &Source<'_>, name: &str) -> Result<Value, ModelError> {
    match source.json(name)? {
        Value::Null => Err(ModelError::Missing {
            path: source.path(name),
        }),
        value => Ok(value),
    }
}

/// `preprocessor_config.json`, or its place in the newer `processor_config.json`.
fn preprocessor(source: &Source<'_>) -> Result<Value, ModelError> {
    let own = source.json("preprocessor_config.json")?;
    if own.is_null() {
        let mut processor = source.json("processor_config.json")?;
        return Ok(processor["image_processor"].take());
    }
    Ok(own)
}

/// The default template and the one for tools: from `chat_template.jinja`, else from
/// `chat_template.json`, else from the tokenizer's configuration.
fn templates(
    source: &Source<'_>,
    tokenizer_config: &Value,
) -> Result<(Option<Named>, Option<Named>), ModelError> {
    const JINJA: &str = "chat_template.jinja";
    const JSON: &str = "chat_template.json";
    if let Some(text) = source.text(JINJA)? {
        return Ok((Some((source.path(JINJA), text)), None));
    }
    let own = source.json(JSON)?;
    let (name, value) = match own["chat_template"].is_null() {
        true => ("tokenizer_config.json", &tokenizer_config["chat_template"]),
        false => (JSON, &own["chat_template"]),
    };
    let named = |text: &str| (source.path(name), text.to_owned());
    let listed = |wanted: &str| {
        let entry = value.as_array()?.iter().find(|at| at["name"] == wanted)?;
        entry["template"].as_str().map(named)
    };
    let default = value.as_str().map(named).or_else(|| listed("default"));
    Ok((default, listed("tool_use")))
}

impl Source<'_> {
    /// Names a file for an error.
    pub(super) fn path(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) if name.is_empty() => folder.display().to_string(),
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Demo => format!("demo/{name}"),
        }
    }

    /// A file parsed; null when there is none.
    fn json(&self, name: &str) -> Result<Value, ModelError> {
        let text = self.text(name)?;
        text.map_or(Ok(Value::Null), |text| serde_json::from_str(&text))
            .map_err(|source| ModelError::Json {
                path: self.path(name),
                source,
            })
    }

    fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        match self {
            Self::Folder(folder) => self.read(&folder.join(name)),
            Self::Demo => Ok(demo(name).map(str::to_owned)),
        }
    }

    fn read(&self, path: &Path) -> Result<Option<String>, ModelError> {
        let mut text = String::new();
        let read =
            File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
        let path = || path.display().to_string();
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ModelError::Read {
                path: path(),
                source,
            }),
            Ok(bytes) if bytes as u64 > BYTES_MAX => Err(ModelError::TooLarge {
                path: path(),
                bytes_max: BYTES_MAX,
            }),
            Ok(_) => Ok(Some(text)),
        }
    }
}

fn demo(name: &str) -> Option<&'static str> {
    Some(match name {
        "chat_template.jinja" => include_str!("demo/chat_template.jinja"),
        "config.json" => include_str!("demo/config.json"),
        "generation_config.json" => include_str!("demo/generation_config.json"),
        "preprocessor_config.json" => include_str!("demo/preprocessor_config.json"),
        "tokenizer.json" => include_str!("demo/tokenizer.json"),
        "tokenizer_config.json" => include_str!("demo/tokenizer_config.json"),
        _ => return None,
    })
}
