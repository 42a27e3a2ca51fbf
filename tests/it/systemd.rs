//! What systemd is told by each role, and what it hands over.

mod pid1;
mod sockets;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;

use crate::bus::server::Server as Nats;
use crate::cli::{kvlens, text as said};
use crate::end_to_end::pictures::{chat, streamed, text};
use crate::end_to_end::stack::FAST;
use crate::roles::host::Host;
use crate::systemd::pid1::Pid1;

/// A watchdog's patience: a role is asked three times in it, and answers in milliseconds.
const WATCHDOG: Duration = Duration::from_millis(1_500);

const ALIVE: &str = "WATCHDOG=1";

fn has(words: &[String], word: &str) -> bool {
    words.iter().any(|said| said == word)
}

#[tokio::test]
async fn an_agent_and_a_frontend_say_how_they_are() {
    let mut host = Host::new();
    let engine = host.engine("gpu-0", "--decode-tokens-per-second 50").await;
    let beside_agent = Pid1::of(&mut host, WATCHDOG);
    let words = engine.agent_words("gpu-0");
    let mut agent = host.agent("gpu-0", &words).await;
    let before = beside_agent.until("READY=1").await;
    assert!(!has(&before, "STOPPING=1"), "{before:?}");
    beside_agent.until(ALIVE).await;
    let held = beside_agent.until("STATUS=gpu-0: healthy, 0 of ").await;
    let held = held.last().unwrap();
    assert!(held.ends_with(" blocks"), "{held}");

    let beside_frontend = Pid1::of(&mut host, WATCHDOG);
    let mut frontend = host.frontend(&[&agent.url], "").await;
    beside_frontend.until("READY=1").await;
    let status = "STATUS=1 of 1 workers take requests, ";
    beside_frontend.until(&format!("{status}0 in flight")).await;
    beside_frontend.until(ALIVE).await;

    let mut body = streamed(chat(&[text("Tell me a story.")]));
    body["max_tokens"] = 100.into();
    let mut stream = frontend.stream(&body).await;
    stream.next().await.unwrap();
    beside_frontend.until(&format!("{status}1 in flight")).await;
    frontend.process.signal(Signal::TERM);
    beside_frontend.until("STOPPING=1").await;
    let drains = beside_frontend.until("STATUS=draining, 1 in flight").await;
    assert!(has(&drains, "EXTEND_TIMEOUT_USEC=5000000"), "{drains:?}");
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    assert_eq!(frontend.process.ended().await, Some(0));

    assert_eq!(agent.process.stopped().await, Some(0));
    beside_agent.until("STOPPING=1").await;
}

#[tokio::test]
async fn a_router_is_fed_for_its_answers_and_not_for_the_bus() {
    let mut host = Host::new();
    let nats = Nats::start().await;
    let engine = host.engine("gpu-0", FAST).await;
    let words = engine.agent_words("gpu-0");
    let agent = host.agent("gpu-0", &words).await;
    let pid1 = Pid1::of(&mut host, WATCHDOG);
    let (url, agent) = (nats.url(), &agent.url);
    let words = format!("router --id a --admin 127.0.0.1:0 --nats {url} --worker-url {agent}");
    let mut router = host.start(&words);
    pid1.until("READY=1").await;
    let status = "STATUS=1 of 1 workers take requests, 0 in flight";
    let words = pid1.until(status).await;
    assert!(!words.last().unwrap().contains("NATS"), "{words:?}");
    pid1.until(ALIVE).await;
    nats.kill().await;
    pid1.until(&format!("{status}; NATS is away: ")).await;
    // What is away has no part in whether the router works.
    pid1.until(ALIVE).await;
    pid1.until(ALIVE).await;
    router.signal(Signal::STOP);
    pid1.heard_for(WATCHDOG / 3).await;
    assert!(pid1.heard_for(WATCHDOG).await.is_empty(), "it hangs");
    router.signal(Signal::CONT);
    pid1.until(ALIVE).await;
    assert_eq!(router.stopped().await, Some(0));
    pid1.until("STOPPING=1").await;
}

#[tokio::test]
async fn an_engine_that_hangs_or_dies_shows() {
    let mut host = Host::new();
    let pid1 = Pid1::of(&mut host, WATCHDOG);
    let words = "engine --worker gpu-0 --kind mock --gpus 2 --listen 127.0.0.1:0";
    let mut process = host.start(words);
    let began = pid1.until("READY=1").await;
    let loading = "STATUS=loading demo on GPU 2, for 0 of at most 900 s";
    assert!(has(&began, loading), "{began:?}");
    assert!(has(&began, "EXTEND_TIMEOUT_USEC=5000000"), "{began:?}");
    pid1.until("STATUS=serving demo on GPU 2, 0 in flight")
        .await;
    pid1.until(ALIVE).await;

    let started = process.said("engine started").await;
    let raw = started["pid"].as_str().expect("its process");
    let engine = Pid::from_raw(raw.parse().unwrap()).unwrap();
    let variables = std::fs::read(format!("/proc/{raw}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    assert!(variables.contains("PATH="), "{variables}");
    assert!(!variables.contains("NOTIFY_SOCKET"), "they are not its own");

    kill_process(engine, Signal::STOP).unwrap();
    // One question may have been answered just before.
    pid1.heard_for(WATCHDOG / 3).await;
    let hung = pid1.heard_for(WATCHDOG).await;
    assert!(!has(&hung, ALIVE), "{hung:?}");
    kill_process(engine, Signal::CONT).unwrap();
    pid1.until(ALIVE).await;

    kill_process(engine, Signal::KILL).unwrap();
    let again = "; started again: it ended with signal: 9 (SIGKILL)";
    pid1.until(&format!(
        "STATUS=waiting 0.5 s to start demo on GPU 2{again}"
    ))
    .await;
    let back = format!("STATUS=serving demo on GPU 2, 0 in flight{again}");
    let back = pid1.until(&back).await;
    assert!(!has(&back, "READY=1"), "it was ready before: {back:?}");
    pid1.until(ALIVE).await;
    assert_eq!(process.stopped().await, Some(0));
    pid1.until("STOPPING=1").await;
}

#[tokio::test]
async fn a_reason_to_end_is_the_last_status() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let workers = ["--worker-url", "http://127.0.0.1:1"];
    let level = ("KVLENS_LOG_LEVEL", "loud");
    let rows: [(&[&str], _, _); 4] = [
        (&["check-config"], Some(level), "log.level has \"loud\""),
        (&["frontend"], Some(level), "log.level has \"loud\""),
        (&["frontend"], None, "frontend: no worker can be found"),
        (
            &[&["frontend", "--port", &port], &workers[..]].concat(),
            None,
            "frontend: the public listener cannot listen on 127.0.0.1:",
        ),
    ];
    for (words, setting, reason) in rows {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut settings = vec![("NOTIFY_SOCKET", path.to_str().unwrap())];
        settings.extend(setting);
        let output = kvlens(words, &settings);
        assert_eq!(output.status.code(), Some(78), "{words:?}");
        let mut last = String::new();
        let mut buffer = [0; 4_096];
        while let Ok(length) = socket.recv(&mut buffer) {
            last = said(&buffer[..length]);
        }
        let expected = format!("STATUS={reason}");
        assert!(last.starts_with(&expected), "{words:?} said {last:?}");
    }
}
