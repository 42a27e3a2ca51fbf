//! The reference of every key, written as a TOML file of the defaults.
//!
//! A table whose name is chosen, as `[workers.NAME]`, is all comment: there is none by default.

use serde_json::Value;

use crate::config::schema::{self, Key, Kind, Table};

/// A TOML file that names every key with its documentation, kind, bounds, default and environment
/// variable. Defaults are commented out without a space (`#port = 8000`), prose with one.
pub fn reference() -> String {
    let head = "# Every key of kvlens, with its default. Environment variables and flags win over\n\
                # this file. Unknown keys are refused.\n";
    schema::tables()
        .iter()
        .fold(head.to_owned(), |text, table| text + &table_text(table))
}

fn table_text(table: &Table) -> String {
    let name = table.name.replace('*', "NAME");
    let head = format!("[{name}]\n");
    let head = match table.is_in_map() {
        true => prose(&head),
        false => head,
    };
    let title = format!("\n{}{head}", prose(&table.documentation));
    table
        .keys
        .iter()
        .fold(title, |text, key| text + "\n" + &key_text(key))
}

fn key_text(key: &Key) -> String {
    let name = key.path.last().map_or("", String::as_str);
    let line = match toml_value(&key.default) {
        Some(value) if key.is_in_map() => format!("# {name} = {value}\n"),
        Some(value) => format!("#{name} = {value}\n"),
        None => format!("# {name} is unset by default\n"),
    };
    let variable = key
        .variable()
        .unwrap_or_else(|| "no variable sets it".to_owned());
    let facts = format!("{}; {variable}", kind_text(key));
    format!("{}{}{line}", prose(&key.documentation), prose(&facts))
}

fn prose(text: &str) -> String {
    text.lines().map(|line| format!("# {line}\n")).collect()
}

fn kind_text(key: &Key) -> String {
    match &key.kind {
        Kind::Boolean => "true or false".to_owned(),
        Kind::Integer => format!("whole number, {}", key.bounds()),
        Kind::Number => format!("number, {}", key.bounds()),
        Kind::Text => "text".to_owned(),
        Kind::Choice(names) => format!("one of {}", names.join(", ")),
        Kind::List(_) => "list; in the environment its items are separated by commas".to_owned(),
    }
}

fn toml_value(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Array(items) => {
            let items: Vec<_> = items.iter().filter_map(toml_value).collect();
            Some(format!("[{}]", items.join(", ")))
        }
        // JSON's text, number and boolean forms are TOML's too.
        other => Some(other.to_string()),
    }
}
