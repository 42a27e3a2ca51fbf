//! One engine's lives: started, watched, ended, started again.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::io::AsyncRead;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::engine::EngineConfig;
use crate::engine::backoff::Backoff;
use crate::engine::leftover::{Kin, MARK};
use crate::engine::output::Tail;
use crate::engine::probe::{Fault, Probe};
use crate::engine::run_dir::RunDir;
use crate::engine::{EngineAddress, Spec, State, port};
use crate::id::WorkerId;
use crate::lifecycle::notify::ADDRESSED;

/// Time to read what a dead engine left in its pipes: a process it started may hold them open.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Longest grace of an engine whose part that computes has died: vLLM's API would wait for it.
const UNWELL_GRACE_MAX: Duration = Duration::from_secs(1);

/// Keeps one engine running.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) spec: Spec,
    pub(crate) config: EngineConfig,
    pub(crate) run_dir: Arc<RunDir>,
    pub(crate) state: watch::Sender<State>,
    /// Asks for another life.
    pub(crate) restart: Arc<Notify>,
    pub(crate) stop: CancellationToken,
}

/// The exit code by which clap and argparse, and so the mock and vLLM, refuse arguments.
const EXIT_USAGE: i32 = 2;

/// Lines of a dead engine's output in the log's one line about its end.
const LINES_LOGGED: usize = 5;

/// How one life of an engine ended.
#[derive(Debug)]
enum End {
    /// We were told to stop.
    Stopped,
    /// We were told to start it again.
    Restarted,
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
            let (cause, after) = match self.live(life, &tail).await {
                End::Stopped => break,
                End::Restarted => ("it was told to start again".to_owned(), Duration::ZERO),
                End::Failed { cause, ready } => (cause, backoff.after(ready)),
            };
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
                () = self.restart.notified() => {}
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
        if let EngineAddress::Tcp(address) = self.spec.address
            && let Err(error) = port::check_free(address)
        {
            return stillborn(format!("it needs {address}, which is taken: {error}"));
        }
        let (mut child, mut group) = match self.spawn() {
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
        let mut grace = self.config.grace();
        let failed = |cause, ready_at: Option<Instant>| End::Failed {
            cause,
            ready: ready_at.map_or(Duration::ZERO, |at| at.elapsed()),
        };
        let end = tokio::select! {
            status = child.wait() => failed(cause_of(status), ready_at),
            (cause, is_unwell) = self.watch(life, &mut group, &mut ready_at) => {
                // It is granted its time to end, so the restart is told only later.
                warn!(worker = %self.spec.worker, cause, "ending an engine");
                if is_unwell {
                    grace = grace.min(UNWELL_GRACE_MAX);
                }
                failed(cause, ready_at)
            }
            () = self.restart.notified() => End::Restarted,
            () = self.stop.cancelled() => End::Stopped,
        };
        self.end(&mut child, &mut group, grace).await;
        drop(group);
        let last_words = async { while output.join_next().await.is_some() {} };
        let read = tokio::time::timeout(LAST_WORDS_MAX, last_words).await;
        if read.is_err() {
            warn!(worker = %self.spec.worker, "engine's output is still held open by a process of its own");
        }
        end
    }

    fn spawn(&self) -> io::Result<(Child, Group<'_>)> {
        self.run_dir.clear(&self.spec.worker);
        let mark = uuid::Uuid::new_v4().simple().to_string();
        let mut command = Command::new(&self.spec.program);
        for name in self.spec.withheld.iter().chain(&ADDRESSED) {
            command.env_remove(name);
        }
        let child = command
            .args(&self.spec.args)
            .envs(self.spec.environment.iter().cloned())
            .env(MARK, &mark)
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
            kin: Kin::new(leader, mark),
            worker: &self.spec.worker,
            run_dir: &self.run_dir,
        };
        self.run_dir.record(group.worker, &group.kin.record())?;
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

    /// Says when the engine answers and goes on asking it; returns what is wrong with it, and
    /// whether it says so itself.
    async fn watch(
        &self,
        life: u64,
        group: &mut Group<'_>,
        ready_at: &mut Option<Instant>,
    ) -> (String, bool) {
        let limit = self.config.ready();
        let probe = Probe::new(self.spec.address.to_string()).asking(self.spec.health);
        let ready = probe.until_ready(self.config.probe());
        if tokio::time::timeout(limit, ready).await.is_err() {
            return (format!("it did not answer within {limit:?}"), false);
        }
        if group.leader_has_ended() {
            let address = &self.spec.address;
            let cause = format!("it ended, and another program answers on {address}");
            return (cause, false);
        }
        *ready_at = Some(Instant::now());
        group.look();
        info!(worker = %self.spec.worker, address = %self.spec.address, "engine ready");
        self.state.send_replace(State::Ready { life });
        let fault = probe.until_fault(&self.config).await;
        (fault.to_string(), fault == Fault::Unwell)
    }

    /// Ends the engine: SIGTERM to its group, then the time it is granted. What is left then is
    /// killed with the group.
    async fn end(&self, child: &mut Child, group: &mut Group<'_>, grace: Duration) {
        if child.id().is_none() {
            return;
        }
        group.look();
        group.signal(Signal::TERM);
        if tokio::time::timeout(grace, child.wait()).await.is_err() {
            warn!(worker = %self.spec.worker, ?grace, "engine did not end in time, killing it");
            group.signal(Signal::KILL);
            if let Err(error) = child.wait().await {
                warn!(worker = %self.spec.worker, %error, "engine cannot be waited for");
            }
        }
    }
}

/// The processes of a running engine; what is left of them is killed when dropped.
#[derive(Debug)]
struct Group<'a> {
    leader: Pid,
    kin: Kin,
    worker: &'a WorkerId,
    run_dir: &'a RunDir,
}

impl Group<'_> {
    /// Whether the engine's first process has ended, waited for or not.
    fn leader_has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.leader), look), Ok(None))
    }

    /// Notes the processes that the engine has started, for us and for a later run.
    fn look(&mut self) {
        self.kin.look();
        if let Err(error) = self.run_dir.record(self.worker, &self.kin.record()) {
            warn!(worker = %self.worker, %error, "engine's processes cannot be written down");
        }
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = self.kin.signal_group(signal) {
            warn!(worker = %self.worker, %error, "engine's processes cannot be signalled");
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.kin.kill_strays();
        self.run_dir.clear(self.worker);
    }
}

fn cause_of(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) if status.code() == Some(EXIT_USAGE) => {
            format!("it ended with {status}, as programs do that refuse their arguments")
        }
        Ok(status) => format!("it ended with {status}"),
        Err(error) => format!("it cannot be waited for: {error}"),
    }
}
