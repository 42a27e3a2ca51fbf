//! Where connections come in: how a listener is bound, alone or beside another process, and closed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;
use tracing::{debug, warn};

/// Connections that wait to be accepted, as the standard library has it.
pub(crate) const BACKLOG: u32 = 1024;

/// Most connections that are still accepted when a listener closes. Two full queues: what comes
/// faster than we accept it could be accepted without end.
const LAST_MAX: usize = 2 * BACKLOG as usize;

/// Binds a listener.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Binds an address that another process of the same user may bind too, and may have bound. Once both
/// listen, the kernel spreads new connections over them until one closes its listener.
///
/// # Errors
/// When somebody has the address who does not share it, or it is not ours.
pub fn bind_shared(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = socket(address)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Takes connections on a bound socket.
///
/// # Errors
/// When somebody else listens there by now who does not share it.
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Takes over a listener that stays open elsewhere: whoever waits to be accepted when this one closes
/// is accepted by the next process that has it.
///
/// # Errors
/// When the system refuses it.
pub fn hold(listener: std::net::TcpListener) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Listener::Held)
}

/// Whether binding failed because another program listens there: it keeps the port, so that another
/// try fails too.
pub fn is_anothers(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Whether somebody listens at an address. What is not ours to bind is not taken.
pub fn is_taken(address: SocketAddr) -> bool {
    let bound = socket(address).and_then(|socket| socket.bind(address));
    bound.is_err_and(|error| is_anothers(&error))
}

/// A socket that may take an address whose last connections linger, but none that is listened at.
fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// Binds a listener on a unix socket, which nothing may stand at yet.
///
/// # Errors
/// When something stands at the path, or it cannot be made.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(path)
}

/// Where requests come in.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// One that stays open elsewhere.
    Held(TcpListener),
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

pub(crate) type Stream = Either<TcpStream, UnixStream>;

impl Listener {
    /// Where connections come in; `None` for a unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) | Self::Held(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) | Self::Held(listener) => Ok(tcp(listener.accept().await?.0)),
            Self::Unix(listener) => Ok(Either::Right(listener.accept().await?.0)),
        }
    }

    /// Closes the listener, and returns those who had connected and waited to be accepted: the kernel
    /// would reset them. Nothing else is done between the last of them and the close, for who connects
    /// in that moment is reset after all (unless `net.ipv4.tcp_migrate_req` is 1). Of one that stays open
    /// elsewhere they are left to wait.
    pub(crate) fn close(self) -> Vec<Stream> {
        let closed = match self {
            Self::Held(_) => return Vec::new(),
            Self::Tcp(listener) => listener.into_std().map(|listener| {
                let waiting = waiting(|| listener.accept());
                drop(listener);
                let open = |(stream, _): (std::net::TcpStream, _)| {
                    stream.set_nonblocking(true)?;
                    Ok(tcp(TcpStream::from_std(stream)?))
                };
                waiting.into_iter().map(open).collect()
            }),
            Self::Unix(listener) => listener.into_std().map(|listener| {
                let waiting = waiting(|| listener.accept());
                drop(listener);
                let open = |(stream, _): (std::os::unix::net::UnixStream, _)| {
                    stream.set_nonblocking(true)?;
                    Ok(Either::Right(UnixStream::from_std(stream)?))
                };
                waiting.into_iter().map(open).collect()
            }),
        };
        closed.flatten().unwrap_or_else(|error: io::Error| {
            warn!(%error, "those who waited to be accepted are lost");
            Vec::new()
        })
    }
}

/// Accepts all who wait.
fn waiting<T>(accept: impl Fn() -> io::Result<T>) -> Vec<T> {
    let waiting = std::iter::from_fn(|| accept().ok());
    waiting.take(LAST_MAX).collect()
}

fn tcp(stream: TcpStream) -> Stream {
    // A small chunk waits for nothing: Nagle's algorithm would hold it 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    Either::Left(stream)
}
