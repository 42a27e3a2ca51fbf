//! A frontend that takes over from one that still runs: no request is lost on the way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::end_to_end::stack::{FAST, until};
use crate::roles::host::{Frontend, Host};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

const CHAT: &str = r#"{"model":"demo","max_tokens":2,"messages":[{"role":"user","content":"How is a house built?"}]}"#;

/// A port that is kept for those who share it.
struct Kept {
    port: u16,
    _socket: TcpSocket,
}

fn kept() -> Kept {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.set_reuseport(true).expect("an option");
    let address = "127.0.0.1:0".parse().expect("an address");
    socket.bind(address).expect("a free port");
    Kept {
        port: socket.local_addr().expect("bound").port(),
        _socket: socket,
    }
}

/// An answer's head and its whole body.
#[derive(Debug)]
struct Answer {
    status: u16,
    closes: bool,
    body: String,
}

/// Asks once on a connection; an error where it is not answered whole.
async fn ask(stream: &mut TcpStream, request: &str) -> std::io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let text = String::from_utf8_lossy(&read).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let field = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim)
            };
            let bytes: usize =
                field("content-length:").map_or(0, |bytes| bytes.parse().expect("a number"));
            if body.len() >= bytes {
                let status = head.split(' ').nth(1).expect("a status");
                return Ok(Answer {
                    status: status.parse().expect("a number"),
                    closes: field("connection:") == Some("close"),
                    body: body.to_owned(),
                });
            }
        }
        let reading = timeout(PATIENCE, stream.read(&mut buffer)).await;
        match reading.expect("an answer in time")? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => read.extend_from_slice(&buffer[..count]),
        }
    }
}

fn post(headers: &str) -> String {
    let length = CHAT.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{headers}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{CHAT}"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

async fn connect(port: u16) -> TcpStream {
    loop {
        // A refused connection was nobody's request.
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            return stream;
        }
    }
}

/// What clients in a loop have seen so far.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicUsize,
    /// Answers that asked a kept connection to close.
    moved: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

/// Asks in a loop, on one connection for as long as it is kept where `keeps`, else on one each time.
async fn client(port: u16, keeps: bool, seen: Arc<Seen>) {
    let request = post(if keeps { "" } else { "connection: close\r\n" });
    let mut kept = None;
    while !seen.stop.load(Ordering::Relaxed) {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(port).await,
        };
        match ask(&mut stream, &request).await {
            Ok(answer) if answer.status == 200 => {
                seen.answered.fetch_add(1, Ordering::Relaxed);
                if keeps && answer.closes {
                    seen.moved.fetch_add(1, Ordering::Relaxed);
                }
                kept = (keeps && !answer.closes).then_some(stream);
            }
            failed => seen
                .failed
                .lock()
                .expect("a list")
                .push(format!("{failed:?}")),
        }
    }
}

/// A host with one worker, whose frontends share two ports; the address of its agent.
async fn host(public: &Kept, admin: &Kept) -> (Host, String) {
    let mut host = Host::new();
    let engine = host.engine("gpu-0", FAST).await;
    let agent = host.agent("gpu-0", &engine.agent_words("gpu-0")).await;
    let url = agent.url.clone();
    host.keep(agent.process);
    host.settings = vec![
        ("KVLENS_FRONTEND_HAND_OVER", "true".to_owned()),
        ("KVLENS_FRONTEND_SETTLE_SECS", "2".to_owned()),
        ("KVLENS_FRONTEND_PORT", public.port.to_string()),
        ("KVLENS_FRONTEND_ADMIN_PORT", admin.port.to_string()),
        ("KVLENS_LOG_LEVEL", "info".to_owned()),
    ];
    (host, url)
}

async fn frontend(host: &mut Host, agent: &str) -> Frontend {
    let frontend = host.frontend_as_set(&[agent], "").await;
    frontend.process.said("workers that take requests").await;
    until("it has its worker", async || {
        let log = frontend.process.log();
        log.contains(r#""ready":1"#)
    })
    .await;
    frontend
}

const SHARED: &str = "another process listens here, from which";

#[tokio::test]
async fn a_frontend_takes_over_and_no_request_is_lost() {
    let (public, admin) = (kept(), kept());
    let (mut host, agent) = host(&public, &admin).await;
    let mut old = frontend(&mut host, &agent).await;
    assert!(!old.process.log().contains(SHARED));
    // These are the old one's, for nobody else is there yet.
    let mut asked = connect(public.port).await;
    assert_eq!(ask(&mut asked, &get("/ready")).await.unwrap().status, 200);
    let mut alive = connect(public.port).await;
    let mut idle = connect(public.port).await;
    assert!(!ask(&mut idle, &post("")).await.unwrap().closes);
    let seen = Arc::new(Seen::default());
    let mut clients = JoinSet::new();
    for number in 0..4 {
        clients.spawn(client(public.port, number % 2 == 0, seen.clone()));
    }
    let answered = async |count| {
        let target = seen.answered.load(Ordering::Relaxed) + count;
        until("requests are answered", async || {
            seen.answered.load(Ordering::Relaxed) >= target
        })
        .await;
    };
    answered(200).await;
    let mut new = frontend(&mut host, &agent).await;
    assert_eq!(
        new.process.log().matches(SHARED).count(),
        2,
        "both listeners"
    );
    answered(200).await;
    old.process.signal(Signal::TERM);
    old.process
        .said("settling: not ready any more, and still answering")
        .await;
    let refused = ask(&mut asked, &get("/ready")).await.unwrap();
    assert_eq!((refused.status, refused.closes), (503, true), "{refused:?}");
    assert!(refused.body.contains("settling"), "{refused:?}");
    let live = ask(&mut alive, &get("/live")).await.unwrap();
    assert_eq!((live.status, live.closes), (200, true), "{live:?}");
    // Idle for all that time, its connection ends with the old one.
    let end = timeout(PATIENCE, idle.read(&mut [0; 16])).await;
    assert_eq!(end.expect("it ends").unwrap(), 0);
    assert_eq!(old.process.ended().await, Some(0), "{}", old.process.log());
    answered(700).await;
    seen.stop.store(true, Ordering::Relaxed);
    while clients.join_next().await.is_some() {}
    let failed = std::mem::take(&mut *seen.failed.lock().unwrap());
    assert_eq!(failed, [""; 0]);
    assert!(seen.answered.load(Ordering::Relaxed) > 1_000);
    assert!(
        seen.moved.load(Ordering::Relaxed) > 0,
        "kept connections move"
    );
    // With nobody to take over it settles all the same, and answers meanwhile.
    new.process.signal(Signal::TERM);
    new.process
        .said("settling: not ready any more, and still answering")
        .await;
    sleep(Duration::from_millis(500)).await;
    let late = ask(&mut connect(public.port).await, &post(""))
        .await
        .unwrap();
    assert_eq!((late.status, late.closes), (200, true));
    assert_eq!(new.process.ended().await, Some(0));
}

#[tokio::test]
async fn a_frontend_that_cannot_take_over_ends() {
    let (public, admin) = (kept(), kept());
    let (mut host, _) = host(&public, &admin).await;
    let engine = host.engine("gpu-1", FAST).await;
    let agent = host.agent("gpu-1", &engine.agent_words("gpu-1")).await;
    // Until then there is no worker to take over for.
    agent.process.signal(Signal::STOP);
    let listening = |shares: bool| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.set_reuseport(shares).unwrap();
        socket.bind(([127, 0, 0, 1], public.port).into()).unwrap();
        socket.listen(1).unwrap()
    };
    let former = listening(true);
    let words = format!("frontend --model demo --worker-url {}", agent.url);
    let mut frontend = host.start(&words);
    until("it waits", async || frontend.log().contains(SHARED)).await;
    drop((former, public._socket));
    let _other = listening(false);
    agent.process.signal(Signal::CONT);
    assert_eq!(frontend.ended().await, Some(1), "{}", frontend.log());
    let log = frontend.log();
    assert!(log.contains("cannot take over"), "{log}");
    assert!(log.contains("the public listener ended by itself"), "{log}");
}

#[tokio::test]
async fn a_port_is_shared_only_where_both_say_so() {
    let (public, admin) = (kept(), kept());
    let (mut host, agent) = host(&public, &admin).await;
    let mut sharing = frontend(&mut host, &agent).await;
    let shared = host.settings.clone();
    let words = format!("frontend --model demo --worker-url {agent}");
    let refused = async |host: &mut Host| {
        let mut other = host.start(&words);
        assert_eq!(other.ended().await, Some(78), "{}", other.log());
        let address = format!("127.0.0.1:{}", public.port);
        let said = format!("the public listener cannot listen on {address}; ");
        assert!(other.log().contains(&said), "{}", other.log());
    };
    host.settings[0].1 = "false".to_owned();
    refused(&mut host).await;
    host.settings = shared;
    assert_eq!(sharing.process.stopped().await, Some(0));
    // Somebody who shares nothing is there.
    let plain = TcpSocket::new_v4().unwrap();
    plain.set_reuseaddr(true).unwrap();
    drop(public._socket);
    plain.bind(([127, 0, 0, 1], public.port).into()).unwrap();
    let _plain = plain.listen(1).unwrap();
    refused(&mut host).await;
}
