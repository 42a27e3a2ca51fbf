//! The words of a command line: placeholders filled in, the program found.

use std::path::PathBuf;

use crate::engine::EngineError;

/// Puts values in place of a word's `{names}`. Other braces stay, as in JSON arguments.
pub(crate) fn fill(word: &str, values: &[(&str, &str)]) -> Result<String, EngineError> {
    let put = |text: String, (name, value): &(&str, &str)| text.replace(name, value);
    let filled = values.iter().fold(word.to_owned(), put);
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    // Only the word as written is looked at: a value may have braces of its own.
    let unknown = word.split('{').skip(1).find_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let placeholder = format!("{{{name}}}");
        let known = values.iter().any(|(value, _)| *value == placeholder);
        (is_name(name) && !known).then_some(placeholder)
    });
    match unknown {
        None => Ok(filled),
        Some(placeholder) => Err(EngineError::Placeholder {
            placeholder,
            known: values
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(" "),
        }),
    }
}

/// The path of a program, looked up in `PATH` unless it has a slash.
pub(crate) fn find(program: &str, advice: &'static str) -> Result<PathBuf, EngineError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    find_in(program, &folders).ok_or_else(|| EngineError::ProgramMissing {
        program: program.to_owned(),
        advice,
    })
}

fn find_in(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(runs);
    }
    folders.iter().map(|folder| folder.join(program)).find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_misspelt_ones_refused() {
        let values = [("{port}", "80"), ("{model}", "m{worker}")];
        for (word, filled) in [
            ("--port={port}", Some("--port=80")),
            ("{port}{port}", Some("8080")),
            ("{model}", Some("m{worker}")),
            (r#"{"a": {"b": 1}}"#, Some(r#"{"a": {"b": 1}}"#)),
            ("{prot}", None),
            ("plain", Some("plain")),
        ] {
            assert_eq!(fill(word, &values).ok().as_deref(), filled, "{word}");
        }
    }

    #[test]
    fn programs_are_found_only_where_they_can_run() {
        let bin = [PathBuf::from("/nonexistent"), PathBuf::from("/bin")];
        for (program, found) in [
            ("sh", Some("/bin/sh")),
            ("/bin/sh", Some("/bin/sh")),
            ("/etc/passwd", None),
            ("no-such-program", None),
        ] {
            assert_eq!(
                find_in(program, &bin),
                found.map(PathBuf::from),
                "{program}"
            );
        }
    }
}
