//! What a host's name leads to: addresses, and certificates.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use kvlens::config::media::MediaConfig;
use kvlens::media::{Lookup, Media, MediaError};

use super::server::{Answer, Server, golden, policy, refusal, respond};

/// A resolver that gives these answers in turn.
fn answers(turns: &[&[&str]]) -> Lookup {
    let parse = |turn: &&[&str]| -> Vec<IpAddr> {
        turn.iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect()
    };
    let turns: Mutex<VecDeque<_>> = Mutex::new(turns.iter().map(parse).collect());
    Arc::new(move |_| {
        let turn = turns.lock().expect("no test panics here").pop_front();
        async move { turn.ok_or_else(|| std::io::Error::other("asked too often")) }.boxed()
    })
}

#[tokio::test]
async fn a_name_is_refused_when_any_of_its_answers_is() {
    let canary = Server::start("127.0.0.1:0", |_| Answer::Silence).await;
    let policy = MediaConfig {
        ports: vec![canary.port],
        ..policy(&[])
    };
    let url = format!("http://images.example.com:{}/", canary.port);
    for turn in [
        &["127.0.0.1"][..],
        &["8.8.8.8", "127.0.0.1"],
        &["127.0.0.1", "8.8.8.8"],
        &["::1"],
        &["::ffff:127.0.0.1"],
        &["10.0.0.1"],
    ] {
        let media = Media::with_lookup(policy.clone(), answers(&[turn])).unwrap();
        assert_eq!(refusal(&media, &url).await, MediaError::HostNotAllowed);
    }
    for turns in [&[][..], &[&[][..]]] {
        let media = Media::with_lookup(policy.clone(), answers(turns)).unwrap();
        assert_eq!(refusal(&media, &url).await, MediaError::Unreachable);
    }
    assert_eq!(canary.connections(), 0);
}

/// The name is resolved once for a connection and what was checked is dialled; when it then means
/// another address, that one is checked too.
#[tokio::test]
async fn a_name_that_changes_its_meaning_reaches_nothing_new() {
    let image = |_: &str| Answer::Bytes(respond("200 OK", &golden("rgb8.png")));
    let server = Server::start("127.0.0.2:0", image).await;
    let canary = Server::start(&format!("127.0.0.1:{}", server.port), image).await;
    let policy = MediaConfig {
        ports: vec![server.port],
        ..policy(&["127.0.0.2/32".to_owned()])
    };
    let lookup = answers(&[&["127.0.0.2"], &["127.0.0.1"]]);
    let media = Media::with_lookup(policy, lookup).unwrap();
    let url = format!("http://images.example.com:{}/", server.port);
    assert!(media.load(&url, "").await.is_ok());
    assert_eq!(refusal(&media, &url).await, MediaError::HostNotAllowed);
    assert_eq!((server.connections(), canary.connections()), (1, 0));
    let host = format!("host: images.example.com:{}", server.port);
    assert!(server.requests()[0].to_lowercase().contains(&host));
}

#[tokio::test]
async fn a_listed_name_may_lead_inside() {
    let server = Server::start("127.0.0.1:0", |_| {
        Answer::Bytes(respond("200 OK", &golden("rgb8.png")))
    })
    .await;
    let policy = policy(&[format!("*.internal:{}", server.port)]);
    let media = Media::with_lookup(policy, answers(&[&["127.0.0.1"]])).unwrap();
    let url = format!("http://images.internal:{}/", server.port);
    assert!(media.load(&url, "").await.is_ok());
}

/// Takes one TLS connection with a certificate that no root vouches for, and gives what the
/// client thought of it.
fn greet(listener: &std::net::TcpListener) -> std::io::Result<(usize, usize)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tls");
    let certificate = std::fs::read(folder.join("self_signed.der"))?;
    let key = std::fs::read(folder.join("self_signed.key.der"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.into()],
            key.try_into().map_err(std::io::Error::other)?,
        )
        .map_err(std::io::Error::other)?;
    let mut connection =
        rustls::ServerConnection::new(Arc::new(config)).map_err(std::io::Error::other)?;
    let (mut stream, _) = listener.accept()?;
    connection.complete_io(&mut stream)
}

#[tokio::test]
async fn a_certificate_that_no_root_vouches_for_is_refused() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let greeted = tokio::task::spawn_blocking(move || greet(&listener));
    let policy = policy(&[format!("localhost:{port}")]);
    let media = Media::with_lookup(policy, answers(&[&["127.0.0.1"]])).unwrap();
    let error = refusal(&media, &format!("https://localhost:{port}/a.png")).await;
    assert_eq!(error, MediaError::Unreachable);
    let verdict = greeted.await.unwrap().unwrap_err().to_string();
    assert!(verdict.contains("UnknownCA"), "{verdict}");
}
