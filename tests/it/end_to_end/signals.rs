//! How it ends: by signals, and by a port that is taken.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpListener, TcpStream};

use crate::end_to_end::pictures::{chat, streamed, text};
use crate::end_to_end::stack::{self, FAST, Stack, until};

#[tokio::test]
async fn sigterm_lets_a_stream_end_and_leaves_nothing() {
    let mut stack = Stack::start("-- --decode-tokens-per-second 50").await;
    let mut body = streamed(chat(&[text("Tell me a story.")]));
    body["max_tokens"] = 60.into();
    let mut stream = stack.stream(&body).await;
    let first = stream.next().await.unwrap();
    assert!(first.contains("assistant"), "{first}");
    stack.signal(Signal::TERM);
    let address = stack.public.trim_start_matches("http://");
    until("new connections are refused", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    let events = stream.rest().await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    // 60 tokens and the usage; the piece with the role was read before.
    assert_eq!(events.len(), 62, "{events:?}");
    assert_eq!(stack.ended().await.code(), Some(0), "{}", stack.log());
    stack.assert_nothing_left().await;
}

#[tokio::test]
async fn a_second_ctrl_c_ends_at_once_and_leaves_nothing() {
    let mut stack = Stack::start("-- --decode-tokens-per-second 5").await;
    let mut body = streamed(chat(&[text("Tell me a long story.")]));
    body["max_tokens"] = 2_000.into();
    let mut stream = stack.stream(&body).await;
    stream.next().await.unwrap();
    stack.signal(Signal::INT);
    let address = stack.public.trim_start_matches("http://").to_owned();
    until("it has taken the first", async || {
        TcpStream::connect(&address).await.is_err()
    })
    .await;
    let since = Instant::now();
    stack.signal(Signal::INT);
    assert_eq!(stack.ended().await.code(), Some(130), "{}", stack.log());
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    // They are killed as it ends, and it does not wait until the system has seen to it.
    stack.engines_ended().await;
    stack.assert_nothing_left().await;
}

#[tokio::test]
async fn killed_it_takes_its_engines_along_and_the_next_one_sweeps() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let folder = stack.killed().await;
    let left = stack::run_names(&folder);
    assert_eq!(left.len(), 2, "the lock and the killed run's: {left:?}");
    let stack = Stack::start_in(folder, &format!("-- {FAST}"), "").await;
    assert!(stack.ask(&stack.example).await.text.starts_with('I'));
    stack.end().await;
}

#[tokio::test]
async fn a_taken_port_is_named_and_nothing_is_started() {
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = public.local_addr().unwrap().port();
    let admin = format!("[frontend]\nadmin_port = {port}\n");
    let rows = [
        (format!("--port {port}"), "", "the public listener"),
        (String::new(), admin.as_str(), "the admin listener"),
    ];
    for (words, config, listener) in rows {
        let folder = tempfile::tempdir().unwrap();
        let status = stack::spawn(&folder, &words, config).wait().await.unwrap();
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let said = read("err");
        let line = said.lines().last().unwrap();
        let expected = format!("kvlens: up: {listener} cannot listen on 127.0.0.1:{port}; ");
        assert!(
            line.starts_with(&expected) && line.contains("--port"),
            "{line}"
        );
        assert_eq!(status.code(), Some(1));
        assert_eq!(read("out"), "", "nothing was started");
    }
}

#[tokio::test]
async fn nobody_need_read_what_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = stack::command(&folder, &format!("-- {FAST}"), "");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let log = || std::fs::read_to_string(folder.path().join("err")).unwrap();
    until("its workers join", async || {
        log().matches("worker joined").count() == 2
    })
    .await;
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = child.wait().await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", log());
}
