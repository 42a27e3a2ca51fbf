//! What can be wrong with a configuration, each problem naming its key and source.

use std::fmt;

/// One thing wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read configuration file {path}: {cause}")]
    Unreadable { path: String, cause: std::io::Error },
    #[error("file {path}, line {line}, column {column}: {text}")]
    Syntax {
        path: String,
        line: usize,
        column: usize,
        text: String,
    },
    #[error("unknown key {key} in {place}{}", nearest_hint(nearest.as_deref()))]
    UnknownKey {
        key: String,
        place: String,
        /// The known key most like it, where one is near.
        nearest: Option<String>,
    },
    #[error("unknown environment variable {name}{}", nearest_hint(nearest.as_deref()))]
    UnknownVariable {
        name: String,
        nearest: Option<String>,
    },
    #[error("{text}")]
    Value { text: String },
    #[error("{key} is {value} in {place}, but must be {bounds}")]
    OutOfRange {
        key: String,
        value: f64,
        place: String,
        bounds: String,
    },
    #[error("{text}{}", in_brackets(places))]
    Contradiction {
        text: &'static str,
        /// Where the keys were set; empty for defaults.
        places: String,
    },
    #[error("{text} (in {place})")]
    OnHost { text: String, place: String },
}

/// All that is wrong with a configuration; never empty.
#[derive(Debug)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

fn in_brackets(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(" ({text})"),
    }
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

/// The candidate most like `name`, when few enough letters differ for a slip of the hand.
pub(crate) fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let limit = 2.max(name.len() / 4);
    candidates
        .map(|candidate| (edit_distance(name, &candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Counts the bytes to insert, drop or change to make `b` of `a`.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances() {
        for (a, b, distance) in [
            ("", "", 0),
            ("port", "prot", 2),
            ("port", "ports", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn a_far_name_is_not_suggested() {
        let known = || ["frontend.port", "log.level"].map(String::from).into_iter();
        assert_eq!(
            nearest("frontend.prot", known()).as_deref(),
            Some("frontend.port")
        );
        assert_eq!(nearest("colour", known()), None);
    }
}
