//! A model's files on this host: whether they are there, and what is known of them.

use std::path::Path;

use serde_json::Value;

use crate::commands::doctor::finding::{Check, Finding};
use crate::model::ModelError;
use crate::model::archive::ModelDigest;
use crate::model::named::Named;
use crate::telemetry::causes::told;
use crate::vision::Family;

/// A model as it is compared with workers'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OurModel {
    pub(super) name: String,
    pub(super) digest: ModelDigest,
}

/// What of a model counts here.
#[derive(Debug)]
struct Facts {
    digest: ModelDigest,
    folder: String,
    family: Option<&'static str>,
    /// Whether its configuration says that it takes images.
    takes_images: bool,
    has_template: bool,
}

/// Reads the model's files, all of them, as roles do.
pub(super) fn check(text: &str) -> (Vec<Finding>, Option<OurModel>) {
    let named = match Named::read_or_demo(text) {
        Ok(named) => named,
        Err(error) => return (vec![unread(text, &error)], None),
    };
    let facts = Facts::of(&named);
    let ours = OurModel {
        name: named.name,
        digest: facts.digest,
    };
    (judge(text, &facts), Some(ours))
}

/// What is said where no model is named.
pub(super) fn unnamed() -> Vec<Finding> {
    let seen = "none is named (--model); frontends without one take their workers' files";
    vec![Finding::skip(Check::Model, "model", seen)]
}

impl Facts {
    fn of(named: &Named) -> Self {
        let files = named.archive.files().unwrap_or_default();
        let config = files.get("config.json").copied().unwrap_or_default();
        let config: Value = serde_json::from_str(config).unwrap_or_default();
        let folder = named.folder.as_deref().map(Path::display);
        Self {
            digest: named.model.digest(),
            folder: folder.map_or("this program".to_owned(), |path| path.to_string()),
            family: named.model.family().map(Family::name),
            takes_images: config["vision_config"].is_object(),
            has_template: named.model.content_format().is_some(),
        }
    }
}

fn judge(text: &str, facts: &Facts) -> Vec<Finding> {
    let takes = match (facts.family, facts.takes_images) {
        (Some(family), _) => format!("images of family {family}"),
        (None, true) => "images of an unknown family".to_owned(),
        (None, false) => "text alone".to_owned(),
    };
    let digest = facts.digest.short();
    let seen = format!("digest {digest}, in {}; takes {takes}", facts.folder);
    let mut findings = vec![Finding::ok(Check::Model, text, seen)];
    if facts.family.is_none() && facts.takes_images {
        findings.push(Finding::warn(
            Check::Model,
            text,
            "its family is not known: images do not count in routing, only the text before the first",
            "a newer release of kvlens may know it; requests are served all the same",
        ));
    }
    if !facts.has_template {
        findings.push(Finding::warn(
            Check::Model,
            text,
            "it has no chat template: chats cannot be rendered",
            format!("add chat_template.jinja to {}", facts.folder),
        ));
    }
    findings
}

fn unread(text: &str, error: &ModelError) -> Finding {
    let next = match error {
        ModelError::NotFound { .. } => format!("`hf download {text}`, or --model with a folder"),
        ModelError::Read { path, .. } | ModelError::Missing { path } => {
            format!("`ls -l {path}` as the role's own user; download the model again if it is gone")
        }
        _ => format!("`hf download {text}` again: a file of it is damaged or of an unknown form"),
    };
    Finding::fail(Check::Model, text, told(error), next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn the_demo_model_is_well() {
        let (findings, ours) = check("demo");
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].status, Status::Ok);
        let ours = ours.unwrap();
        assert!(findings[0].seen.contains(&ours.digest.short()));
        assert!(
            findings[0].seen.contains("images of family qwen"),
            "{findings:?}"
        );
    }

    #[test]
    fn what_a_model_lacks_is_a_warning() {
        let digest = ModelDigest::from_hex(&"ab".repeat(32)).unwrap();
        for (family, takes_images, has_template, parts) in [
            (Some("qwen"), true, true, &["images of family qwen"] as &[_]),
            (None, false, true, &["takes text alone"]),
            (
                None,
                true,
                true,
                &["an unknown family", "do not count in routing"],
            ),
            (None, false, false, &["text alone", "no chat template"]),
        ] {
            let facts = Facts {
                digest,
                folder: "f".to_owned(),
                family,
                takes_images,
                has_template,
            };
            let found = judge("m", &facts);
            assert_eq!(found.len(), parts.len(), "{found:?}");
            for (found, part) in found.iter().zip(parts) {
                assert!(found.seen.contains(part), "{found:?}");
            }
            assert!(found[1..].iter().all(|found| found.status == Status::Warn));
        }
    }

    #[test]
    fn a_model_that_is_not_there_fails_with_how_to_get_it() {
        let (findings, ours) = check("nobody/has-this-model");
        assert!(ours.is_none());
        assert_eq!(findings[0].status, Status::Fail);
        let next = findings[0].next.as_deref().unwrap();
        assert!(next.contains("hf download nobody/has-this-model"), "{next}");
    }
}
