//! The question whether an engine answers: `GET /health`.

use std::net::SocketAddr;
use std::time::Duration;

use ::http::StatusCode;

use crate::config::engine::EngineConfig;
use crate::dispatch::EngineClient;

/// An engine that needs longer to say that it is well is not ready.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Asks one engine.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    client: EngineClient,
    address: String,
}

impl Probe {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            client: EngineClient::new(),
            address: format!("http://{address}"),
        }
    }

    /// Whether the engine answers 200 within `deadline`.
    pub(crate) async fn answers(&self, deadline: Duration) -> bool {
        let answer = self.client.get(&self.address, "/health", deadline).await;
        matches!(answer, Ok((StatusCode::OK, _)))
    }

    /// Asks every `period` until the engine answers.
    pub(crate) async fn until_ready(&self, period: Duration) {
        while !self.answers(ANSWER_MAX).await {
            tokio::time::sleep(period).await;
        }
    }

    /// Asks a ready engine from time to time, until it has left the most questions in a row that
    /// it may without a good answer. Says so.
    pub(crate) async fn until_hung(&self, config: &EngineConfig) -> String {
        let mut failures = 0;
        while failures < config.watch_failures_max {
            tokio::time::sleep(config.watch()).await;
            failures = match self.answers(config.watch_deadline()).await {
                true => 0,
                false => failures + 1,
            };
        }
        let deadline = config.watch_deadline();
        format!("it hung: {failures} questions in a row had no good answer within {deadline:?}")
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
            let (found, ()) = tokio::join!(probe.answers(ANSWER_MAX), serve);
            assert_eq!(found, ready, "{answer:?}");
        }
        drop(listener);
        assert!(!probe.answers(ANSWER_MAX).await, "nobody listens");
    }
}
