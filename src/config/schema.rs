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

    /// The environment variable that sets the key, as `KVLENS_FRONTEND_PORT`.
    pub(crate) fn variable(&self) -> String {
        format!("KVLENS_{}", self.path.join("_").to_uppercase())
    }

    /// The key's value in `values`, where it is a number.
    pub(crate) fn number(&self, values: &Value) -> Option<f64> {
        let found = self.path.iter().try_fold(values, |at, name| at.get(name))?;
        found.as_f64()
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
        let names: BTreeSet<_> = keys.iter().map(Key::variable).collect();
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
