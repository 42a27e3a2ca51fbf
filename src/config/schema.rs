//! The keys of the configuration, drawn from its types: names, documentation, defaults, bounds.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::config::Config;

/// What a key's value is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Boolean,
    Integer,
    Number,
    Text,
    Choice(Vec<String>),
    List(Box<Kind>),
}

/// In a key's path, any name of a table's own choosing: `workers.*.gpus`.
const ANY: &str = "*";

/// One key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) path: Vec<String>,
    pub(crate) documentation: String,
    pub(crate) kind: Kind,
    /// `Null` where the key is unset by default.
    pub(crate) default: Value,
    minimum: Option<f64>,
    maximum: Option<f64>,
}

impl Key {
    /// The key's name, as `frontend.port`.
    pub(crate) fn dotted(&self) -> String {
        self.path.join(".")
    }

    /// The key's name with the names that `other` has chosen, as `workers.gpu-0.gpus`.
    pub(crate) fn dotted_like(&self, other: &str) -> String {
        let mut chosen = other.split('.');
        let words = self.path.iter().map(|word| {
            let other = chosen.next();
            other.filter(|_| word == ANY).unwrap_or(word)
        });
        words.collect::<Vec<_>>().join(".")
    }

    /// Whether it is a key of tables whose names are chosen: then no variable sets it.
    pub(crate) fn is_in_map(&self) -> bool {
        self.path.iter().any(|word| word == ANY)
    }

    /// Whether `path` is this key.
    pub(crate) fn is(&self, path: &[String]) -> bool {
        self.path.len() == path.len() && self.is_below(path)
    }

    /// Whether `path` is a table that this key is in, or the key itself.
    pub(crate) fn is_below(&self, path: &[String]) -> bool {
        let fits = |(word, name): (&String, &String)| word == ANY || word == name;
        self.path.len() >= path.len() && self.path.iter().zip(path).all(fits)
    }

    /// The environment variable that sets the key, as `KVLENS_FRONTEND_PORT`.
    pub(crate) fn variable(&self) -> Option<String> {
        let name = || format!("KVLENS_{}", self.path.join("_").to_uppercase());
        (!self.is_in_map()).then(name)
    }

    /// The key's values in `values`, by their full names.
    pub(crate) fn found_in<'a>(&self, values: &'a Value) -> Vec<(String, &'a Value)> {
        let mut found = vec![(String::new(), values)];
        for word in &self.path {
            let step = |(name, at): (String, &'a Value)| {
                let inner = at.as_object().into_iter().flatten();
                let inner = inner.filter(|(key, _)| word == ANY || *key == word);
                let dot = if name.is_empty() { "" } else { "." };
                let inner = inner.map(|(key, value)| (format!("{name}{dot}{key}"), value));
                inner.collect::<Vec<_>>()
            };
            found = found.into_iter().flat_map(step).collect();
        }
        found
    }

    /// Whether `number` is finite and within the key's bounds.
    pub(crate) fn admits(&self, number: f64) -> bool {
        number.is_finite()
            && self.minimum.is_none_or(|least| number >= least)
            && self.maximum.is_none_or(|most| number <= most)
    }

    /// The bounds in words.
    pub(crate) fn bounds(&self) -> String {
        match (self.minimum, self.maximum) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => "any number".to_owned(),
        }
    }
}

/// A table of keys and its documentation.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) documentation: String,
    pub(crate) keys: Vec<Key>,
}

impl Table {
    /// Whether its name is chosen, and there may be several.
    pub(crate) fn is_in_map(&self) -> bool {
        self.keys.iter().any(Key::is_in_map)
    }
}

/// All keys.
pub(crate) fn keys() -> Vec<Key> {
    tables().into_iter().flat_map(|table| table.keys).collect()
}

/// All tables that have keys, in the order of the types' fields.
pub(crate) fn tables() -> Vec<Table> {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let root = settings
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut tables = Vec::new();
    collect(&root, &defaults, &[], &mut tables);
    tables.retain(|table| !table.keys.is_empty());
    tables
}

fn collect(schema: &Value, defaults: &Value, path: &[String], tables: &mut Vec<Table>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let at = tables.len();
    tables.push(Table {
        name: path.join("."),
        documentation: documentation(schema),
        keys: Vec::new(),
    });
    for (name, property) in properties {
        let path = [path, std::slice::from_ref(name)].concat();
        if property.get("properties").is_some() {
            collect(property, &defaults[name], &path, tables);
        } else if property["additionalProperties"].get("properties").is_some() {
            let path = [&path[..], &[ANY.to_owned()]].concat();
            let each = &property["additionalProperties"];
            collect(each, &each_default(each), &path, tables);
        } else {
            tables[at].keys.push(Key {
                path,
                documentation: documentation(property),
                kind: kind(property),
                default: defaults[name].clone(),
                minimum: property["minimum"].as_f64(),
                maximum: property["maximum"].as_f64(),
            });
        }
    }
}

/// What each table of a map has where nothing is said.
fn each_default(schema: &Value) -> Value {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let default = |(name, property): (&String, &Value)| (name.clone(), property["default"].clone());
    properties.map(default).collect::<Value>()
}

fn documentation(schema: &Value) -> String {
    schema["description"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn kind(schema: &Value) -> Kind {
    let choices = choices(schema);
    if !choices.is_empty() {
        return Kind::Choice(choices);
    }
    // An optional value's type is a list: its own, then "null".
    let name = schema["type"].as_str().or(schema["type"][0].as_str());
    match name {
        Some("boolean") => Kind::Boolean,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("array") => Kind::List(Box::new(kind(&schema["items"]))),
        _ => Kind::Text,
    }
}

/// The values of an enum: `enum` where its variants are bare, `oneOf` where they are documented.
fn choices(schema: &Value) -> Vec<String> {
    let bare = schema["enum"].as_array().into_iter().flatten();
    let documented = schema["oneOf"].as_array().into_iter().flatten();
    let nested = documented.flat_map(|one| one["enum"].as_array().into_iter().flatten());
    let constants = schema["oneOf"].as_array().into_iter().flatten();
    bare.chain(nested)
        .chain(constants.map(|one| &one["const"]))
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_keys_share_an_environment_name() {
        let keys = keys();
        let keys: Vec<_> = keys.iter().filter(|key| !key.is_in_map()).collect();
        let names: BTreeSet<_> = keys.iter().filter_map(|key| key.variable()).collect();
        assert_eq!(names.len(), keys.len());
        assert!(!names.contains(crate::config::layer::FILE_VARIABLE));
        assert!(names.contains("KVLENS_FRONTEND_LIMITS_BODY_BYTES_MAX"));
    }

    #[test]
    fn every_key_is_documented() {
        for table in tables() {
            assert!(
                !table.documentation.is_empty(),
                "[{}] lacks words",
                table.name
            );
            for key in table.keys {
                assert!(
                    !key.documentation.is_empty(),
                    "{} lacks words",
                    key.dotted()
                );
            }
        }
    }

    #[test]
    fn kinds_follow_the_types() {
        let keys = keys();
        let find = |name: &str| keys.iter().find(|key| key.dotted() == name).unwrap();
        for (name, kind) in [
            ("frontend.expose_routing", Kind::Boolean),
            ("frontend.admin_port", Kind::Integer),
            ("frontend.host", Kind::Text),
            ("router.temperature", Kind::Number),
            ("media.ports", Kind::List(Box::new(Kind::Integer))),
            ("media.allow", Kind::List(Box::new(Kind::Text))),
            ("workers.*.ranks", Kind::Integer),
        ] {
            assert_eq!(find(name).kind, kind, "{name}");
        }
        let Kind::Choice(mut modes) = find("router.mode").kind.clone() else {
            panic!("it is a choice");
        };
        modes.sort();
        assert_eq!(
            modes,
            [
                "device-aware-weighted",
                "direct",
                "kv",
                "least-loaded",
                "power-of-two",
                "random",
                "round-robin",
            ]
        );
    }
}
