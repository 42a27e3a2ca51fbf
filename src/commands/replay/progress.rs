//! How far a replay is, on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a terminal shows it.
const REDRAW: Duration = Duration::from_millis(200);

/// How often a line says it where there is no terminal.
const LINE: Duration = Duration::from_secs(5);

/// How far one policy is.
#[derive(Debug)]
pub(crate) struct Progress {
    policy: String,
    requests: usize,
    started: Instant,
    told: Instant,
    is_terminal: bool,
}

impl Progress {
    pub(crate) fn new(policy: String, requests: usize) -> Self {
        let now = Instant::now();
        Self {
            policy,
            requests,
            started: now,
            told: now,
            is_terminal: io::stderr().is_terminal(),
        }
    }

    /// So many requests are done.
    pub(crate) fn at(&mut self, done: usize) {
        let every = if self.is_terminal { REDRAW } else { LINE };
        if self.told.elapsed() < every {
            return;
        }
        self.told = Instant::now();
        let rate = done as f64 / self.started.elapsed().as_secs_f64();
        let percent = done * 100 / self.requests.max(1);
        let text = format!("{}: {percent} %, {rate:.0} requests/s", self.policy);
        // A reader that is gone has no use for it.
        let mut out = io::stderr().lock();
        match self.is_terminal {
            true => write!(out, "\r\x1b[K{text}").ok(),
            false => writeln!(out, "{text}").ok(),
        };
        out.flush().ok();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}
