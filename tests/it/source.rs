//! Following an engine's stream over ZeroMQ: replays, gaps, new engine processes.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kvlens::events::zmq::{Feed, Source, follow};
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::Index;
use kvlens::ledger::{Ledger, Options};
use kvlens::worker::rank::Rank;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::codec::frames;

type Message = (u64, Vec<u8>);

/// A publisher that speaks as vLLM does: PUB for live messages, ROUTER for replays.
pub(crate) struct Publisher {
    pub(crate) source: Source,
    commands: mpsc::Sender<(Message, bool)>,
    tasks: JoinSet<()>,
}

impl Publisher {
    /// Binds in `folder`; `has_topic` is the replay's form since 0.26.
    pub(crate) async fn start(folder: &std::path::Path, has_topic: bool) -> Self {
        let endpoint = |name: &str| format!("ipc://{}", folder.join(name).display());
        let source = Source {
            events: endpoint("events"),
            bind: false,
            replay: Some(endpoint("replay")),
        };
        for name in ["events", "replay"] {
            let _ = std::fs::remove_file(folder.join(name));
        }
        let mut live = PubSocket::new();
        live.bind(&source.events).await.expect("bind events");
        Self::serving(source, live, has_topic).await
    }

    /// Connects to a source that is bound by who follows it.
    pub(crate) async fn connect(source: &Source) -> Self {
        let mut live = PubSocket::new();
        live.connect(&source.events).await.expect("connect events");
        Self::serving(source.clone(), live, true).await
    }

    async fn serving(source: Source, live: PubSocket, has_topic: bool) -> Self {
        let mut replay = RouterSocket::new();
        let endpoint = source.replay.as_deref().expect("a replay");
        replay.bind(endpoint).await.expect("bind replay");
        let (commands, received) = mpsc::channel(1024);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(live, replay, received, has_topic));
        Self {
            source,
            commands,
            tasks,
        }
    }

    pub(crate) async fn publish(&self, message: &Message) {
        let sent = self.commands.send((message.clone(), true)).await;
        sent.expect("the publisher runs");
    }

    /// Puts a message in the replay buffer only, as if it had been lost on its way.
    pub(crate) async fn lose(&self, message: &Message) {
        let sent = self.commands.send((message.clone(), false)).await;
        sent.expect("the publisher runs");
    }

    /// Ends the publisher; returns once its sockets' files are gone, so that they can't vanish
    /// under the next one.
    pub(crate) async fn stop(mut self) {
        drop(self.commands);
        self.tasks.join_next().await;
    }
}

fn message(frames: &[&[u8]]) -> ZmqMessage {
    let mut message = ZmqMessage::from(Bytes::copy_from_slice(frames[0]));
    for frame in &frames[1..] {
        message.push_back(Bytes::copy_from_slice(frame));
    }
    message
}

async fn serve(
    mut live: PubSocket,
    mut replay: RouterSocket,
    mut commands: mpsc::Receiver<(Message, bool)>,
    has_topic: bool,
) {
    let mut buffer: Vec<Message> = Vec::new();
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => {
                let Some((next, is_live)) = command else {
                    break;
                };
                if is_live {
                    let frames = message(&[b"kv-events", &next.0.to_be_bytes(), &next.1]);
                    live.send(frames).await.expect("publish");
                }
                buffer.push(next);
            }
            Ok(request) = replay.recv() => {
                let request = request.into_vec();
                let from = u64::from_be_bytes(request[2].as_ref().try_into().expect("8 bytes"));
                let mut answers: Vec<_> = buffer.iter().filter(|(at, _)| *at >= from).collect();
                let end = (u64::MAX, Vec::new());
                answers.push(&end);
                for (sequence, payload) in answers {
                    let sequence = sequence.to_be_bytes();
                    let frames: &[&[u8]] = if has_topic {
                        &[&request[0], b"", b"kv-events", &sequence, payload]
                    } else {
                        &[&request[0], b"", &sequence, payload]
                    };
                    replay.send(message(frames)).await.expect("answer");
                }
            }
        }
    }
    live.close().await;
    replay.close().await;
}

/// The next feed; panics when none comes.
async fn next_of_all(feed: &mut mpsc::Receiver<Feed>) -> Feed {
    let waited = timeout(Duration::from_secs(15), feed.recv()).await;
    waited.expect("a feed in time").expect("a follower")
}

/// The next feed that is none of being behind, which comes once for each reason.
pub(crate) async fn next_but_behind(feed: &mut mpsc::Receiver<Feed>) -> Feed {
    loop {
        match next_of_all(feed).await {
            Feed::Behind { cause } => assert!(!cause.is_empty()),
            next => return next,
        }
    }
}

/// The next feed that is of the engine's messages.
async fn next(feed: &mut mpsc::Receiver<Feed>) -> Feed {
    loop {
        match next_of_all(feed).await {
            Feed::CaughtUp | Feed::Behind { .. } => {}
            next => return next,
        }
    }
}

pub(crate) fn sequence_of(feed: Feed) -> u64 {
    match feed {
        Feed::Message { sequence, .. } => sequence,
        other => panic!("{other:?} instead of a message"),
    }
}

pub(crate) fn following(source: &Source) -> (mpsc::Receiver<Feed>, JoinSet<()>) {
    let (sender, receiver) = mpsc::channel(16);
    let source = source.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { follow(&source, None, &sender).await });
    (receiver, tasks)
}

pub(crate) fn payload(sequence: u64) -> Message {
    (sequence, format!("payload {sequence}").into_bytes())
}

#[tokio::test]
async fn what_came_before_is_replayed_and_every_message_comes_once_in_order() {
    for has_topic in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let publisher = Publisher::start(folder.path(), has_topic).await;
        for sequence in 0..20 {
            publisher.publish(&payload(sequence)).await;
        }
        let (mut feed, _tasks) = following(&publisher.source);
        for sequence in 0..20 {
            assert_eq!(sequence_of(next(&mut feed).await), sequence);
        }
        for sequence in 20..60 {
            match sequence % 7 {
                3 | 4 => publisher.lose(&payload(sequence)).await,
                _ => publisher.publish(&payload(sequence)).await,
            }
        }
        for sequence in 20..60 {
            assert_eq!(sequence_of(next(&mut feed).await), sequence);
        }
    }
}

#[tokio::test]
async fn a_lost_tail_is_found_without_another_message() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    publisher.publish(&payload(0)).await;
    let (mut feed, _tasks) = following(&publisher.source);
    assert_eq!(sequence_of(next(&mut feed).await), 0);
    publisher.lose(&payload(1)).await;
    assert_eq!(sequence_of(next(&mut feed).await), 1);
}

#[tokio::test]
async fn another_engine_behind_the_same_address_is_a_new_life() {
    // It may have sent as many messages as the former one: only the payload tells them apart.
    for count in [0_u64, 3, 5] {
        let folder = tempfile::tempdir().unwrap();
        let publisher = Publisher::start(folder.path(), true).await;
        for sequence in 0..3 {
            publisher.publish(&payload(sequence)).await;
        }
        let (mut feed, _tasks) = following(&publisher.source);
        for sequence in 0..3 {
            assert_eq!(sequence_of(next(&mut feed).await), sequence);
        }
        publisher.stop().await;
        let publisher = Publisher::start(folder.path(), true).await;
        for sequence in 0..count {
            let other = (sequence, format!("other {sequence}").into_bytes());
            publisher.publish(&other).await;
        }
        assert_eq!(next(&mut feed).await, Feed::NewLife, "after {count}");
        for sequence in 0..count {
            assert_eq!(sequence_of(next(&mut feed).await), sequence);
        }
    }
}

#[tokio::test]
async fn what_is_no_longer_replayed_is_said_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    publisher.publish(&payload(7)).await;
    let (mut feed, _tasks) = following(&publisher.source);
    assert_eq!(next(&mut feed).await, Feed::Lost { first: 0, count: 7 });
    assert_eq!(sequence_of(next(&mut feed).await), 7);
}

#[tokio::test]
async fn a_source_says_when_it_is_caught_up() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let source = publisher.source.clone();
    publisher.stop().await;
    // Nobody listens there yet.
    let (mut feed, _tasks) = following(&source);
    let publisher = Publisher::start(folder.path(), true).await;
    assert_eq!(next_but_behind(&mut feed).await, Feed::CaughtUp);
    publisher.publish(&payload(0)).await;
    assert_eq!(sequence_of(next_of_all(&mut feed).await), 0);
    publisher.stop().await;
    let broken = next_of_all(&mut feed).await;
    assert!(matches!(broken, Feed::Behind { cause } if cause.contains("broke")));
    let _publisher = Publisher::start(folder.path(), true).await;
    assert_eq!(next_but_behind(&mut feed).await, Feed::NewLife);
    assert_eq!(next_but_behind(&mut feed).await, Feed::CaughtUp);
}

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_hears_once_of_a_source_that_is_not_there_and_once_that_it_is() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let folder = tempfile::tempdir().unwrap();
    let source = Source {
        events: format!("ipc://{}", folder.path().join("events").display()),
        bind: false,
        replay: Some(format!("ipc://{}", folder.path().join("replay").display())),
    };
    let (mut feed, _tasks) = following(&source);
    tokio::time::sleep(Duration::from_secs(60)).await;
    tokio::time::resume();
    let _publisher = Publisher::start(folder.path(), true).await;
    assert_eq!(next_but_behind(&mut feed).await, Feed::CaughtUp);
    let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<_> = lines
        .lines()
        .filter(|line| line.contains("kvlens"))
        .collect();
    let [lost, healed] = ours.as_slice() else {
        panic!("{lines}");
    };
    assert!(lost.contains("WARN") && lost.contains("can't be followed"));
    assert!(
        lost.contains(&source.events) && lost.contains("error="),
        "{lost}"
    );
    assert!(healed.contains("INFO") && healed.contains("followed again"));
}

#[tokio::test]
async fn without_a_replay_the_first_message_shows_what_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let source = Source {
        replay: None,
        ..publisher.source.clone()
    };
    let (mut feed, _tasks) = following(&source);
    // Published until it comes: nothing tells when the subscription is noted.
    let mut sequence = 5;
    while feed.is_empty() {
        publisher.publish(&payload(sequence)).await;
        sequence += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost = next_of_all(&mut feed).await;
    assert!(
        matches!(lost, Feed::Lost { first: 0, count } if count >= 5),
        "{lost:?}"
    );
    assert!(sequence_of(next_of_all(&mut feed).await) >= 5);
    assert_eq!(next_of_all(&mut feed).await, Feed::CaughtUp);
}

#[tokio::test]
async fn after_lost_events_the_index_is_as_without_loss() {
    let messages = frames("recording/run1");
    let new_rank = || {
        let worker = WorkerId::new("w").unwrap();
        let ledger = Ledger::new("tiny-vl", Options::default());
        Rank::new(worker, DpRank(0), Incarnation(1), ledger)
    };
    let (mut rank, mut wanted) = (new_rank(), Index::new());
    wanted.apply(&rank.take(Feed::CaughtUp, || Incarnation(2)).unwrap());
    for (sequence, payload) in messages.clone() {
        let payload = payload.into();
        let event = rank.take(Feed::Message { sequence, payload }, || Incarnation(2));
        wanted.apply(&event.unwrap());
    }
    let blocks = wanted.total_blocks();
    assert!(blocks > 2000, "{blocks} blocks");

    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let (mut feed, _tasks) = following(&publisher.source);
    let (mut rank, mut index) = (new_rank(), Index::new());
    for message in &messages {
        if message.0 % 5 == 0 {
            publisher.lose(message).await;
        } else {
            publisher.publish(message).await;
        }
    }
    while rank.status().sequence < messages.len() as u64 - 1 || rank.status().is_partial {
        let next = next_of_all(&mut feed).await;
        assert!(!matches!(next, Feed::Lost { .. }), "{next:?}");
        if let Some(event) = rank.take(next, || Incarnation(2)) {
            index.apply(&event);
        }
    }
    assert_eq!(index.total_blocks(), blocks);
    for (_, payload) in &messages {
        assert_eq!(overlaps(&index, payload), overlaps(&wanted, payload));
    }
}

/// The overlap of each event's blocks, by the names an own ledger gives them.
fn overlaps(index: &Index, payload: &[u8]) -> u32 {
    let mut ledger = Ledger::new("tiny-vl", Options::default());
    let events = kvlens::events::codec::decode(payload).expect("a batch");
    let stored = ledger.apply(events).stored;
    index
        .overlap(&stored)
        .first()
        .map_or(0, |found| found.blocks)
}
