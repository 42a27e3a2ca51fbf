//! Sockets that systemd holds: nobody is refused, whichever process runs.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::end_to_end::client::Client;
use crate::end_to_end::pictures::{chat, text};
use crate::end_to_end::stack::{FAST, until};
use crate::roles::host::Host;
use crate::systemd::pid1::Pid1;

fn socket() -> (TcpListener, String) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    (socket, format!("http://{address}"))
}

/// What a process is handed of a socket that stays open here.
fn handed(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().expect("a descriptor").into()
}

/// Asks in a loop, each time over a new connection where it does not keep one.
async fn ask(url: String, keeps: bool, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    let mut body = chat(&[text("How is a house built?")]);
    body["max_tokens"] = 2.into();
    let mut client = Client::new();
    while !stop.load(Ordering::Relaxed) {
        if !keeps {
            client = Client::new();
        }
        // It fails the test unless it is answered.
        client.ask(&url, &body).await;
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_restart_refuses_no_connection_and_loses_no_request() {
    let mut host = Host::new();
    host.settings = vec![("KVLENS_FRONTEND_SETTLE_SECS", "1".to_owned())];
    let engine = host.engine("gpu-0", FAST).await;
    let words = engine.agent_words("gpu-0");
    let agent = host.agent("gpu-0", &words).await;
    let ((public, url), (admin, admin_url)) = (socket(), socket());
    let words = format!("frontend --model demo --worker-url {}", agent.url);
    // The ports that it would bind are taken.
    host.settings.push(("KVLENS_FRONTEND_PORT", "1".to_owned()));
    let pid1 = Pid1::of(&mut host, Duration::from_secs(30));
    let mut first = host.activated(&words, [handed(&public), handed(&admin)]);
    let chats = format!("{url}/v1/chat/completions");
    let (stop, answered) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
    let mut clients = JoinSet::new();
    // Whoever comes before it is ready waits.
    for keeps in [true, true, false, false] {
        clients.spawn(ask(chats.clone(), keeps, stop.clone(), answered.clone()));
    }
    pid1.until("READY=1").await;
    let workers: Value = host
        .client
        .get(&format!("{admin_url}/kvlens/v1/workers"))
        .await
        .json();
    assert_eq!(workers["workers"][0]["worker"], "gpu-0");
    for _ in 0..2 {
        let before = answered.load(Ordering::Relaxed);
        until("they are answered", async || {
            answered.load(Ordering::Relaxed) > before + 20
        })
        .await;
        assert_eq!(first.stopped().await, Some(0));
        pid1.until("STOPPING=1").await;
        // In between the kernel takes them.
        let waiting = tokio::net::TcpStream::connect(public.local_addr().unwrap()).await;
        waiting.expect("not refused");
        first = host.activated(&words, [handed(&public), handed(&admin)]);
        pid1.until("READY=1").await;
    }
    let before = answered.load(Ordering::Relaxed);
    until("they are answered", async || {
        answered.load(Ordering::Relaxed) > before + 20
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("each of its requests was answered");
    }
    assert_eq!(first.stopped().await, Some(0));
}

#[tokio::test]
async fn a_socket_of_another_kind_is_refused() {
    let mut host = Host::new();
    let (public, _) = socket();
    let words = "frontend --model demo --worker-url http://127.0.0.1:1";
    let file = File::open(host.file("file", "")).unwrap();
    let mut process = host.activated(words, [handed(&public), file.into()]);
    assert_eq!(process.ended().await, Some(78));
    let log = process.log();
    let reason = "systemd's socket \"admin\" is not one that listens for TCP";
    assert!(log.contains(reason), "{log}");
}
