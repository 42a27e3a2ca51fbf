//! What an error and its causes say, for logs and for persons.

use std::error::Error;

/// Deeper than any chain that was seen; it ends loops.
const DEPTH_MAX: usize = 16;

/// An error and its causes in one text. Some repeat what they wrap: what is said already is not said
/// again.
pub fn told(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    for _ in 0..DEPTH_MAX {
        let Some(error) = cause else { break };
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&'static str]) -> Option<Box<Link>> {
        let (text, rest) = texts.split_first()?;
        let source = chain(rest);
        Some(Box::new(Link { text, source }))
    }

    #[test]
    fn each_cause_is_told_once() {
        for (texts, wanted) in [
            (&["a fault"] as &[_], "a fault"),
            (
                &["no file", "no folder", "denied"],
                "no file: no folder: denied",
            ),
            (
                &["no file: denied", "denied", "by root"],
                "no file: denied: by root",
            ),
            (&["x", "x", "x"], "x"),
        ] {
            assert_eq!(told(&*chain(texts).unwrap()), wanted);
        }
    }
}
