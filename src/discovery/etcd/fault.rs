//! What can go wrong between us and etcd, told apart by what an operator has to do.

use std::error::Error;
use std::time::Duration;

use etcd_client::Error as EtcdError;

use crate::config::named_file::NamedFileError;
use crate::id::WorkerId;
use crate::telemetry::causes::told;

/// Why a session with etcd ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    File(#[from] NamedFileError),
    #[error("{what} {path} has none in PEM form, or a broken one")]
    Pem { what: &'static str, path: String },
    #[error("etcd at {endpoint} cannot be reached: {cause}")]
    Unreachable { endpoint: String, cause: String },
    #[error("etcd at {endpoint} is silent for {waited:?}")]
    Silent { endpoint: String, waited: Duration },
    #[error("certificates between us and etcd at {endpoint} are not accepted: {cause}")]
    Certificate { endpoint: String, cause: String },
    #[error("etcd at {endpoint} does not take our user or password: {cause}")]
    Credentials { endpoint: String, cause: String },
    #[error("etcd at {endpoint} does not let our user do this: {cause}")]
    Forbidden { endpoint: String, cause: String },
    #[error("etcd at {endpoint} failed: {cause}")]
    Failed { endpoint: String, cause: String },
    #[error("the watch at {endpoint} ended: {cause}")]
    WatchEnded { endpoint: String, cause: String },
    #[error("etcd at {endpoint} went back from revision {before} to {now}: it lost data")]
    WentBack {
        endpoint: String,
        before: i64,
        now: i64,
    },
    #[error("the lease is gone from etcd at {endpoint}")]
    LeaseLost { endpoint: String },
    #[error("the key of our worker was {} at {endpoint}", if *is_deleted { "deleted" } else { "changed" })]
    KeyChanged { endpoint: String, is_deleted: bool },
    #[error(
        "worker id {worker} is taken by the agent at {holder}; give one of the two another --worker"
    )]
    Taken { worker: WorkerId, holder: String },
}

/// A fault without its values: the same kind is logged once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    File,
    Unreachable,
    Certificate,
    Credentials,
    Forbidden,
    Broken,
    Taken,
}

impl FaultKind {
    /// Whether waiting does not mend it.
    pub(crate) fn is_operators(self) -> bool {
        !matches!(self, Self::Unreachable | Self::Broken)
    }
}

impl Fault {
    pub(crate) fn kind(&self) -> FaultKind {
        match self {
            Self::File(_) | Self::Pem { .. } => FaultKind::File,
            Self::Unreachable { .. } | Self::Silent { .. } => FaultKind::Unreachable,
            Self::Certificate { .. } => FaultKind::Certificate,
            Self::Credentials { .. } => FaultKind::Credentials,
            Self::Forbidden { .. } => FaultKind::Forbidden,
            Self::Failed { .. }
            | Self::WatchEnded { .. }
            | Self::WentBack { .. }
            | Self::LeaseLost { .. }
            | Self::KeyChanged { .. } => FaultKind::Broken,
            Self::Taken { .. } => FaultKind::Taken,
        }
    }

    /// The fault with all its sources, for a person.
    pub(crate) fn cause(&self) -> String {
        told(self)
    }

    /// What etcd's client says went wrong at `endpoint`.
    pub(crate) fn of(endpoint: &str, error: &EtcdError) -> Self {
        let endpoint = endpoint.to_owned();
        let (said, source): (_, Option<&(dyn Error + 'static)>) = match error {
            EtcdError::GRpcStatus(status) => (Some(status.message()), status.source()),
            EtcdError::TransportError(error) => (None, Some(error)),
            EtcdError::IoError(error) => (None, Some(error)),
            other => (None, Some(other)),
        };
        let Some(source) = source else {
            // What has no source is not of the transport, but of etcd.
            return Self::said(endpoint, said.unwrap_or_default().to_owned());
        };
        let found = causes(source);
        let is_tls = found.iter().any(|cause| cause.is::<rustls::Error>());
        let mut texts = texts(&found);
        // The transport's own word says nothing beside what went wrong in it.
        texts.retain(|text| text != "transport error");
        if texts.is_empty() {
            texts.extend(said.map(str::to_owned));
        }
        let cause = texts.join(": ");
        // HTTP/2 passes on the text alone of what the other side says after the handshake.
        match is_tls || cause.contains("received fatal alert") {
            true => Self::Certificate { endpoint, cause },
            false => Self::Unreachable { endpoint, cause },
        }
    }

    /// What etcd itself said. Its texts are part of its API: clients tell its faults apart by them.
    pub(crate) fn said(endpoint: String, cause: String) -> Self {
        const CREDENTIALS: [&str; 4] = [
            "authentication failed",
            "authentication is not enabled",
            "user name is empty",
            "invalid auth token",
        ];
        if CREDENTIALS.iter().any(|text| cause.contains(text)) {
            return Self::Credentials { endpoint, cause };
        }
        match cause.contains("permission denied") {
            true => Self::Forbidden { endpoint, cause },
            false => Self::Failed { endpoint, cause },
        }
    }
}

/// What errors say, without what another one says already.
fn texts(errors: &[&(dyn Error + 'static)]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for text in errors.iter().map(ToString::to_string) {
        if texts.iter().all(|known| !known.contains(&text)) {
            texts.push(text);
        }
    }
    texts
}

/// An error and its sources. What an I/O error wraps is among them, which `source` leaves out.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    // Deeper than any chain that was seen; it ends loops.
    const DEPTH_MAX: usize = 16;
    let mut found = Vec::new();
    let mut next = Some(error);
    while let (Some(cause), true) = (next, found.len() < DEPTH_MAX) {
        found.push(cause);
        let wrapped = cause.downcast_ref::<std::io::Error>();
        let wrapped = wrapped.and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    found
}
