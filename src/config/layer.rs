//! One source of configuration: a file, one environment variable, or a set of values.

use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use crate::config::problem::{Problem, nearest};
use crate::config::schema::{Key, Kind};

/// Names the configuration file where `--config` does not; not a key.
pub(crate) const FILE_VARIABLE: &str = "KVLENS_CONFIG";
/// Names the revision to a build, whose environment a test may still have.
const REVISION_VARIABLE: &str = "KVLENS_REVISION";
/// Marks the processes of an engine, which may be a `kvlens` too.
const ENGINE_VARIABLE: &str = "KVLENS_ENGINE";
const NO_KEYS: [&str; 3] = [FILE_VARIABLE, REVISION_VARIABLE, ENGINE_VARIABLE];
const PREFIX: &str = "KVLENS_";

/// Values from one place, which error messages name.
#[derive(Debug)]
pub(crate) struct Layer {
    place: String,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.place.clone())
            .interpolater(|_profile: &Profile, path: &[&str]| path.join("."))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

impl Layer {
    pub(crate) fn new(place: impl Into<String>, dict: Dict) -> Self {
        Self {
            place: place.into(),
            dict,
        }
    }

    /// Takes out the keys that the schema lacks, so that one slip does not hide the next.
    pub(crate) fn remove_unknown(&mut self, keys: &[Key]) -> Vec<Problem> {
        let mut unknown = Vec::new();
        prune(&mut self.dict, &mut Vec::new(), keys, &mut unknown);
        let problem = |key: String| Problem::UnknownKey {
            nearest: nearest(&key, keys.iter().map(|known| known.dotted_like(&key))),
            place: self.place.clone(),
            key,
        };
        unknown.into_iter().map(problem).collect()
    }
}

fn prune(dict: &mut Dict, path: &mut Vec<String>, keys: &[Key], unknown: &mut Vec<String>) {
    dict.retain(|name, value| {
        path.push(name.clone());
        let is_key = keys.iter().any(|key| key.is(path));
        let is_table = keys.iter().any(|key| key.is_below(path));
        if !is_key && !is_table {
            unknown.push(path.join("."));
        }
        // A scalar where a table belongs stays, for the reader to say what it expected.
        if let (false, true, Value::Dict(_, inner)) = (is_key, is_table, value) {
            prune(inner, path, keys, unknown);
        }
        path.pop();
        is_key || is_table
    });
}

/// Sets the value at `path`, making tables on the way.
pub(crate) fn put(dict: &mut Dict, path: &[&str], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        dict.insert((*first).to_owned(), value);
        return;
    }
    let table = dict
        .entry((*first).to_owned())
        .or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, inner) = table {
        put(inner, rest, value);
    }
}

/// Reads a TOML file.
pub(crate) fn file(path: &Path) -> Result<Layer, Problem> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|cause| Problem::Unreadable {
        path: shown.clone(),
        cause,
    })?;
    let syntax = |error: &toml::de::Error| {
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        Problem::Syntax {
            path: shown.clone(),
            line: before.matches('\n').count() + 1,
            column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
            text: error.message().replace('\n', ", "),
        }
    };
    let table: toml::Table = toml::from_str(&text).map_err(|error| syntax(&error))?;
    let value = Value::serialize(table).map_err(|error| Problem::Value {
        text: error.to_string(),
    })?;
    let dict = value.into_dict().unwrap_or_default();
    Ok(Layer::new(format!("file {shown}"), dict))
}

/// The process's own `KVLENS_*` variables, sorted, so that messages come in a settled order.
pub(crate) fn process_environment() -> Vec<(String, String)> {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    let mut all: Vec<_> = std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    all.sort();
    all
}

/// Reads one variable; `None` when it is none of ours.
pub(crate) fn variable(name: &str, text: &str, keys: &[Key]) -> Result<Option<Layer>, Problem> {
    if !name.starts_with(PREFIX) || NO_KEYS.contains(&name) {
        return Ok(None);
    }
    let Some(key) = keys
        .iter()
        .find(|key| key.variable().as_deref() == Some(name))
    else {
        return Err(Problem::UnknownVariable {
            name: name.to_owned(),
            nearest: nearest(name, keys.iter().filter_map(Key::variable)),
        });
    };
    let path: Vec<&str> = key.path.iter().map(String::as_str).collect();
    let mut dict = Dict::new();
    put(&mut dict, &path, parse(text, &key.kind));
    Ok(Some(Layer::new(
        format!("environment variable {name}"),
        dict,
    )))
}

/// A variable's text as a value of the key's kind; text that does not fit stays text, so that the
/// reader says what it expected.
fn parse(text: &str, kind: &Kind) -> Value {
    let as_text = || Value::from(text);
    match kind {
        Kind::Boolean => text.parse::<bool>().map_or_else(|_| as_text(), Value::from),
        Kind::Integer => text.parse::<i64>().map_or_else(|_| as_text(), Value::from),
        Kind::Number => text.parse::<f64>().map_or_else(|_| as_text(), Value::from),
        Kind::Text | Kind::Choice(_) => as_text(),
        Kind::List(item) => {
            let items = text.split(',').map(str::trim).filter(|s| !s.is_empty());
            Value::from(items.map(|s| parse(s, item)).collect::<Vec<_>>())
        }
    }
}
