//! The bus between hosts: NATS core, which delivers what it can and says nothing of what it lost.
//! Whoever listens numbers, compares and asks again. Nothing else names async_nats.

pub mod credentials;
pub mod probe;
pub mod standing;
pub mod subjects;
pub mod wire;

use std::io;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::bus::credentials::CredentialError;
use crate::bus::standing::{BusState, Standing, note};
use crate::config::nats::NatsConfig;

/// A server that does not answer two of these in a row is taken to be gone: a cut network shows
/// within seconds, not with the kernel's patience.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Longest wait for a connection and its greeting.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Longest wait for the first connection; then it goes on without.
const FIRST_MAX: Duration = Duration::from_millis(500);

/// Waits between attempts to connect, doubled from the first up to the last: whoever waits for the
/// server is back within two seconds of its return.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_millis(500);

/// Messages that wait to be written: a few milliseconds of a busy bus.
const OUTGOING_MAX: usize = 4_096;

/// Messages of one subscription that wait to be read, some seconds of a busy one. One more is lost,
/// as its number shows.
const INCOMING_MAX: usize = 65_536;

/// Longest wait for room among the outgoing; a message that waits longer is lost.
const SEND_MAX: Duration = Duration::from_millis(500);

/// Why something cannot be done over the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("{server:?} is not the address of a NATS server, as nats://127.0.0.1:4222")]
    Server { server: String, source: io::Error },
    #[error("connection to NATS cannot be made")]
    Connect(#[from] async_nats::ConnectError),
    #[error("NATS is away: {cause}")]
    Away { cause: String },
    #[error("nobody answers {subject}")]
    NoResponder { subject: String },
    #[error("{subject} was not answered within {waited:?}")]
    Silent { subject: String, waited: Duration },
    #[error("NATS took nothing within {waited:?}")]
    Stuck { waited: Duration },
    #[error("a message of {bytes} bytes is over the server's limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("subscription to {subject} ended")]
    Ended { subject: String },
    #[error("cannot subscribe to {subject}")]
    Subscribe {
        subject: String,
        source: async_nats::SubscribeError,
    },
    #[error("cannot publish to {subject}")]
    Publish {
        subject: String,
        source: async_nats::PublishError,
    },
}

impl BusError {
    /// Whether it stays until somebody changes the configuration or a file.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Credentials(_) | Self::Server { .. })
    }
}

/// A connection to the bus, made again whenever it breaks. Clones share it.
#[derive(Clone, Debug)]
pub struct Bus {
    client: Client,
    standing: Standing,
}

/// A subscription.
#[derive(Debug)]
pub struct Listener {
    subject: String,
    subscriber: Subscriber,
}

/// A message as it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub subject: String,
    /// Where an answer goes; `None` where none is asked for.
    pub reply: Option<String>,
    pub payload: Bytes,
}

/// Answers to one question, as they come.
#[derive(Debug)]
pub struct Replies {
    listener: Listener,
    /// Whom was asked, for errors.
    asked: String,
}

impl Bus {
    /// Connects as `name`, for ever: where the servers are away it returns all the same, and goes on
    /// trying.
    ///
    /// # Errors
    /// When an address or a credential file cannot be used.
    pub async fn connect(config: &NatsConfig, name: &str) -> Result<Self, BusError> {
        let cause = "it has not answered yet".to_owned();
        let (told, state) = watch::channel(BusState::Away { cause });
        let slow = AtomicU64::new(0);
        let servers = servers(&config.servers)?;
        let options = credentials::options(config)?
            .name(name)
            .custom_inbox_prefix(config.inbox())
            .ping_interval(PING_EVERY)
            .connection_timeout(CONNECT_MAX)
            .client_capacity(OUTGOING_MAX)
            .subscription_capacity(INCOMING_MAX)
            // The server may know members by addresses that mean nothing here.
            .ignore_discovered_servers()
            .reconnect_delay_callback(pause)
            .max_reconnects(None)
            .retry_on_initial_connect()
            .event_callback(move |event| {
                note(&told, &slow, &event);
                std::future::ready(())
            });
        let client = ConnectOptions::connect(options, servers).await?;
        let standing = Standing::new(client.clone(), state);
        // Whoever begins would otherwise find everybody away first.
        timeout(FIRST_MAX, standing.until_up()).await.ok();
        Ok(Self { client, standing })
    }

    /// How the bus stands, now and later.
    pub fn state(&self) -> Standing {
        self.standing.clone()
    }

    /// Whether the server is there.
    pub fn is_up(&self) -> bool {
        self.standing.is_up()
    }

    /// Most bytes that the server takes in one message.
    pub fn message_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    /// Publishes a message. While the server is away it is lost, at once.
    ///
    /// # Errors
    /// When it did not go out.
    pub async fn publish<T: Serialize>(
        &self,
        subject: String,
        message: &T,
    ) -> Result<(), BusError> {
        self.send(subject, None, wire::encode(message)).await
    }

    /// Publishes bytes; `reply` is where answers are to go.
    ///
    /// # Errors
    /// When they did not go out.
    pub async fn send(
        &self,
        subject: String,
        reply: Option<String>,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.check(payload.len())?;
        let shown = subject.clone();
        let sent = async {
            match reply {
                None => self.client.publish(subject, payload).await,
                Some(reply) => {
                    self.client
                        .publish_with_reply(subject, reply, payload)
                        .await
                }
            }
        };
        match timeout(SEND_MAX, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(BusError::Publish {
                subject: shown,
                source,
            }),
            Err(_) => Err(BusError::Stuck { waited: SEND_MAX }),
        }
    }

    /// Whether a message of so many bytes would go out now.
    ///
    /// # Errors
    /// When the server is away, or it is too large.
    pub fn check(&self, bytes: usize) -> Result<(), BusError> {
        if let BusState::Away { cause } = self.standing.now() {
            return Err(BusError::Away { cause });
        }
        let bytes_max = self.message_bytes_max();
        match bytes > bytes_max {
            true => Err(BusError::TooLarge { bytes, bytes_max }),
            false => Ok(()),
        }
    }

    /// Hears every message of a subject from now on, and again after each reconnection.
    ///
    /// # Errors
    /// When the client has ended.
    pub async fn listen(&self, subject: String) -> Result<Listener, BusError> {
        let subscribed = timeout(SEND_MAX, self.client.subscribe(subject.clone())).await;
        match subscribed {
            Ok(Ok(subscriber)) => Ok(Listener {
                subject,
                subscriber,
            }),
            Ok(Err(source)) => Err(BusError::Subscribe { subject, source }),
            Err(_) => Err(BusError::Stuck { waited: SEND_MAX }),
        }
    }

    /// The same, as soon as it can be had.
    pub async fn hear(&self, subject: String) -> Listener {
        loop {
            match self.listen(subject.clone()).await {
                Ok(listener) => return listener,
                Err(error) => warn!(subject, %error, "cannot listen on the bus yet"),
            }
            sleep(RETRY_LAST).await;
        }
    }

    /// Asks whoever listens to a subject; any number of answers may come.
    ///
    /// # Errors
    /// When the question did not go out.
    pub async fn ask<T: Serialize>(
        &self,
        subject: String,
        question: &T,
    ) -> Result<Replies, BusError> {
        let payload = wire::encode(question);
        self.check(payload.len())?;
        let inbox = self.client.new_inbox();
        let listener = self.listen(inbox.clone()).await?;
        self.send(subject.clone(), Some(inbox), payload).await?;
        Ok(Replies {
            listener,
            asked: subject,
        })
    }

    /// Sends a message to itself, and whether it came back within `patience`.
    pub async fn echoes(&self, patience: Duration) -> bool {
        let inbox = self.client.new_inbox();
        let echoed = async {
            let mut listener = self.listen(inbox.clone()).await.ok()?;
            self.send(inbox, None, Bytes::new()).await.ok()?;
            listener.next().await
        };
        timeout(patience, echoed).await.ok().flatten().is_some()
    }

    /// Waits until all that was published has gone out.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn flush(&self) -> Result<(), BusError> {
        match timeout(SEND_MAX, self.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(BusError::Stuck { waited: SEND_MAX }),
        }
    }
}

impl Listener {
    /// The next message; `None` once the client has ended. Losing the future loses nothing.
    pub async fn next(&mut self) -> Option<Heard> {
        let message = self.subscriber.next().await?;
        Some(Heard {
            subject: message.subject.into_string(),
            reply: message.reply.map(|reply| reply.into_string()),
            payload: message.payload,
        })
    }
}

impl Replies {
    /// The next answer.
    ///
    /// # Errors
    /// When nobody is there to answer, or does within `patience`.
    pub async fn next(&mut self, patience: Duration) -> Result<Bytes, BusError> {
        let subject = || self.asked.clone();
        match timeout(patience, self.listener.subscriber.next()).await {
            Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(BusError::NoResponder { subject: subject() })
            }
            Ok(Some(message)) => Ok(message.payload),
            Ok(None) => Err(BusError::Ended {
                subject: self.listener.subject.clone(),
            }),
            Err(_) => Err(BusError::Silent {
                subject: subject(),
                waited: patience,
            }),
        }
    }
}

fn servers(addresses: &[String]) -> Result<Vec<async_nats::ServerAddr>, BusError> {
    let address = |server: &String| {
        server.parse().map_err(|source| BusError::Server {
            server: server.clone(),
            source,
        })
    };
    addresses.iter().map(address).collect()
}

fn pause(attempts: usize) -> Duration {
    // Enough doublings to reach the last one, and no overflow.
    let doublings = attempts.saturating_sub(1).min(8) as u32;
    (RETRY_FIRST * 2_u32.pow(doublings)).min(RETRY_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_last() {
        let pauses = [1, 2, 3, 4, 5, 1_000].map(|attempts| pause(attempts).as_millis());
        assert_eq!(pauses, [50, 100, 200, 400, 500, 500]);
    }

    #[test]
    fn what_is_no_address_is_named() {
        let error = servers(&["nats://[".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("nats://["), "{error}");
    }
}
