//! Word to systemd: ready, stopping, how things stand, more time. Where systemd did not start the
//! process, or does not want to know, nobody is told.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// By what systemd speaks to one process; whatever that one starts must not take it for its own, nor
/// read its secrets.
pub const ADDRESSED: [&str; 7] = [
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// How often a role looks whether it has something new to tell: each word is work for PID 1.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// For how long a role that starts or stops asks with each word: five words may be lost, and one that
/// hangs gets so much more and no longer.
pub const EXTENSION: Duration = Duration::from_secs(5);

/// Longest status, in bytes. Systemd takes no message over 4,096.
const STATUS_BYTES_MAX: usize = 1_000;

/// Tells that the role answers requests.
pub fn ready() {
    tell("READY", "1");
}

/// Tells that the role finishes what it has.
pub fn stopping() {
    tell("STOPPING", "1");
}

/// Tells in one line what the role is doing.
pub fn status(text: &str) {
    tell("STATUS", &one_line(text));
}

/// Asks for so much time from now on, before the start or the stop of the role is taken to have failed.
pub fn extend(time: Duration) {
    tell("EXTEND_TIMEOUT_USEC", &time.as_micros().to_string());
}

/// Tells that the role does its work.
pub(crate) fn alive() {
    tell("WATCHDOG", "1");
}

/// What systemd shows of a role.
#[derive(Debug, Default)]
pub struct Status {
    told: String,
}

impl Status {
    /// Tells a text unless it was the last one too.
    pub fn tell(&mut self, text: String) {
        if text != self.told {
            status(&text);
            self.told = text;
        }
    }
}

/// Tells what `text` says, now and whenever that has changed; at most once a second.
pub async fn follow(text: impl Fn() -> String) -> Infallible {
    let mut status = Status::default();
    loop {
        status.tell(text());
        sleep(LOOK_EVERY).await;
    }
}

/// Waits for the end of what a stopping role has left, and asks for the time that it takes, up to
/// `longest`: the unit's own limit may be the default.
pub async fn extended<F: Future>(longest: Duration, end: F) -> F::Output {
    let begun = Instant::now();
    let asking = async {
        while begun.elapsed() < longest {
            extend(EXTENSION);
            sleep(LOOK_EVERY).await;
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        output = end => output,
        never = asking => match never {},
    }
}

/// The text without what would end the line or the message.
fn one_line(text: &str) -> String {
    let mut line = text.replace(char::is_control, " ");
    if line.len() > STATUS_BYTES_MAX {
        line.truncate(line.floor_char_boundary(STATUS_BYTES_MAX));
        line.push('…');
    }
    line
}

#[cfg(feature = "systemd")]
fn tell(name: &str, value: &str) {
    // Without NOTIFY_SOCKET there is nobody to tell, and libsystemd says so with Ok(false).
    if let Err(error) = systemd::daemon::notify([(name, value)].iter()) {
        tracing::warn!(%error, name, "systemd was not told");
    }
}

#[cfg(not(feature = "systemd"))]
fn tell(_name: &str, _value: &str) {}

/// How long systemd waits for [`alive`]; `None` where it does not watch this process.
#[cfg(feature = "systemd")]
pub(crate) fn watchdog() -> Option<Duration> {
    match systemd::daemon::watchdog_enabled() {
        Ok(0) => None,
        Ok(micros) => Some(Duration::from_micros(micros)),
        Err(error) => {
            tracing::warn!(%error, "systemd's watchdog is not fed");
            None
        }
    }
}

#[cfg(not(feature = "systemd"))]
pub(crate) fn watchdog() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_that_systemd_takes() {
        for (text, line) in [
            ("1 of 2 workers", "1 of 2 workers".to_owned()),
            ("a\nREADY=1\0b", "a READY=1 b".to_owned()),
            (&"ä".repeat(600), format!("{}…", "ä".repeat(500))),
        ] {
            assert_eq!(one_line(text), line);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn asking_for_time_ends_with_what_it_is_for() {
        let begun = Instant::now();
        let end = async {
            sleep(Duration::from_secs(7)).await;
            3
        };
        assert_eq!(extended(Duration::from_secs(2), end).await, 3);
        assert_eq!(begun.elapsed(), Duration::from_secs(7));
    }
}
