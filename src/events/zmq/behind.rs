//! A time of not being caught up with an engine, and why.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};
use zeromq::ZmqError;

/// After so long behind its engine an operator hears of a source. An engine binds its sockets
/// before it answers, so that a healthy one is caught up with in less.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a connection to a source ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("no answer from {endpoint} within {waited:?}")]
    Deadline { endpoint: String, waited: Duration },
    #[error("connection to {endpoint} broke")]
    Broken { endpoint: String },
    #[error("socket of {endpoint} failed")]
    Socket { endpoint: String, source: ZmqError },
    #[error("message of {frames} frames is none of vLLM's")]
    Frames { frames: usize },
    #[error("nobody takes the messages any more")]
    Unwanted,
}

impl SourceError {
    /// What went wrong, for a person: with what the socket itself said.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Socket { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// A time of not being caught up.
#[derive(Debug)]
pub(crate) struct Behind {
    pub(crate) since: Instant,
    /// Whether an operator has heard of it.
    pub(crate) is_told: bool,
    /// Why, as it was given out last; empty before anything was tried.
    cause: String,
}

impl Behind {
    pub(crate) fn now() -> Self {
        Self {
            since: Instant::now(),
            is_told: false,
            cause: String::new(),
        }
    }

    /// Notes why it is not over. An operator hears of it once, when it lasts; the cause is returned
    /// where it is another than before.
    pub(crate) fn note(&mut self, endpoint: &str, error: &SourceError) -> Option<String> {
        let (waited, cause) = (self.since.elapsed(), error.cause());
        if waited < PATIENCE || self.is_told {
            debug!(endpoint, cause, "kv event source lost, trying again");
        } else {
            self.is_told = true;
            warn!(
                endpoint,
                error = cause,
                ?waited,
                "kv events can't be followed"
            );
        }
        let is_new = cause != self.cause;
        self.cause.clone_from(&cause);
        is_new.then_some(cause)
    }
}
