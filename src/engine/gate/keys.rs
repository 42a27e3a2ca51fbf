//! The bearer keys of a gate: read once, kept as hashes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ::http::HeaderMap;
use ::http::header::AUTHORIZATION;

/// Largest key file: some thousand keys.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What users beyond the owner and its group may not do with the file.
const WORLD: u32 = 0o007;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read key file {path}")]
    Unreadable { path: String, source: io::Error },
    #[error(
        "key file {path} has mode {mode:o}: every user here could use its keys; run chmod o= {path}"
    )]
    World { path: String, mode: u32 },
    #[error("key file {path} is over {max} bytes")]
    TooLarge { path: String, max: u64 },
    #[error("line {line} of key file {path} has no key, or one that no header can carry")]
    Line { path: String, line: usize },
    #[error("key file {path} has no key")]
    Empty { path: String },
}

/// The keys that a gate takes.
pub struct Keys {
    keys: Vec<Key>,
}

struct Key {
    name: String,
    hash: blake3::Hash,
}

impl Keys {
    /// Reads a file of `name:key` or `key` lines; empty lines and those that begin with `#` say
    /// nothing.
    ///
    /// # Errors
    /// When it cannot be read, anybody else can read it, or it has no key.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let shown = || path.display().to_string();
        let unreadable = |source| KeyFileError::Unreadable {
            path: shown(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & WORLD != 0 {
            return Err(KeyFileError::World {
                path: shown(),
                mode,
            });
        }
        let mut text = String::new();
        let limited = &mut file.take(FILE_BYTES_MAX + 1);
        limited.read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(KeyFileError::TooLarge {
                path: shown(),
                max: FILE_BYTES_MAX,
            });
        }
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, key) = text.split_once(':').unwrap_or(("", text));
            if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let path = shown();
                return Err(KeyFileError::Line { path, line });
            }
            keys.push(Key {
                name: name.to_owned(),
                hash: blake3::hash(key.as_bytes()),
            });
        }
        match keys.is_empty() {
            true => Err(KeyFileError::Empty { path: shown() }),
            false => Ok(Self { keys }),
        }
    }

    /// The name of the key that a request shows, "" for one without a name; `None` where it shows
    /// none of ours. Takes as long for any key: hashes are compared whole, and all of them.
    pub fn admits(&self, headers: &HeaderMap) -> Option<&str> {
        let shown = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, key) = shown.split_at_checked("bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let hash = blake3::hash(key.trim_ascii());
        let mut found = None;
        for key in &self.keys {
            if key.hash == hash {
                found = Some(key.name.as_str());
            }
        }
        found
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.keys.iter().map(|key| &key.name);
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use ::http::HeaderValue;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Keys, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        let path = file.path().display().to_string();
        Keys::read(file.path()).map_err(|error| error.to_string().replace(&path, "FILE"))
    }

    #[test]
    fn a_request_passes_with_one_of_the_keys() {
        let keys = read("# ours\n\nfrontend:s3cret\n other:b:c \nplain\n", 0o640).unwrap();
        for (shown, name) in [
            (Some("Bearer s3cret"), Some("frontend")),
            (Some("bearer b:c"), Some("other")),
            (Some("BEARER plain"), Some("")),
            (Some("Bearer  plain "), Some("")),
            (Some("Bearer s3cre"), None),
            (Some("Bearer "), None),
            (Some("Basic s3cret"), None),
            (Some("s3cret"), None),
            (None, None),
        ] {
            let value = shown.map(|text| HeaderValue::from_str(text).unwrap());
            let headers = value.map(|value| (AUTHORIZATION, value));
            let headers = HeaderMap::from_iter(headers);
            assert_eq!(keys.admits(&headers), name, "{shown:?}");
        }
        assert!(!format!("{keys:?}").contains("s3cret"));
    }

    #[test]
    fn a_file_that_gives_no_safety_is_refused() {
        let long = format!("{}\n", "x".repeat(64 << 10));
        for (text, mode, part) in [
            ("k\n", 0o644, "key file FILE has mode 644"),
            ("k\n", 0o602, "chmod o= FILE"),
            ("# none\n\n", 0o600, "key file FILE has no key"),
            ("k\nname:\n", 0o600, "line 2 of key file FILE"),
            ("a b\n", 0o600, "line 1 of key file FILE"),
            (&long, 0o600, "over 65536 bytes"),
        ] {
            let error = read(text, mode).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(Keys::read(Path::new("/nonexistent")).is_err());
    }
}
