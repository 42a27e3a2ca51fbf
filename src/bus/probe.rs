//! What one NATS server says when it is asked once, by a connection that is made for that and not
//! made again.

use std::collections::BTreeSet;
use std::error::Error;
use std::iter;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::bus::{BusError, CONNECT_MAX, credentials, servers, subjects};
use crate::config::nats::NatsConfig;

/// Longest wait for our own message.
const ECHO_MAX: Duration = Duration::from_secs(1);

/// Time to hear routers, which say four times a second that they are there.
const LISTEN: Duration = Duration::from_secs(1);

/// Most routers that are told of.
const ROUTERS_MAX: usize = 64;

/// Most refusals that are told of: one for each thing that is tried here, and some more.
const REFUSALS_MAX: usize = 8;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    pub version: String,
    /// Most bytes that it takes in one message.
    pub message_bytes_max: usize,
    /// Time of a message to ourselves; `None` where it did not come.
    pub round_trip: Option<Duration>,
    /// Names of the routers that were heard.
    pub routers: Vec<String>,
    /// What it refused, in its own words.
    pub refusals: Vec<String>,
}

/// Why a server cannot be used, told apart by what an operator has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusFault {
    /// Its address, or a file of ours.
    Configuration,
    Credentials,
    Certificate,
    Away,
}

impl BusError {
    /// Which kind of fault it is.
    pub fn fault(&self) -> BusFault {
        match self {
            Self::Credentials(_) | Self::Server { .. } => BusFault::Configuration,
            Self::Connect(error) => match error.kind() {
                ConnectErrorKind::ServerParse => BusFault::Configuration,
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    BusFault::Credentials
                }
                ConnectErrorKind::Tls => BusFault::Certificate,
                // What goes wrong while greeting is passed on as of the connection.
                _ if is_of_tls(error) => BusFault::Certificate,
                _ => BusFault::Away,
            },
            _ => BusFault::Away,
        }
    }
}

/// Whether a certificate was refused, by either side.
fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    let causes = iter::successors(Some(error), |error: &&(dyn Error + 'static)| {
        (*error).source()
    });
    let mut texts = causes.map(ToString::to_string);
    texts.any(|text| text.contains("certificate") || text.contains("fatal alert"))
}

/// Asks one server.
///
/// # Errors
/// When it cannot be reached, or does not let us in.
pub async fn ask(config: &NatsConfig, server: &str) -> Result<ServerFacts, BusError> {
    let address = servers(&[server.to_owned()])?;
    let (tell, mut told) = mpsc::channel(REFUSALS_MAX);
    let options = credentials::options(config)?
        .name("kvlens-doctor")
        .connection_timeout(CONNECT_MAX)
        .ignore_discovered_servers()
        .max_reconnects(1)
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                // More than fit are of the same kind.
                tell.try_send(error.to_string()).ok();
            }
            std::future::ready(())
        });
    let client = ConnectOptions::connect(options, address).await?;
    let about = client.server_info();
    let (round_trip, routers) = tokio::join!(echo(&client), routers(&client));
    let mut refusals = Vec::new();
    while let Ok(refusal) = told.try_recv() {
        refusals.push(refusal);
    }
    Ok(ServerFacts {
        version: about.version,
        message_bytes_max: about.max_payload,
        round_trip,
        routers,
        refusals,
    })
}

/// Sends a message to an inbox of ours, as answers come to one.
async fn echo(client: &Client) -> Option<Duration> {
    let inbox = client.new_inbox();
    let mut listener = client.subscribe(inbox.clone()).await.ok()?;
    let sent = Instant::now();
    client.publish(inbox, Bytes::new()).await.ok()?;
    let heard = timeout(ECHO_MAX, listener.next()).await.ok()?;
    heard.map(|_| sent.elapsed())
}

async fn routers(client: &Client) -> Vec<String> {
    let Ok(mut alive) = client.subscribe(subjects::ALL_ALIVE).await else {
        return Vec::new();
    };
    let mut found = BTreeSet::new();
    let hearing = async {
        while let Some(message) = alive.next().await {
            let name = message.subject.split('.').nth(2);
            if let (Some(name), true) = (name, found.len() < ROUTERS_MAX) {
                found.insert(name.to_owned());
            }
        }
    };
    timeout(LISTEN, hearing).await.ok();
    found.into_iter().collect()
}
