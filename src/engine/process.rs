//! One engine's lives: started, watched, ended, started again.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncRead;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::engine::EngineConfig;
use crate::engine::backoff::Backoff;
use crate::engine::output::Tail;
use crate::engine::probe::Probe;
use crate::engine::run_dir::RunDir;
use crate::engine::{Spec, State, port};
use crate::id::WorkerId;

/// Time to read what a dead engine left in its pipes: a process it started may hold them open.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Keeps one engine running.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) spec: Spec,
    pub(crate) config: EngineConfig,
    pub(crate) run_dir: Arc<RunDir>,
    pub(crate) state: watch::Sender<State>,
    pub(crate) stop: CancellationToken,
}

/// Lines of a dead engine's output in the log's one line about its end.
const LINES_LOGGED: usize = 5;

/// How one life of an engine ended.
#[derive(Debug)]
enum End {
    /// We were told to stop.
    Stopped,
    Failed {
        cause: String,
        /// How long it had answered.
        ready: Duration,
    },
}

impl Supervisor {
    /// Runs the engine, life after life, until `stop`.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(&self.config);
        let worker = &self.spec.worker;
        for life in 1.. {
            let tail = Tail::new(self.config.log_lines_max, self.config.log_line_bytes_max);
            let tail = Arc::new(tail);
            self.state.send_replace(State::Starting);
            let End::Failed { cause, ready } = self.live(life, &tail).await else {
                break;
            };
            let after = backoff.after(ready);
            let last_lines = tail.lines();
            let last = &last_lines[last_lines.len().saturating_sub(LINES_LOGGED)..];
            warn!(%worker, cause, ?after, ?last, "engine ended, starting it again");
            self.state.send_replace(State::Restarting {
                after,
                cause,
                last_lines: last_lines.into(),
            });
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = self.stop.cancelled() => break,
            }
        }
        info!(%worker, "engine stopped");
        self.state.send_replace(State::Stopped);
    }

    async fn live(&self, life: u64, tail: &Arc<Tail>) -> End {
        let stillborn = |cause| End::Failed {
            cause,
            ready: Duration::ZERO,
        };
        // Who listens there now would be taken for our engine, and our engine could not listen.
        if let Err(error) = port::check_free(self.spec.address) {
            return stillborn(format!(
                "it needs {}, which is taken: {error}",
                self.spec.address
            ));
        }
        let (mut child, group) = match self.spawn() {
            Ok(spawned) => spawned,
            Err(error) => {
                let program = self.spec.program.display();
                return stillborn(format!("{program} cannot be started: {error}"));
            }
        };
        // Held to the end: some engines stop when their standard input closes.
        let _stdin = child.stdin.take();
        let mut output = self.read_output(&mut child, tail);
        let mut ready_at = None;
        let cause = tokio::select! {
            status = child.wait() => Some(cause_of(status)),
            fault = self.watch(life, &group, &mut ready_at) => {
                // It is granted its time to end, so the restart is told only later.
                warn!(worker = %self.spec.worker, fault, "ending an engine");
                Some(fault)
            }
            () = self.stop.cancelled() => None,
        };
        let ready = ready_at.map_or(Duration::ZERO, |at: Instant| at.elapsed());
        self.end(&mut child, &group).await;
        drop(group);
        let last_words = async { while output.join_next().await.is_some() {} };
        let read = tokio::time::timeout(LAST_WORDS_MAX, last_words).await;
        if read.is_err() {
            warn!(worker = %self.spec.worker, "engine's output is still held open by a process of its own");
        }
        cause.map_or(End::Stopped, |cause| End::Failed { cause, ready })
    }

    fn spawn(&self) -> io::Result<(Child, Group<'_>)> {
        self.run_dir.clear(&self.spec.worker);
        let child = Command::new(&self.spec.program)
            .args(&self.spec.args)
            .envs(self.spec.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok());
        let leader = raw.and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let group = Group {
            leader,
            worker: &self.spec.worker,
            run_dir: &self.run_dir,
        };
        self.run_dir.record(group.worker, leader)?;
        info!(worker = %group.worker, pid = %leader.as_raw_nonzero(), "engine started");
        Ok((child, group))
    }

    /// Reads the engine's output in tasks that end with it, or with the set they are in.
    fn read_output(&self, child: &mut Child, tail: &Arc<Tail>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut read = |stream: Option<Box<dyn AsyncRead + Send + Unpin>>| {
            if let Some(stream) = stream {
                let (tail, worker) = (Arc::clone(tail), self.spec.worker.clone());
                tasks.spawn(async move { tail.read(stream, &worker).await });
            }
        };
        read(child.stdout.take().map(|stream| Box::new(stream) as _));
        read(child.stderr.take().map(|stream| Box::new(stream) as _));
        tasks
    }

    /// Says when the engine answers and goes on asking it; returns what is wrong with it.
    async fn watch(&self, life: u64, group: &Group<'_>, ready_at: &mut Option<Instant>) -> String {
        let limit = self.config.ready();
        let probe = Probe::new(self.spec.address);
        let ready = probe.until_ready(self.config.probe());
        if tokio::time::timeout(limit, ready).await.is_err() {
            return format!("it did not answer within {limit:?}");
        }
        if group.leader_has_ended() {
            return format!(
                "it ended, and another program answers on {}",
                self.spec.address
            );
        }
        *ready_at = Some(Instant::now());
        info!(worker = %self.spec.worker, address = %self.spec.address, "engine ready");
        self.state.send_replace(State::Ready { life });
        probe.until_hung(&self.config).await
    }

    /// Ends the engine: SIGTERM to its group, then the time it is granted. What is left then is
    /// killed with the group.
    async fn end(&self, child: &mut Child, group: &Group<'_>) {
        if child.id().is_none() {
            return;
        }
        group.signal(Signal::TERM);
        if tokio::time::timeout(self.config.grace(), child.wait())
            .await
            .is_err()
        {
            warn!(worker = %self.spec.worker, grace = ?self.config.grace(), "engine did not end in time, killing it");
            group.signal(Signal::KILL);
            if let Err(error) = child.wait().await {
                warn!(worker = %self.spec.worker, %error, "engine cannot be waited for");
            }
        }
    }
}

/// The process group of a running engine; what is left of it is killed when dropped.
#[derive(Debug)]
struct Group<'a> {
    leader: Pid,
    worker: &'a WorkerId,
    run_dir: &'a RunDir,
}

impl Group<'_> {
    /// Whether the engine's first process has ended, waited for or not.
    fn leader_has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.leader), look), Ok(None))
    }

    fn signal(&self, signal: Signal) {
        match kill_process_group(self.leader, signal) {
            // No such process: the whole group has ended.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => {
                warn!(worker = %self.worker, %error, "engine's processes cannot be signalled");
            }
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.run_dir.clear(self.worker);
    }
}

fn cause_of(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("it ended with {status}"),
        Err(error) => format!("it cannot be waited for: {error}"),
    }
}
