//! The question whether an engine answers: `GET /health`, unless it is asked otherwise.

use std::time::Duration;

use ::http::StatusCode;

use crate::config::engine::EngineConfig;
use crate::dispatch::EngineClient;

/// What engines answer.
pub(crate) const HEALTH: &str = "/health";

/// An engine that needs longer to say that it is well is not ready.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Pause before an engine that says it is not well is asked once more.
const UNWELL_PAUSE: Duration = Duration::from_secs(1);

/// Asks one engine.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    client: EngineClient,
    address: String,
    path: &'static str,
}

/// What an engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    /// 503: its API lives, and what computes does not.
    Unwell,
    /// Nothing in time, or something else.
    Silent,
}

/// What is wrong with an engine that was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it answered twice that it is not well (503)")]
    Unwell,
    #[error("it hung: {failures} questions in a row had no good answer within {deadline:?}")]
    Hung { failures: u32, deadline: Duration },
}

impl Probe {
    /// A probe of the engine at `address`.
    pub(crate) fn new(address: String) -> Self {
        Self {
            client: EngineClient::new(),
            address,
            path: HEALTH,
        }
    }

    /// The same of one that is asked for another path.
    pub(crate) fn asking(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    async fn ask(&self, deadline: Duration) -> Health {
        match self.client.get(&self.address, self.path, deadline).await {
            Ok((StatusCode::OK, _)) => Health::Well,
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => Health::Unwell,
            _ => Health::Silent,
        }
    }

    /// Whether it answers within `deadline`, whatever it says.
    pub(crate) async fn answers(&self, deadline: Duration) -> bool {
        self.ask(deadline).await != Health::Silent
    }

    /// Asks every `period` until the engine is well.
    pub(crate) async fn until_ready(&self, period: Duration) {
        while self.ask(ANSWER_MAX).await != Health::Well {
            tokio::time::sleep(period).await;
        }
    }

    /// Asks a ready engine from time to time, until it has left the most questions in a row that
    /// it may without a good answer, or says twice that it is not well.
    pub(crate) async fn until_fault(&self, config: &EngineConfig) -> Fault {
        let deadline = config.watch_deadline();
        let mut failures = 0;
        while failures < config.watch_failures_max {
            tokio::time::sleep(config.watch()).await;
            let mut health = self.ask(deadline).await;
            if health == Health::Unwell {
                tokio::time::sleep(UNWELL_PAUSE).await;
                health = self.ask(deadline).await;
                if health == Health::Unwell {
                    return Fault::Unwell;
                }
            }
            failures = match health {
                Health::Well => 0,
                _ => failures + 1,
            };
        }
        Fault::Hung { failures, deadline }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";

    /// Gives each connection the next answer, and closes it.
    async fn answer(listener: &TcpListener, answers: &[&str]) {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    async fn probe() -> (TcpListener, Probe) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        (listener, Probe::new(address))
    }

    #[tokio::test]
    async fn ready_is_200_and_nothing_else() {
        let (listener, probe) = probe().await;
        for (said, health) in [
            ([OK], Health::Well),
            ([BUSY], Health::Unwell),
            (["SSH-2.0\r\n"], Health::Silent),
            ([""], Health::Silent),
        ] {
            let (found, ()) = tokio::join!(probe.ask(ANSWER_MAX), answer(&listener, &said));
            assert_eq!(found, health, "{said:?}");
        }
        drop(listener);
        assert_eq!(
            probe.ask(ANSWER_MAX).await,
            Health::Silent,
            "nobody listens"
        );
    }

    #[tokio::test]
    async fn an_engine_that_says_twice_that_it_is_not_well_is_taken_at_its_word() {
        let (listener, probe) = probe().await;
        let config = EngineConfig {
            watch_millis: 1,
            ..EngineConfig::default()
        };
        let answers = [OK, BUSY, OK, "", BUSY, BUSY];
        let (fault, ()) = tokio::join!(probe.until_fault(&config), answer(&listener, &answers));
        assert_eq!(fault, Fault::Unwell);
    }
}
