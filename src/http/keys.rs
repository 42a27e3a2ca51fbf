//! Bearer keys: who may use a listener that other hosts reach. Kept as hashes.

use std::path::Path;
use std::sync::Arc;

use ::http::HeaderMap;
use ::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use sha2::{Digest, Sha256};

use crate::config::named_file::{NamedFileError, read_secret};
use crate::http::reply::Reply;
use crate::http::{Answer, Call};
use crate::openai::error::{ApiError, ErrorKind};

/// Largest key file: some thousand keys.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What stands before a key's SHA-256 in a file that has the hash in place of the key: high chances
/// need no slow hash, and `sha256sum` is everywhere.
const HASH_PREFIX: &str = "sha256:";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(transparent)]
    File(NamedFileError),
    #[error("line {line} of key file {path} has no key, or one that no header can carry")]
    Line { path: String, line: usize },
    #[error(
        "line {line} of key file {path} has sha256: without a name before it or 64 hex digits behind"
    )]
    Hash { path: String, line: usize },
    #[error("key file {path} has the key of {name:?} twice")]
    Twice { path: String, name: String },
    #[error("a key of file {path} has no name, which here is its tenant's; write name:key")]
    Nameless { path: String },
    #[error("key file {path} has no key")]
    Empty { path: String },
    #[error("the first key of file {path} is a hash, which cannot be shown to anybody")]
    OnlyHash { path: String },
}

/// The keys that a listener takes.
pub struct Keys {
    // The SHA-256 of each key, as a type that is compared in constant time.
    keys: Vec<(String, blake3::Hash)>,
}

/// One line of a file.
struct Key {
    name: String,
    secret: Secret,
}

enum Secret {
    Key(String),
    Hash([u8; 32]),
}

impl Keys {
    /// Reads a file of `name:key` or `key` lines; `sha256:` and 64 hex digits may stand in place of a
    /// key after its name. Empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// When it cannot be read, anybody else can read it, or it has no key.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let hashed = |key: Key| match key.secret {
            Secret::Key(text) => (key.name, hash(text.as_bytes())),
            Secret::Hash(hash) => (key.name, hash.into()),
        };
        let keys: Vec<_> = lines(path)?.into_iter().map(hashed).collect();
        // Only the last one of them would be known.
        let twice = keys.iter().enumerate().find(|(at, (_, hash))| {
            let mut before = keys[..*at].iter();
            before.any(|(_, other)| other == hash)
        });
        match twice {
            Some((_, (name, _))) => Err(KeyFileError::Twice {
                path: path.display().to_string(),
                name: name.clone(),
            }),
            None => Ok(Self { keys }),
        }
    }

    /// The same of a file whose keys all have names.
    ///
    /// # Errors
    /// As [`Keys::read`], and where one has none.
    pub fn read_named(path: &Path) -> Result<Self, KeyFileError> {
        let keys = Self::read(path)?;
        match keys.keys.iter().any(|(name, _)| name.is_empty()) {
            true => Err(KeyFileError::Nameless {
                path: path.display().to_string(),
            }),
            false => Ok(keys),
        }
    }

    /// Counts the keys.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// The name of the key that a request shows, "" for one without a name; `None` where it shows
    /// none of ours. Takes as long for any key: hashes are compared whole, and all of them.
    pub fn admits(&self, headers: &HeaderMap) -> Option<&str> {
        let shown = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, key) = shown.split_at_checked("bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let shown = hash(key.trim_ascii());
        let mut found = None;
        for (name, hash) in &self.keys {
            if *hash == shown {
                found = Some(name.as_str());
            }
        }
        found
    }
}

fn hash(key: &[u8]) -> blake3::Hash {
    let hash: [u8; 32] = Sha256::digest(key).into();
    hash.into()
}

/// The first key of such a file, for a client to send.
///
/// # Errors
/// As [`Keys::read`].
pub fn first_key(path: &Path) -> Result<String, KeyFileError> {
    let shown = || path.display().to_string();
    match lines(path)?.into_iter().next().map(|key| key.secret) {
        Some(Secret::Key(key)) => Ok(key),
        Some(Secret::Hash(_)) => Err(KeyFileError::OnlyHash { path: shown() }),
        None => Err(KeyFileError::Empty { path: shown() }),
    }
}

/// A handler that answers 401 to who shows none of the keys. Without keys it lets everybody in.
pub fn guarded<H>(
    keys: Option<Arc<Keys>>,
    handler: H,
) -> impl Fn(Call) -> Answer + Send + Sync + 'static
where
    H: Fn(Call) -> Answer + Send + Sync + 'static,
{
    move |call| match &keys {
        Some(keys) if keys.admits(&call.headers).is_none() => {
            Box::pin(std::future::ready(unauthorised()))
        }
        _ => handler(call),
    }
}

/// What who shows none of the keys is told.
pub fn no_key() -> ApiError {
    let message = "none of the keys for this service was shown, as in: Authorization: Bearer KEY";
    let kind = ErrorKind::InvalidRequestError;
    ApiError::new(401, kind, "invalid_api_key", message)
}

/// The same as an answer.
pub fn unauthorised() -> Reply {
    Reply::from(no_key()).with_header(WWW_AUTHENTICATE, "Bearer")
}

/// The names and keys of a file, at least one.
fn lines(path: &Path) -> Result<Vec<Key>, KeyFileError> {
    let shown = || path.display().to_string();
    let text = read_secret("key file", path, FILE_BYTES_MAX).map_err(KeyFileError::File)?;
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
        let secret = match key.strip_prefix(HASH_PREFIX) {
            None => Secret::Key(key.to_owned()),
            Some(hex) => match blake3::Hash::from_hex(hex) {
                Ok(hash) => Secret::Hash(hash.into()),
                Err(_) => {
                    let path = shown();
                    return Err(KeyFileError::Hash { path, line });
                }
            },
        };
        // Else a hash without a name would be a key itself, called so.
        if format!("{name}:") == HASH_PREFIX {
            let path = shown();
            return Err(KeyFileError::Hash { path, line });
        }
        let name = name.to_owned();
        keys.push(Key { name, secret });
    }
    match keys.is_empty() {
        true => Err(KeyFileError::Empty { path: shown() }),
        false => Ok(keys),
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.keys.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use ::http::HeaderValue;

    use super::*;

    fn write(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn read(text: &str, mode: u32) -> Result<Keys, String> {
        let file = write(text, mode);
        let path = file.path().display().to_string();
        Keys::read(file.path()).map_err(|error| error.to_string().replace(&path, "FILE"))
    }

    #[test]
    fn a_request_passes_with_one_of_the_keys() {
        // printf %s hidden | sha256sum
        let hash = "e564b4081d7a9ea4b00dada53bdae70c99b87b6fce869f0c3dd4d2bfa1e53e1c";
        let text = format!("# ours\n\nfrontend:s3cret\n other:b:c \nplain\nx:sha256:{hash}\n");
        let keys = read(&text, 0o640).unwrap();
        for (shown, name) in [
            (Some("Bearer s3cret"), Some("frontend")),
            (Some("bearer b:c"), Some("other")),
            (Some("BEARER plain"), Some("")),
            (Some("Bearer  plain "), Some("")),
            (Some("Bearer hidden"), Some("x")),
            (Some(&format!("Bearer sha256:{hash}")), None),
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
        let file = write("# ours\nfrontend:s3cret\nplain\n", 0o600);
        assert_eq!(first_key(file.path()).unwrap(), "s3cret");
        let file = write(&format!("x:sha256:{hash}\n"), 0o600);
        let error = first_key(file.path()).unwrap_err().to_string();
        assert!(error.contains("is a hash"), "{error}");
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
            (
                "a:sha256:12\n",
                0o600,
                "line 1 of key file FILE has sha256:",
            ),
            ("sha256:12\n", 0o600, "key file FILE has sha256:"),
            (
                "a:k\nb:k\n",
                0o600,
                "key file FILE has the key of \"b\" twice",
            ),
            (&long, 0o600, "over 65536 bytes"),
        ] {
            let error = read(text, mode).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(Keys::read(Path::new("/nonexistent")).is_err());
        let file = write("a:b\nc\n", 0o600);
        let error = Keys::read_named(file.path()).unwrap_err().to_string();
        assert!(error.contains("has no name"), "{error}");
    }
}
