//! What a role tells systemd, heard in its place.

use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout};

use crate::roles::host::Host;

/// Longest wait for a word.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process's `$NOTIFY_SOCKET`.
pub(crate) struct Pid1 {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Pid1 {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        Self { socket, folder }
    }

    /// One that the next processes of a host tell, and that watches them.
    pub(crate) fn of(host: &mut Host, watchdog: Duration) -> Self {
        let pid1 = Self::new();
        let own = ["NOTIFY_SOCKET", "WATCHDOG_USEC"];
        host.settings.retain(|(name, _)| !own.contains(name));
        host.settings.push((own[0], pid1.address()));
        let micros = watchdog.as_micros().to_string();
        host.settings.push((own[1], micros));
        pid1
    }

    pub(crate) fn address(&self) -> String {
        let path = self.folder.path().join("notify");
        path.display().to_string()
    }

    /// The next word.
    async fn next(&self) -> String {
        let mut buffer = [0; 4_096];
        let length = self.socket.recv(&mut buffer).await.expect("a word");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    /// Waits for a word that begins so; all that came before it, and it.
    pub(crate) async fn until(&self, start: &str) -> Vec<String> {
        let mut words = Vec::new();
        let heard = timeout(PATIENCE, async {
            loop {
                words.push(self.next().await);
                if words.last().is_some_and(|word| word.starts_with(start)) {
                    return;
                }
            }
        });
        let heard = heard.await;
        assert!(heard.is_ok(), "{start:?} is never said: {words:?}");
        words
    }

    /// All that is said within some time.
    pub(crate) async fn heard_for(&self, time: Duration) -> Vec<String> {
        let (mut words, end) = (Vec::new(), Instant::now() + time);
        while let Ok(word) = tokio::time::timeout_at(end, self.next()).await {
            words.push(word);
        }
        words
    }
}
