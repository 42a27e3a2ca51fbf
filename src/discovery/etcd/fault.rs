//! What can go wrong between us and etcd, told apart by what an operator has to do.

use std::error::Error;
use std::time::Duration;

use etcd_client::Error as EtcdError;

use crate::config::named_file::NamedFileError;
use crate::id::WorkerId;

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
        chain(self)
    }

    /// What etcd's client says went wrong at `endpoint`.
    pub(crate) fn of(endpoint: &str, error: &EtcdError) -> Self {
        let endpoint = endpoint.to_owned();
        if let EtcdError::GRpcStatus(status) = error {
            // What has a source is of the transport, and not of etcd.
            if status.source().is_none() {
                return Self::said(endpoint, status.message().to_owned());
            }
        }
        let cause = chain(error);
        let found = causes(error);
        let is_tls = found.iter().any(|cause| cause.is::<rustls::Error>());
        // HTTP/2 passes on the text alone of what the other side says after the handshake.
        let is_alert = cause.contains("received fatal alert");
        match is_alert || is_tls {
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

/// An error's texts and those of its sources, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if texts.iter().all(|known| !known.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
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
        next = match (wrapped, cause.downcast_ref::<EtcdError>()) {
            (Some(inner), _) => Some(inner as &(dyn Error + 'static)),
            // The client's own error does not say what it wraps.
            (None, Some(EtcdError::TransportError(inner))) => Some(inner),
            (None, Some(EtcdError::GRpcStatus(inner))) => Some(inner),
            (None, Some(EtcdError::IoError(inner))) => Some(inner),
            _ => cause.source(),
        };
    }
    found
}
