//! Connections to engines that listen on a unix socket.

use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tower_service::Service;

/// What the address of an engine on a unix socket begins with; the socket's path follows.
const SCHEME: &str = "unix:";

/// Opens connections to unix sockets, whose paths stand in hex where a URI has its host: a pool keeps
/// connections apart by the host.
#[derive(Clone, Debug)]
pub(crate) struct UnixConnector {
    pub(crate) connect: Duration,
}

/// The path in an address of the form `unix:/path`; `None` for another form.
pub(crate) fn socket_path(address: &str) -> Option<&Path> {
    address.strip_prefix(SCHEME).map(Path::new)
}

/// The URI of `path` on the engine that listens on `socket`.
pub(crate) fn uri(socket: &Path, path: &str) -> String {
    let bytes = socket.as_os_str().as_bytes().iter();
    let host: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    format!("unix://{host}{path}")
}

fn socket_of(uri: &Uri) -> Option<PathBuf> {
    let host = uri.host()?.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let path: Option<Vec<u8>> = host.chunks(2).map(byte).collect();
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&path?)))
}

impl Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let deadline = self.connect;
        Box::pin(async move {
            let path = socket_of(&uri).ok_or(io::ErrorKind::InvalidInput)?;
            // A listener whose queue is full lets a connection wait without end.
            let stream = tokio::time::timeout(deadline, UnixStream::connect(path)).await;
            Ok(TokioIo::new(stream.map_err(io::Error::from)??))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_survives_being_a_host() {
        for path in ["/run/kvlens-0/http.sock", "/a b/ü%?#", "relative"] {
            let uri: Uri = uri(Path::new(path), "/health").parse().unwrap();
            assert_eq!(uri.path(), "/health");
            assert_eq!(socket_of(&uri).unwrap(), Path::new(path));
        }
        for (address, path) in [("unix:/a", Some("/a")), ("http://127.0.0.1:1", None)] {
            assert_eq!(socket_path(address), path.map(Path::new));
        }
    }
}
