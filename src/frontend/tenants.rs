//! Who asks: bearer keys of the public listener, whose names are the tenants.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ::http::HeaderMap;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::named_file::is_credential;
use crate::http::keys::{KeyFileError, Keys, no_key};
use crate::openai::error::ApiError;

/// The tenants of a frontend. Without a key file everybody may ask, and all are one tenant.
#[derive(Debug, Default)]
pub struct Tenants {
    ring: Option<Ring>,
}

#[derive(Debug)]
struct Ring {
    path: PathBuf,
    keys: RwLock<Arc<Keys>>,
}

impl Tenants {
    /// Those whose keys, or hashes of keys, are in a file.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn read(path: Option<&Path>) -> Result<Self, KeyFileError> {
        let ring = |path: &Path| {
            Ok(Ring {
                path: path.to_owned(),
                keys: RwLock::new(Arc::new(Keys::read_named(path)?)),
            })
        };
        Ok(Self {
            ring: path.map(ring).transpose()?,
        })
    }

    /// Whether requests must show a key.
    pub fn are_asked(&self) -> bool {
        self.ring.is_some()
    }

    /// The tenant whose key a request shows; "" where none is asked for.
    ///
    /// # Errors
    /// 401 where it shows none of ours.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<Arc<str>, ApiError> {
        let Some(ring) = &self.ring else {
            return Ok(Arc::default());
        };
        let keys = ring.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.admits(headers).map(Arc::from).ok_or_else(no_key)
    }

    /// Reads the file again whenever the process gets SIGHUP, until `stop`. One that cannot be used
    /// changes nothing.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let Some(ring) = &self.ring else {
            return stop.cancelled().await;
        };
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                error!(%error, "SIGHUP cannot be listened for, so the key file is read only once");
                return stop.cancelled().await;
            }
        };
        while let Some(Some(())) = stop.run_until_cancelled(hangups.recv()).await {
            ring.read_again();
        }
    }
}

impl Ring {
    fn read_again(&self) {
        let path = self.path.display();
        match Keys::read_named(&self.path) {
            Ok(keys) => {
                if is_credential(&self.path) {
                    warn!(%path, "systemd gives a unit its credentials as it starts, a restart reads them again");
                    return;
                }
                info!(%path, keys = keys.count(), "key file read again");
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(error) => {
                let cause = error.source().map(ToString::to_string);
                error!(%path, %error, cause, "key file cannot be used, the keys stay as they were");
            }
        }
    }
}
