//! Listeners that systemd holds, and lends to one process of a service after the other: who connects
//! in between waits in the kernel's queue.

use std::io;
use std::net::TcpListener;
#[cfg(feature = "systemd")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a socket of systemd's cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the sockets that systemd hands over cannot be told")]
    Unknown { source: io::Error },
    #[error("systemd's socket {name:?} is not one that listens for TCP")]
    Kind { name: String, source: io::Error },
    #[error(
        "systemd hands over more sockets than the two that are served; {name:?} is one too many"
    )]
    TooMany { name: String },
}

/// The sockets that were handed over to this process, by their names, in the order of their units. A
/// second call gets none: each has one owner.
///
/// # Errors
/// When one is of another kind.
#[cfg(feature = "systemd")]
pub fn take() -> Result<Vec<(String, TcpListener)>, SocketError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let unknown = |error: systemd::Error| SocketError::Unknown {
        source: error.into(),
    };
    // The environment stays as it is, for other threads may read it; its LISTEN_PID is ours alone.
    let sockets = systemd::daemon::listen_fds_with_names().map_err(unknown)?;
    let listener = |(socket, name): (_, &std::ffi::CStr)| {
        let name = name.to_string_lossy().into_owned();
        match systemd::daemon::tcp_listener(socket) {
            Ok(listener) => Ok((name, listener)),
            Err(error) => Err(SocketError::Kind {
                name,
                source: error.into(),
            }),
        }
    };
    sockets.iter().map(listener).collect()
}

/// None: without libsystemd nobody looks.
///
/// # Errors
/// Never.
#[cfg(not(feature = "systemd"))]
pub fn take() -> Result<Vec<(String, TcpListener)>, SocketError> {
    Ok(Vec::new())
}
