//! `kvlens up` as a child process, and what can be seen of it from outside.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::end_to_end::client::{Client, Stream, Told};

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const FAST: &str = "--prefill-tokens-per-second 0 --decode-tokens-per-second 0";

/// A running `kvlens up` with a runtime folder of its own. Dropped, it is killed, and its engines
/// end with it.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) client: Client,
    /// The public listener, as `http://host:port`.
    pub(crate) public: String,
    pub(crate) admin: String,
    /// The request that is printed to be copied.
    pub(crate) example: Value,
    child: Child,
    folder: TempDir,
}

/// A process of a stack: `up` itself or an engine.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    words: Vec<String>,
}

impl Stack {
    /// Starts `kvlens up` with further words and waits until all its workers take requests.
    pub(crate) async fn start(words: &str) -> Self {
        Self::configured(words, "").await
    }

    /// The same with a configuration file.
    pub(crate) async fn configured(words: &str, config: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), words, config).await
    }

    /// The same in a folder that another stack may have left.
    pub(crate) async fn start_in(folder: TempDir, words: &str, config: &str) -> Self {
        let child = spawn(&folder, words, config);
        let said = ready(&folder).await;
        let after = |mark: &str| {
            let (_, rest) = said.split_once(mark).expect("the banner");
            rest.split(['\n', '\'', ' ']).next().unwrap_or_default()
        };
        let body = said
            .split("-d '")
            .nth(1)
            .and_then(|rest| rest.split('\'').next());
        let example = serde_json::from_str(body.expect("a request")).expect("JSON");
        Self {
            client: Client::new(),
            public: after("curl -si ")
                .trim_end_matches("/v1/chat/completions")
                .to_owned(),
            admin: after("metrics and workers at ").to_owned(),
            example,
            child,
            folder,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.public)
    }

    /// Sends a chat, or a completion where `body` has a prompt; it must succeed.
    pub(crate) async fn ask(&self, body: &Value) -> Told {
        self.client.ask(&self.url(path_of(body)), body).await
    }

    /// The same after the router has taken in all that the engines published.
    pub(crate) async fn ask_settled(&self, body: &Value) -> Told {
        self.settle().await;
        self.ask(body).await
    }

    pub(crate) async fn stream(&self, body: &Value) -> Stream {
        self.client.stream(&self.url(path_of(body)), body).await
    }

    /// The workers' page.
    pub(crate) async fn workers(&self) -> Vec<Value> {
        let url = format!("{}/kvlens/v1/workers", self.admin);
        let page = self.client.get(&url).await.json();
        page["workers"].as_array().expect("a list").clone()
    }

    /// One worker's entry; null when it is away.
    pub(crate) async fn worker(&self, worker: &str) -> Value {
        let workers = self.workers().await;
        let found = workers.into_iter().find(|entry| entry["worker"] == worker);
        found.unwrap_or_default()
    }

    /// Requests that the router counts on all workers.
    pub(crate) async fn load(&self) -> u64 {
        let workers = self.workers().await;
        let ranks = workers.iter().flat_map(|entry| entry["load"].as_array());
        let load = |rank: &Value| {
            let load = ["requests", "prefill_tokens", "decode_blocks"];
            load.iter()
                .filter_map(|name| rank[name].as_u64())
                .sum::<u64>()
        };
        ranks.flatten().map(load).sum()
    }

    /// A metric of the program, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = self.client.get(&format!("{}/metrics", self.admin)).await;
        metric(page.text(), name)
    }

    /// Requests that run on the engine at `address`, by its own count; `None` when it is away.
    pub(crate) async fn running(&self, address: &str) -> Option<f64> {
        let page = self.client.reach(&format!("{address}/metrics")).await?;
        Some(metric(page.text(), "vllm:num_requests_running"))
    }

    /// Where a worker's engine answers.
    pub(crate) async fn engine(&self, worker: &str) -> String {
        let entry = self.worker(worker).await;
        entry["address"].as_str().expect("a worker").to_owned()
    }

    /// Waits until the router has taken in the last batch of events that each engine published,
    /// as the engine itself says when it is asked to replay.
    pub(crate) async fn settle(&self) {
        for engine in self.engines() {
            let replay = engine.after("--kv-events-replay").expect("a replay");
            let worker = worker_of(replay);
            until("the router has followed its engines", async || {
                let entry = self.worker(worker).await;
                let applied = entry["applied_sequences"][0].as_u64();
                entry.is_object() && last_published(replay, applied).await == applied
            })
            .await;
        }
    }

    /// The engines' processes.
    pub(crate) fn engines(&self) -> Vec<Process> {
        let is_engine = |process: &Process| process.words.iter().any(|word| word == "mock-engine");
        processes(&self.folder)
            .into_iter()
            .filter(is_engine)
            .collect()
    }

    /// The process that runs a program.
    #[cfg(feature = "etcd")]
    pub(crate) fn program(&self, name: &str) -> Option<Process> {
        let is_it = |process: &Process| process.words[0].rsplit('/').next() == Some(name);
        processes(&self.folder).into_iter().find(is_it)
    }

    /// All that it printed for the person who started it.
    #[cfg(feature = "etcd")]
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("out")).expect("an output")
    }

    /// The process of a worker's engine.
    pub(crate) fn engine_process(&self, worker: &str) -> Process {
        let engines = self.engines();
        let of =
            |engine: &&Process| engine.after("--kv-events-replay").map(worker_of) == Some(worker);
        engines.iter().find(of).expect("an engine").clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits until `up` has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE * 2, self.child.wait()).await;
        ended.expect("it ends in time").expect("a status")
    }

    /// Kills `up` and waits until its engines have ended too; the folder they leave.
    pub(crate) async fn killed(mut self) -> TempDir {
        self.signal(Signal::KILL);
        self.ended().await;
        self.engines_ended().await;
        self.folder
    }

    /// The folder of one that has ended.
    #[cfg(feature = "etcd")]
    pub(crate) fn into_folder(self) -> TempDir {
        self.folder
    }

    /// Waits until none of its processes is there.
    pub(crate) async fn engines_ended(&self) {
        let ended = async || processes(&self.folder).is_empty();
        until("the engines end", ended).await;
    }

    /// Stops it as an operator does; nothing may have panicked, and nothing may be left.
    pub(crate) async fn end(mut self) {
        assert_eq!(self.metric("kvlens_panics_total").await, 0.0);
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0), "{}", self.log());
        self.assert_nothing_left().await;
    }

    /// No process, no socket, no file but the lock that all runs share, nobody who listens.
    pub(crate) async fn assert_nothing_left(&self) {
        let left = processes(&self.folder);
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(run_names(&self.folder), ["lock"]);
        for listener in [&self.public, &self.admin] {
            let address = listener.trim_start_matches("http://");
            assert!(TcpStream::connect(address).await.is_err(), "{address}");
        }
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("err")).expect("a log")
    }
}

impl Process {
    /// The word after `flag`.
    fn after(&self, flag: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == flag)?;
        self.words.get(at + 1).map(String::as_str)
    }

    pub(crate) fn kill(&self) {
        kill_process(self.pid, Signal::KILL).expect("it runs");
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < patience, "never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// What lies in the folder of all runs: the lock that they share, and a folder for each.
pub(crate) fn run_names(folder: &TempDir) -> Vec<OsString> {
    let base = fs::read_dir(folder.path().join("run")).expect("a folder");
    let runs = base.flatten().map(|entry| entry.path());
    let entries = runs.flat_map(|runs| fs::read_dir(runs).expect("a folder").flatten());
    entries.map(|entry| entry.file_name()).collect()
}

/// Starts `kvlens up` without waiting for anything; its output goes to files in `folder`.
pub(crate) fn spawn(folder: &TempDir, words: &str, config: &str) -> Child {
    let spawned = command(folder, words, config).spawn();
    spawned.expect("the program was built")
}

/// The command line of `kvlens up` with a runtime folder, a configuration and an output in `folder`.
pub(crate) fn command(folder: &TempDir, words: &str, config: &str) -> Command {
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str| fs::File::create(at(name)).expect("a file");
    fs::write(at("config.toml"), config).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvlens"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVLENS_")) {
        command.env_remove(name);
    }
    command
        .env("KVLENS_ENGINE_RUN_DIR", at("run"))
        .arg("--config")
        .arg(at("config.toml"))
        .arg("up")
        .args(
            (!words.contains("--port"))
                .then_some(["--port", "0"])
                .into_iter()
                .flatten(),
        )
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(write("out"))
        .stderr(write("err"))
        .kill_on_drop(true);
    command
}

/// Waits for the banner and for all workers; all that was printed.
async fn ready(folder: &TempDir) -> String {
    let said = || fs::read_to_string(folder.path().join("out")).unwrap_or_default();
    let all_ready = |line: &str| {
        let counts = line.strip_suffix(" workers take requests");
        let counts = counts.and_then(|counts| counts.split_once(" of "));
        counts.is_some_and(|(ready, all)| ready == all)
    };
    until("it is ready", async || {
        let said = said();
        said.contains("Ctrl-C") && said.lines().any(all_ready)
    })
    .await;
    said()
}

/// The processes that were started with this runtime folder.
fn processes(folder: &TempDir) -> Vec<Process> {
    let mark = format!(
        "KVLENS_ENGINE_RUN_DIR={}",
        folder.path().join("run").display()
    );
    let process = |pid: &str| {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let environment = read("environ")?;
        let mut entries = environment.split(|byte| *byte == 0);
        entries.find(|entry| *entry == mark.as_bytes())?;
        let words = read("cmdline")?;
        let words = words.split(|byte| *byte == 0);
        Some(Process {
            pid: Pid::from_raw(pid.parse().ok()?)?,
            words: words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
        })
    };
    let entries = fs::read_dir("/proc").expect("a process table").flatten();
    let names =
        entries.map(|entry| String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned());
    names.filter_map(|name| process(&name)).collect()
}

/// The worker whose replay socket this is.
fn worker_of(replay: &str) -> &str {
    let name = replay.rsplit('/').next().unwrap_or_default();
    name.trim_end_matches(".replay")
}

/// The number of the last batch an engine published: asked for all from number `from` on.
async fn last_published(replay: &str, from: Option<u64>) -> Option<u64> {
    let asked = async {
        let mut socket = DealerSocket::new();
        socket.connect(replay).await.ok()?;
        let mut request = ZmqMessage::from(Bytes::new());
        let from = from.unwrap_or(0).to_be_bytes();
        request.push_back(Bytes::copy_from_slice(&from));
        socket.send(request).await.ok()?;
        let mut last = None;
        loop {
            let frames = socket.recv().await.ok()?.into_vec();
            let sequence = frames.get(2)?.as_ref().try_into().ok()?;
            match u64::from_be_bytes(sequence) {
                u64::MAX => return last,
                sequence => last = Some(sequence),
            }
        }
    };
    timeout(PATIENCE, asked).await.expect("a replay in time")
}

fn path_of(body: &Value) -> &'static str {
    match body["prompt"].is_null() {
        true => "/v1/chat/completions",
        false => "/v1/completions",
    }
}

fn metric(page: &str, name: &str) -> f64 {
    let family = name.split('{').next().unwrap_or_default();
    let family = format!("# TYPE {} ", family.trim_end_matches("_total"));
    assert!(page.contains(&family), "no {family:?} in {page}");
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = rest.starts_with([' ', '{']).then_some(rest)?;
        value.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let values: Vec<_> = page.lines().filter_map(value).collect();
    values.iter().sum()
}
