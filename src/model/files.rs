//! The files of a model's folder, or of the demo model inside the binary.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::Value;

use crate::model::ModelError;
use crate::model::archive::{Archive, ModelDigest};

/// Largest file read: some times the largest tokenizer of a public model (33 MB).
const BYTES_MAX: u64 = 256 << 20;

/// Where a model's files are.
pub(super) enum Source<'a> {
    Folder(&'a Path),
    Demo,
    /// The files that another host sent.
    Received {
        files: BTreeMap<&'a str, &'a str>,
        digest: ModelDigest,
    },
}

/// Reads files, and keeps each that there is: together they are what prompts depend on.
struct Reader<'a> {
    source: &'a Source<'a>,
    read: BTreeMap<&'static str, String>,
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
    /// All that was read.
    pub(super) archive: Archive,
}

impl Files {
    pub(super) fn read(source: &Source<'_>) -> Result<Self, ModelError> {
        let mut reader = Reader {
            source,
            read: BTreeMap::new(),
        };
        let tokenizer_config = reader.json("tokenizer_config.json")?;
        let (template, tool_template) = templates(&mut reader, &tokenizer_config)?;
        Ok(Self {
            config: required(&mut reader, "config.json")?,
            generation_config: reader.json("generation_config.json")?,
            preprocessor: preprocessor(&mut reader)?,
            tokenizer: required(&mut reader, "tokenizer.json")?,
            tokenizer_config,
            template,
            tool_template,
            archive: Archive::pack(&reader.read),
        })
    }
}

fn required(reader: &mut Reader<'_>, name: &'static str) -> Result<Value, ModelError> {
    match reader.json(name)? {
        Value::Null => Err(ModelError::Missing {
            path: reader.source.path(name),
        }),
        value => Ok(value),
    }
}

/// `preprocessor_config.json`, or its place in the newer `processor_config.json`.
fn preprocessor(reader: &mut Reader<'_>) -> Result<Value, ModelError> {
    let own = reader.json("preprocessor_config.json")?;
    if own.is_null() {
        let mut processor = reader.json("processor_config.json")?;
        return Ok(processor["image_processor"].take());
    }
    Ok(own)
}

/// The default template and the one for tools: from `chat_template.jinja`, else from
/// `chat_template.json`, else from the tokenizer's configuration.
fn templates(
    reader: &mut Reader<'_>,
    tokenizer_config: &Value,
) -> Result<(Option<Named>, Option<Named>), ModelError> {
    const JINJA: &str = "chat_template.jinja";
    const JSON: &str = "chat_template.json";
    let source = reader.source;
    if let Some(text) = reader.text(JINJA)? {
        return Ok((Some((source.path(JINJA), text.to_owned())), None));
    }
    let own = reader.json(JSON)?;
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

impl Reader<'_> {
    /// A file parsed; null when there is none.
    fn json(&mut self, name: &'static str) -> Result<Value, ModelError> {
        let path = self.source.path(name);
        let text = self.text(name)?;
        text.map_or(Ok(Value::Null), serde_json::from_str)
            .map_err(|source| ModelError::Json { path, source })
    }

    fn text(&mut self, name: &'static str) -> Result<Option<&str>, ModelError> {
        let text = self.source.text(name)?;
        Ok(text.map(|text| self.read.entry(name).insert_entry(text).into_mut().as_str()))
    }
}

impl Source<'_> {
    /// Names a file for an error.
    pub(super) fn path(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) if name.is_empty() => folder.display().to_string(),
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Demo => format!("demo/{name}"),
            Self::Received { digest, .. } => format!("files {}/{name}", digest.short()),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, ModelError> {
        match self {
            Self::Folder(folder) => self.read(&folder.join(name)),
            Self::Demo => Ok(demo(name).map(str::to_owned)),
            Self::Received { files, .. } => Ok(files.get(name).map(|text| (*text).to_owned())),
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

#[cfg(test)]
mod tests {
    use crate::model::Model;

    #[test]
    fn the_files_that_count_are_those_that_were_read() {
        let (demo, archive) = Model::demo_packed().unwrap();
        assert_eq!(archive.files().unwrap().len(), 6);
        let again = Model::unpack(&archive).unwrap();
        assert_eq!(
            (again.digest(), demo.digest()),
            (archive.digest(), archive.digest())
        );
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        for (name, text) in archive.files().unwrap() {
            write(name, text);
        }
        let digest = || Model::load(folder.path()).unwrap().digest();
        assert_eq!(digest(), demo.digest());
        // Beside preprocessor_config.json and the template's own file nobody looks at these.
        write("processor_config.json", "{}");
        write("chat_template.json", "{}");
        write("weights.safetensors", "x");
        assert_eq!(digest(), demo.digest());
        write("chat_template.jinja", "hi");
        assert_ne!(digest(), demo.digest());
    }

    #[test]
    fn a_folder_without_its_files_says_which() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let load = || Model::load(folder.path()).unwrap_err().to_string();
        assert!(load().ends_with("config.json is missing"));
        write("config.json", "{}");
        assert!(load().ends_with("tokenizer.json is missing"));
        write("tokenizer.json", "{");
        assert!(load().ends_with("tokenizer.json is not JSON"));
        write("tokenizer.json", "{}");
        assert!(load().contains("tokenizer.json is not a tokenizer we can use: "));
        write("tokenizer.json", include_str!("demo/tokenizer.json"));
        let model = Model::load(folder.path()).unwrap();
        assert!(model.family().is_none() && model.media_tokens().is_empty());
        let error = model.normalise(&[], false).unwrap_err().to_string();
        assert!(error.ends_with("has no chat template"), "{error}");
        write("chat_template.json", r#"{"chat_template": "{% if %}"}"#);
        assert!(load().contains("chat_template.json: chat template does not compile: "));
        write("config.json", r#"{"model_type": "qwen3_vl"}"#);
        assert!(load().contains("config.json has no usable \"image_token_id\""));
    }
}
