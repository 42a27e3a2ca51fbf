//! Following an engine that connects to us, as vLLM does with more than one data-parallel rank.

use std::net::TcpListener;

use kvlens::events::zmq::{Feed, Source};

use crate::source::{Publisher, following, next_but_behind, payload, sequence_of};

/// A source on a port that was free a moment ago.
fn source(folder: &std::path::Path) -> Source {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    Source {
        events: format!("tcp://{address}"),
        bind: true,
        replay: Some(format!("ipc://{}", folder.join("replay").display())),
    }
}

#[tokio::test]
async fn an_engine_that_connects_is_followed_through_its_lives() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (mut feed, _tasks) = following(&source);
    for life in 0..3_u64 {
        let publisher = Publisher::connect(&source).await;
        publisher.publish(&payload(0)).await;
        if life > 0 {
            let mut next = Feed::CaughtUp;
            while next == Feed::CaughtUp {
                next = next_but_behind(&mut feed).await;
            }
            assert_eq!(next, Feed::NewLife, "life {life}");
        }
        let mut taken = Vec::new();
        for sequence in 1..=20 {
            // Each life has another payload under the same number.
            let (_, payload) = payload(sequence + life * 100);
            match sequence % 7 {
                3 | 4 => publisher.lose(&(sequence, payload)).await,
                _ => publisher.publish(&(sequence, payload)).await,
            }
        }
        while taken.len() < 21 {
            match next_but_behind(&mut feed).await {
                Feed::CaughtUp => {}
                next => taken.push(sequence_of(next)),
            }
        }
        assert_eq!(taken, (0..=20).collect::<Vec<_>>(), "life {life}");
        publisher.stop().await;
    }
}

#[tokio::test]
async fn a_connection_that_comes_again_is_proven_by_the_last_message() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (mut feed, _tasks) = following(&source);
    let publisher = Publisher::connect(&source).await;
    publisher.publish(&payload(0)).await;
    let mut seen = Vec::new();
    while !(seen.contains(&Feed::CaughtUp) && seen.len() > 1) {
        seen.push(next_but_behind(&mut feed).await);
    }
    publisher.stop().await;
    // The same engine, as far as its last message tells.
    let publisher = Publisher::connect(&source).await;
    publisher.lose(&payload(0)).await;
    publisher.lose(&payload(1)).await;
    let mut seen = Vec::new();
    while !(seen.contains(&Feed::CaughtUp) && seen.len() > 1) {
        seen.push(next_but_behind(&mut feed).await);
    }
    assert!(!seen.contains(&Feed::NewLife), "{seen:?}");
    publisher.stop().await;
}

#[tokio::test]
async fn a_stranger_who_connects_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let (mut feed, _tasks) = following(&source);
    let publisher = Publisher::connect(&source).await;
    publisher.publish(&payload(0)).await;
    while next_but_behind(&mut feed).await != Feed::CaughtUp {}
    let address = source.events.trim_start_matches("tcp://");
    for _ in 0..3 {
        let mut stranger = tokio::net::TcpStream::connect(address).await.unwrap();
        let garbage = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n".repeat(8);
        tokio::io::AsyncWriteExt::write_all(&mut stranger, &garbage)
            .await
            .unwrap();
    }
    publisher.publish(&payload(1)).await;
    assert_eq!(sequence_of(next_but_behind(&mut feed).await), 1);
    publisher.stop().await;
}
