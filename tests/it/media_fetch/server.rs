//! Servers on loopback that do what a test tells them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvlens::config::media::MediaConfig;
use kvlens::media::{Media, MediaError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What a server does once it has read a request.
pub(crate) enum Answer {
    Bytes(Vec<u8>),
    /// The bytes, then zeros until the client goes away.
    Endless(Vec<u8>),
    /// The bytes, then an `a` every 20 ms until the client goes away.
    Drip(Vec<u8>),
    Silence,
}

/// A server on loopback; stops when dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(
        address: &str,
        answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind to loopback");
        let port = listener.local_addr().expect("a bound address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (counted, seen, answer) = (connections.clone(), requests.clone(), Arc::new(answer));
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let (seen, answer) = (seen.clone(), answer.clone());
                open.spawn(async move {
                    let _ = talk(stream, &seen, &*answer).await;
                });
            }
        });
        Self {
            port,
            connections,
            requests,
            _tasks: tasks,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no test panics here").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn talk(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    answer: &(impl Fn(&str) -> Answer + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    seen.lock().expect("no test panics here").push(head.clone());
    match answer(&head) {
        Answer::Bytes(bytes) => stream.write_all(&bytes).await?,
        Answer::Endless(bytes) => {
            stream.write_all(&bytes).await?;
            loop {
                stream.write_all(&[0; 4096]).await?;
            }
        }
        Answer::Drip(bytes) => {
            stream.write_all(&bytes).await?;
            loop {
                stream.write_all(b"a").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Answer::Silence => std::future::pending().await,
    }
    stream.shutdown().await
}

pub(crate) fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    std::fs::read(folder.join(name)).expect("a golden image")
}

pub(crate) fn respond(head: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

pub(crate) fn redirect(to: &str) -> Answer {
    Answer::Bytes(respond(&format!("302 Found\r\nlocation: {to}"), b""))
}

pub(crate) fn path_of(request: &str) -> &str {
    request.split(' ').nth(1).expect("a request line")
}

pub(crate) fn policy(allow: &[String]) -> MediaConfig {
    MediaConfig {
        image_bytes_max: 64 << 10,
        connect_secs: 1.0,
        first_byte_secs: 0.3,
        total_secs: 0.6,
        allow: allow.to_vec(),
        ..MediaConfig::default()
    }
}

/// Images from `server` alone.
pub(crate) fn media(server: &Server) -> Media {
    Media::new(policy(&[format!("127.0.0.1:{}", server.port)])).expect("a sound policy")
}

/// The refusal, whose text must be fit for a client.
pub(crate) async fn refusal(media: &Media, url: &str) -> MediaError {
    let error = media.load(url, "").await.expect_err(url);
    let text = error.to_string();
    assert!(!text.contains("127.0"), "{text}");
    error
}
