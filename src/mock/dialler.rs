//! A publisher that connects to its subscriber, as vLLM's does where its endpoint names no wildcard.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use zeromq::{PubSocket, Socket, SocketEvent, SocketSend, ZmqMessage};

/// Messages between a rank and its socket, as in vLLM; further ones are lost, as a publisher's are.
const QUEUED_MAX: usize = 100_000;

/// Longest time for one attempt to connect.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Pause after an attempt that failed at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Keeps one connection to a subscriber that listens, made anew whenever it breaks.
pub struct Dialler {
    socket: PubSocket,
    endpoint: String,
    messages: mpsc::Receiver<ZmqMessage>,
}

impl Dialler {
    /// A dialler of `endpoint`, and where its messages are put.
    pub fn new(endpoint: String) -> (Self, mpsc::Sender<ZmqMessage>) {
        let (sender, messages) = mpsc::channel(QUEUED_MAX);
        let dialler = Self {
            socket: PubSocket::new(),
            endpoint,
            messages,
        };
        (dialler, sender)
    }

    /// Sends what it is given until `stop`. What comes while nobody listens is lost.
    pub async fn run(mut self, stop: CancellationToken) {
        if let Some(never) = stop.run_until_cancelled(self.relay()).await {
            match never {}
        }
    }

    async fn relay(&mut self) -> Infallible {
        let mut events = self.socket.monitor();
        loop {
            self.connect().await;
            while self.send_next(&mut events).await {}
        }
    }

    async fn connect(&mut self) {
        let Self {
            socket,
            endpoint,
            messages,
        } = self;
        let connecting = async {
            while !matches!(
                tokio::time::timeout(ATTEMPT, socket.connect(endpoint)).await,
                Ok(Ok(()))
            ) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let losing = async {
            while messages.recv().await.is_some() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = connecting => {}
            () = losing => {}
        }
    }

    /// Sends the next message; false when the connection breaks first.
    async fn send_next(&mut self, events: &mut (impl Stream<Item = SocketEvent> + Unpin)) -> bool {
        tokio::select! {
            event = events.next() => {
                !matches!(event, None | Some(SocketEvent::Disconnected(_)))
            }
            Some(message) = self.messages.recv() => {
                if let Err(error) = self.socket.send(message).await {
                    tracing::warn!(%error, "kv events not sent");
                }
                true
            }
        }
    }
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialler({})", self.endpoint)
    }
}
