//! The question whether an engine answers: `GET /health`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// An engine that needs longer to say that it is well is not ready.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Asks one engine.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    client: Client<HttpConnector, Empty<Bytes>>,
    address: SocketAddr,
}

impl Probe {
    pub(crate) fn new(address: SocketAddr) -> Self {
        // No connection is kept: a restarted engine would answer on another one.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build_http();
        Self { client, address }
    }

    /// Whether the engine answers 200.
    pub(crate) async fn is_ready(&self) -> bool {
        let Ok(uri) = format!("http://{}/health", self.address).parse() else {
            return false;
        };
        let answer = tokio::time::timeout(ANSWER_MAX, self.client.get(uri)).await;
        matches!(answer, Ok(Ok(response)) if response.status() == ::http::StatusCode::OK)
    }

    /// Asks every `period` until the engine answers.
    pub(crate) async fn until_ready(&self, period: Duration) {
        while !self.is_ready().await {
            tokio::time::sleep(period).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn ready_is_200_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = Probe::new(listener.local_addr().unwrap());
        for (answer, ready) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", false),
            ("SSH-2.0\r\n", false),
            ("", false),
        ] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (found, ()) = tokio::join!(probe.is_ready(), serve);
            assert_eq!(found, ready, "{answer:?}");
        }
        drop(listener);
        assert!(!probe.is_ready().await, "nobody listens");
    }
}
