//! How the bus stands: whether the server is there, over which connection and since when, and why it
//! is not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, ClientError, Event};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

/// How often whoever waits for a change looks. The client tells of one a moment before it is so, and
/// where it has much to tell not at all.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How the bus stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusState {
    Up,
    /// Why it is away, for a person.
    Away {
        cause: String,
    },
}

/// How the bus stands, whenever that is asked. Clones share it.
#[derive(Clone, Debug)]
pub struct Standing {
    client: Client,
    /// What the client told last: why it is away, and that it is time to look.
    told: watch::Receiver<BusState>,
    /// The connection that was up when somebody looked, and since when that is known.
    seen: Arc<Mutex<(u64, Instant)>>,
}

impl Standing {
    pub(super) fn new(client: Client, told: watch::Receiver<BusState>) -> Self {
        let seen = Arc::new(Mutex::new((0, Instant::now())));
        Self { client, told, seen }
    }

    /// Whether the server is there.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How it stands now.
    pub fn now(&self) -> BusState {
        if self.is_up() {
            return BusState::Up;
        }
        match &*self.told.borrow() {
            BusState::Up => BusState::Away {
                cause: "it has just gone".to_owned(),
            },
            away => away.clone(),
        }
    }

    /// The number of the connection that is up; `None` while none is. What was sent to us between two
    /// of them is lost.
    pub fn connection(&self) -> Option<u64> {
        let connections = self.client.statistics();
        // Counted before the connection is up.
        self.is_up()
            .then(|| connections.connects.load(Ordering::Relaxed))
    }

    /// For how long the connection has been up, as far as anybody has looked; nothing while none is.
    pub fn up_for(&self) -> Duration {
        let Some(connection) = self.connection() else {
            return Duration::ZERO;
        };
        // Nothing panics under it: what it guards is whole.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != connection {
            *seen = (connection, Instant::now());
        }
        seen.1.elapsed()
    }

    /// Waits until a connection is up.
    pub async fn until_up(&self) {
        self.until(Self::is_up).await;
        self.up_for();
    }

    /// Waits until another connection is up than this one, or none.
    pub async fn until_left(&self, connection: Option<u64>) {
        self.until(|standing| standing.connection() != connection)
            .await;
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let mut told = self.told.clone();
        while !is_so(self) {
            // Late or told, it is looked at. The other side is gone only with the client.
            if let Ok(Err(_)) = timeout(LOOK_EVERY, told.changed()).await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Takes in what the client tells, and tells the log whenever that is another state.
pub(super) fn note(told: &watch::Sender<BusState>, slow: &AtomicU64, event: &Event) {
    let state = match event {
        Event::Connected => BusState::Up,
        Event::Disconnected | Event::Closed => BusState::Away {
            cause: "the connection broke".to_owned(),
        },
        // It may be a right that is missing, while all else goes on.
        Event::ServerError(error) => {
            warn!(%error, "nats refused something");
            return;
        }
        Event::ClientError(error) => BusState::Away {
            cause: cause(error),
        },
        Event::SlowConsumer(_) => {
            // One for each message that is lost.
            let lost = slow.fetch_add(1, Ordering::Relaxed) + 1;
            if lost.is_power_of_two() {
                warn!(lost, "nats messages came faster than they were read");
            }
            return;
        }
        Event::LameDuckMode | Event::Draining => return,
    };
    let changed = told.send_if_modified(|shown| {
        let is_other = *shown != state;
        *shown = state.clone();
        is_other
    });
    match (changed, state) {
        (true, BusState::Up) => info!("nats connected"),
        (true, BusState::Away { cause }) => warn!(cause, "nats is away"),
        (false, _) => {}
    }
}

/// Why the client is away, in an operator's words: it says little more than the kind.
fn cause(error: &ClientError) -> String {
    let ClientError::Other(kind) = error else {
        return error.to_string();
    };
    let meaning = match kind.as_str() {
        "authorization violation" => "the server does not take our user, password or nkey",
        "TLS error" => {
            "a certificate is not accepted, because it has expired or is of another authority: \
             nats.ca_file, nats.cert_file or the server's own"
        }
        // A certificate that does not please is told as one of these too.
        "IO error" | "timed out" => {
            "no server can be reached, or its certificate or ours is not accepted"
        }
        _ => return kind.clone(),
    };
    format!("{meaning} ({kind})")
}
