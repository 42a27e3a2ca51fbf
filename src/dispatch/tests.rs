//! What goes over connections to engines.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

#[tokio::test]
async fn an_engine_on_a_unix_socket_is_asked_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix:{}", path.display());
    let client = EngineClient::new();
    let engine = async {
        // One connection for both requests: the pool keeps it.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heads = Vec::new();
        for _ in 0..2 {
            let mut head = vec![0; 4096];
            let bytes = stream.read(&mut head).await.unwrap();
            heads.push(String::from_utf8_lossy(&head[..bytes]).to_lowercase());
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
        heads
    };
    let asked = async {
        let deadline = Duration::from_secs(5);
        let health = client.get(&address, "/health", deadline).await.unwrap();
        let request = EngineRequest {
            path: "/v1/completions",
            id: &RequestId::from_client("r1").unwrap(),
            rank: Some(DpRank(1)),
            body: Bytes::from_static(b"{}"),
        };
        let answer = client.send(&address, request).await.unwrap();
        (health, answer.whole().await.unwrap())
    };
    let (heads, (health, answer)) = tokio::join!(engine, asked);
    assert_eq!(health, (StatusCode::OK, Bytes::from_static(b"ok")));
    assert_eq!(answer, "ok");
    assert!(
        heads[0].starts_with("get /health http/1.1\r\n"),
        "{heads:?}"
    );
    assert!(heads[1].starts_with("post /v1/completions http/1.1\r\n"));
    for header in [
        "host: localhost",
        "x-request-id: r1",
        "x-data-parallel-rank: 1",
    ] {
        assert!(heads[1].contains(&format!("{header}\r\n")), "{heads:?}");
    }

    drop(listener);
    let refused = client.get(&address, "/health", CONNECT).await;
    assert!(
        matches!(refused, Err(DispatchError::Refused { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_is_no_address_is_named() {
    let asked = EngineClient::new().get("ht tp:", "/health", CONNECT).await;
    assert!(
        matches!(asked, Err(DispatchError::Address { .. })),
        "{asked:?}"
    );
}
