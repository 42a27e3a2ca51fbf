//! Finds a model's folder: a path, or an id in the Hugging Face cache.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::model::ModelError;

/// The folder of `text`; nothing is downloaded.
pub(super) fn resolve(
    text: &str,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, ModelError> {
    let folder = Path::new(text);
    if folder.is_dir() {
        return Ok(folder.to_owned());
    }
    let hub = hub_folder(environment);
    let found = hub.as_deref().zip(cache_name(text));
    if let Some(snapshot) = found.and_then(|(hub, name)| snapshot(&hub.join(name))) {
        return Ok(snapshot);
    }
    Err(ModelError::NotFound {
        model: text.to_owned(),
        looked_in: hub.map_or(
            "nothing: HF_HUB_CACHE, HF_HOME and HOME are unset".into(),
            |hub| hub.display().to_string(),
        ),
    })
}

/// The cache's folder by the rules of `huggingface_hub`.
fn hub_folder(environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| {
        let value = environment(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// `models--org--name`; `None` for a text that is no id, so that no id leads out of the cache.
fn cache_name(id: &str) -> Option<String> {
    let is_legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let legal =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_legal);
    let parts: Vec<&str> = id.split('/').collect();
    (parts.len() <= 2 && parts.iter().all(|part| legal(part)))
        .then(|| format!("models--{}", parts.join("--")))
}

/// The snapshot that `refs/main` names, if its configuration is there.
fn snapshot(repository: &Path) -> Option<PathBuf> {
    let revision = fs::read_to_string(repository.join("refs/main")).ok()?;
    let revision = revision.trim();
    let is_hash = !revision.is_empty() && revision.bytes().all(|b| b.is_ascii_alphanumeric());
    let folder = is_hash.then(|| repository.join("snapshots").join(revision))?;
    folder.join("config.json").is_file().then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        |name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        }
    }

    #[test]
    fn the_cache_is_where_the_hub_puts_it() {
        for (pairs, want) in [
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")][..], Some("/c")),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")], Some("/h/hub")),
            (
                &[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/x")],
                Some("/x/huggingface/hub"),
            ),
            (
                &[("HOME", "/home/u")],
                Some("/home/u/.cache/huggingface/hub"),
            ),
            (&[], None),
        ] {
            assert_eq!(hub_folder(look_up(pairs)), want.map(PathBuf::from));
        }
    }

    #[test]
    fn only_ids_lead_into_the_cache() {
        assert_eq!(
            cache_name("Qwen/Qwen3-VL-2B").as_deref(),
            Some("models--Qwen--Qwen3-VL-2B")
        );
        assert_eq!(cache_name("gpt2").as_deref(), Some("models--gpt2"));
        for text in [
            "", "/", "a/b/c", "../etc", "a/..", "a//b", "/abs", "a b", "é",
        ] {
            assert_eq!(cache_name(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_model_is_found_by_folder_or_id() {
        let root = tempfile::tempdir().unwrap();
        let hub = root.path().to_owned();
        let repository = hub.join("models--org--model");
        let snapshot = repository.join("snapshots/abc123");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        let environment =
            |name: &str| (name == "HF_HUB_CACHE").then(|| hub.clone().into_os_string());

        let error = resolve("org/model", environment).unwrap_err().to_string();
        assert!(error.contains("hf download org/model"), "{error}");
        assert!(error.contains(hub.to_str().unwrap()), "{error}");
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(resolve("org/model", environment).unwrap(), snapshot);
        let direct = snapshot.to_str().unwrap();
        assert_eq!(resolve(direct, |_| None).unwrap(), snapshot);
        assert!(resolve("org/other", environment).is_err());
        fs::write(repository.join("refs/main"), "../../..").unwrap();
        assert!(resolve("org/model", environment).is_err());
    }
}
