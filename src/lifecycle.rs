//! A process's beginning and end: stop signals, the limit on open files, word to systemd and what it
//! hands over, a folder.

pub mod folder;
pub mod notify;
pub mod shelter;
pub mod sockets;
pub mod tasks;
pub mod watchdog;

use std::future::Future;
use std::io::{self, IsTerminal};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What SIGHUP is to a process that no terminal can have hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// A stop, as it is for everybody whose terminal is closed.
    Stops,
    /// Word to read files again, which the role hears by itself.
    Reloads,
}

/// The signals that end the process: SIGINT, SIGTERM, and SIGHUP where it is not ignored.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` under `nohup`, which asks to outlive the terminal, and where it means something else.
    hang_up: Option<Signal>,
}

impl StopSignals {
    /// Takes the signals over from the system's default, which is to die at once.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn listen(hang_up: HangUp) -> io::Result<Self> {
        let reloads = hang_up == HangUp::Reloads && !io::stdin().is_terminal();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            // Taken over where it reloads too, lest one that comes early be the end.
            hang_up: match ignores_hang_up() {
                true => None,
                false => Some(signal(SignalKind::hangup())?).filter(|_| !reloads),
            },
        })
    }

    /// Runs `role` to its end. The first signal cancels `stop`, for the role to finish what it has;
    /// the second, unless it is a SIGHUP, drops the role as it is. `None` when it was dropped.
    pub async fn govern<F: Future>(
        mut self,
        stop: CancellationToken,
        role: F,
    ) -> Option<F::Output> {
        tokio::pin!(role);
        tokio::select! {
            output = &mut role => return Some(output),
            name = self.first() => info!(signal = name, "stopping"),
        }
        notify::stopping();
        stop.cancel();
        tokio::select! {
            output = &mut role => Some(output),
            name = self.second() => {
                warn!(signal = name, "stopping at once");
                None
            }
        }
    }

    async fn first(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hang_up => "SIGHUP",
        }
    }

    async fn second(&mut self) -> &'static str {
        // A closing terminal may send SIGHUP twice, by the kernel and by the shell: nobody asked
        // for haste.
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is signal 1, SIGHUP.
    mask.is_some_and(|mask| mask & 1 == 1)
}

/// Raises the limit on open files as far as this process may, and returns the limit then in force;
/// `None` means no limit. Each connection, stream and engine socket takes a file, and the usual
/// limit of 1,024 is reached by 500 streams.
pub fn raise_fd_limit() -> Option<u64> {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(error) => {
            warn!(%error, limit = limits.current, "limit on open files stays");
            limits.current
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rustix::process::{Pid, Signal, getpid, kill_process};

    use super::*;

    /// Signals go to the whole process, so tests that send them take turns.
    static TURN: Mutex<()> = Mutex::new(());

    fn send(pid: Pid, signal: Signal) {
        kill_process(pid, signal).unwrap();
    }

    #[test]
    fn the_first_signal_cancels_and_the_second_drops() {
        let _turn = TURN.lock().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for signal in [Signal::TERM, Signal::HUP] {
                let stop = CancellationToken::new();
                let graceful = StopSignals::listen(HangUp::Stops).unwrap();
                send(getpid(), signal);
                let role = async {
                    stop.cancelled().await;
                    // A second hang-up, as a closing terminal sends it, is no haste.
                    send(getpid(), Signal::HUP);
                    tokio::task::yield_now().await;
                    7
                };
                assert_eq!(graceful.govern(stop.clone(), role).await, Some(7));
            }

            let stop = CancellationToken::new();
            let stubborn = StopSignals::listen(HangUp::Stops).unwrap();
            send(getpid(), Signal::INT);
            let role = async {
                stop.cancelled().await;
                send(getpid(), Signal::TERM);
                std::future::pending::<u32>().await
            };
            assert_eq!(stubborn.govern(stop.clone(), role).await, None);
        });
    }

    #[test]
    fn a_role_that_ends_by_itself_is_heard() {
        let _turn = TURN.lock().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let output = runtime.block_on(async {
            let signals = StopSignals::listen(HangUp::Stops).unwrap();
            signals.govern(CancellationToken::new(), async { 3 }).await
        });
        assert_eq!(output, Some(3));
    }

    #[test]
    fn the_limit_on_open_files_is_raised_to_the_most_allowed() {
        let raised = raise_fd_limit();
        let limits = getrlimit(Resource::Nofile);
        assert_eq!(limits.current, raised);
        assert_eq!(limits.current, limits.maximum);
    }
}
