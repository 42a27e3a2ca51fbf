//! The socket by which a test says what becomes of the GPUs.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::command;
use crate::library::locked;

/// A command with all fields of a GPU takes less.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// A test asks from few threads.
const CONNECTIONS_MAX: usize = 16;

const MSG_NOSIGNAL: c_int = 0x4000;

unsafe extern "C" {
    fn send(socket: RawFd, bytes: *const c_void, length: usize, flags: c_int) -> isize;
}

/// A socket that is listened on, until it is stopped.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    /// The socket that is listened on, to shut it.
    socket: UnixStream,
    connections: Arc<Connections>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Connections {
    all: Mutex<All>,
    fewer: Condvar,
}

#[derive(Debug, Default)]
struct All {
    open: BTreeMap<u64, UnixStream>,
    threads: Vec<JoinHandle<()>>,
    is_stopping: bool,
}

impl Control {
    /// # Errors
    /// A sentence with the path and what is wrong with it.
    pub(crate) fn listen(path: PathBuf) -> Result<Self, String> {
        let listener = bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let own = listener.try_clone().map_err(|error| error.to_string())?;
        let connections = Arc::<Connections>::default();
        let theirs = Arc::clone(&connections);
        let thread = thread::Builder::new()
            .name("fake-nvml".to_owned())
            .spawn(move || accept(&listener, &theirs))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            path,
            socket: OwnedFd::from(own).into(),
            connections,
            thread,
        })
    }

    /// Returns once no thread of it runs any more and its socket is gone.
    pub(crate) fn stop(self) {
        let threads = {
            let mut all = locked(&self.connections.all);
            all.is_stopping = true;
            for connection in all.open.values() {
                // One that its client has closed is shut already.
                let _ = connection.shutdown(Shutdown::Both);
            }
            self.connections.fewer.notify_all();
            std::mem::take(&mut all.threads)
        };
        // Ends the accept that is under way.
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = fs::remove_file(&self.path);
        for thread in threads.into_iter().chain([self.thread]) {
            let _ = thread.join();
        }
    }
}

/// Takes the place of a socket that a process has left behind, not of one that is listened on.
fn bind(path: &Path) -> Result<UnixListener, String> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        bound => return bound.map_err(|error| error.to_string()),
    }
    if UnixStream::connect(path).is_ok() {
        return Err("another instance listens there".to_owned());
    }
    fs::remove_file(path).map_err(|error| error.to_string())?;
    UnixListener::bind(path).map_err(|error| error.to_string())
}

fn accept(listener: &UnixListener, connections: &Arc<Connections>) {
    for number in 0.. {
        let accepted = listener.accept();
        let mut all = locked(&connections.all);
        // The next waits until one goes.
        while all.open.len() >= CONNECTIONS_MAX && !all.is_stopping {
            let waited = connections.fewer.wait(all);
            all = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if all.is_stopping {
            return;
        }
        all.threads.retain(|thread| !thread.is_finished());
        let streams = accepted.and_then(|(stream, _)| Ok((stream.try_clone()?, stream)));
        let Ok((own, stream)) = streams else {
            // Out of file descriptors, which a client may give back.
            drop(all);
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let theirs = Arc::clone(connections);
        let answering = thread::Builder::new().spawn(move || {
            answer(&stream);
            locked(&theirs.all).open.remove(&number);
            theirs.fewer.notify_one();
        });
        if let Ok(thread) = answering {
            // It takes the lock only after this.
            all.open.insert(number, own);
            all.threads.push(thread);
        }
    }
}

/// Answers each line, until the client has no more or sends one that is too long.
fn answer(stream: &UnixStream) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(LINE_BYTES_MAX);
        let Ok(read @ 1..) = limited.read_until(b'\n', &mut line) else {
            return;
        };
        let is_whole = line.ends_with(b"\n");
        let mut said = match is_whole || (read as u64) < LINE_BYTES_MAX {
            true => command::answer(&line),
            false => command::refused(&format!("a line of more than {LINE_BYTES_MAX} bytes")),
        };
        said.push('\n');
        if write(stream, said.as_bytes()).is_err() || !is_whole {
            return;
        }
    }
}

/// Writes without the signal that would end the client's process where the other side is gone.
fn write(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let (from, length) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the bytes are there during the call, and the socket is open.
        let sent = unsafe { send(stream.as_raw_fd(), from, length, MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
