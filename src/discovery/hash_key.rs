//! The key that a cluster seals the names of its blocks with, as it is kept in a file.

use crate::block::HashKey;
use crate::config::cluster::ClusterConfig;
use crate::http::keys::{KeyFileError, first_key};

/// Shortest key: as many letters as nobody tries all of.
const KEY_BYTES_MIN: usize = 22;

/// Why a cluster's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HashKeyError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error(
        "the key in {path} (cluster.hash_key_file) has {bytes} bytes and could be guessed; \
         {KEY_BYTES_MIN} or more are needed, as `openssl rand -hex 32` writes them"
    )]
    Short { path: String, bytes: usize },
}

/// Reads the key; `None` where none is configured.
///
/// # Errors
/// When the file cannot be read, anybody else can read it, or its key could be guessed.
pub fn hash_key(config: &ClusterConfig) -> Result<Option<HashKey>, HashKeyError> {
    let Some(path) = &config.hash_key_file else {
        return Ok(None);
    };
    let key = first_key(path)?;
    match key.len() < KEY_BYTES_MIN {
        true => Err(HashKeyError::Short {
            path: path.display().to_string(),
            bytes: key.len(),
        }),
        false => Ok(Some(HashKey::new(&key))),
    }
}
