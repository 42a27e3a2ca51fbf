//! A host on which the roles run as processes, started by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::end_to_end::client::{Answer, Client, Stream, Told};
use crate::end_to_end::stack::until;

/// Longest wait for a process to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder for sockets and logs, and a way to start processes. They end with their handles.
pub(crate) struct Host {
    pub(crate) client: Client,
    folder: TempDir,
    engines: Vec<Process>,
    started: usize,
    /// Variables of the processes that are started from now on.
    pub(crate) settings: Vec<(&'static str, String)>,
}

/// A process of the program.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// A running mock engine; it ends with its host.
pub(crate) struct Engine {
    pub(crate) url: String,
    pub(crate) events: String,
    pub(crate) replay: String,
}

pub(crate) struct Agent {
    pub(crate) url: String,
    pub(crate) process: Process,
}

pub(crate) struct Frontend {
    pub(crate) process: Process,
    client: Client,
    public: String,
    admin: String,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            client: Client::new(),
            folder: tempfile::tempdir().expect("a folder"),
            engines: Vec::new(),
            started: 0,
            // Nobody is sent elsewhere where there is nowhere to go.
            settings: vec![("KVLENS_FRONTEND_SETTLE_SECS", "0".to_owned())],
        }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Writes a file that its owner alone can read.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a file");
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, mode).expect("its owner's");
        path
    }

    /// An address where nobody listens.
    pub(crate) async fn free_address(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("bound").to_string()
    }

    pub(crate) async fn engine(&mut self, name: &str, words: &str) -> Engine {
        let endpoint = |what| format!("ipc://{}/{name}.{what}", self.folder.path().display());
        let (events, replay) = (endpoint("kv"), endpoint("replay"));
        let words = format!(
            "mock-engine --port 0 --served-model-name demo --kv-events-endpoint {events} \
             --kv-events-replay {replay} {words}"
        );
        let process = self.start(&words);
        let line = process.said("mock engine listening").await;
        self.engines.push(process);
        Engine {
            url: format!("http://{}", field(&line, "address")),
            events,
            replay,
        }
    }

    pub(crate) async fn agent(&mut self, worker: &str, words: &str) -> Agent {
        self.agent_at(worker, words, "127.0.0.1:0").await
    }

    pub(crate) async fn agent_at(&mut self, worker: &str, words: &str, listen: &str) -> Agent {
        let words = format!("worker --worker {worker} --listen {listen} {words}");
        let process = self.start(&words);
        let line = process.said("agent ready").await;
        Agent {
            url: format!("http://{}", field(&line, "address")),
            process,
        }
    }

    /// Keeps a process for as long as the host.
    pub(crate) fn keep(&mut self, process: Process) {
        self.engines.push(process);
    }

    pub(crate) async fn frontend(&mut self, agents: &[&str], words: &str) -> Frontend {
        self.frontend_as_set(agents, &format!("--port 0 {words}"))
            .await
    }

    /// The same where its settings say which port.
    pub(crate) async fn frontend_as_set(&mut self, agents: &[&str], words: &str) -> Frontend {
        self.modelless(agents, &format!("--model demo {words}"))
            .await
    }

    /// A frontend that is told of no model.
    pub(crate) async fn modelless(&mut self, agents: &[&str], words: &str) -> Frontend {
        let urls = agents.iter().map(|url| format!("--worker-url {url} "));
        let urls: String = urls.collect();
        let process = self.start(&format!("frontend {urls} {words}"));
        let line = process.said("frontend ready").await;
        Frontend {
            public: format!("http://{}", field(&line, "public")),
            admin: format!("http://{}", field(&line, "admin")),
            client: self.client.clone(),
            process,
        }
    }

    pub(crate) fn start(&mut self, words: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvlens"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        self.spawn(command, words)
    }

    /// Starts a frontend as systemd does for a connection to one of two sockets, the public one and the
    /// admin one.
    #[cfg(feature = "systemd")]
    pub(crate) fn activated(&mut self, words: &str, sockets: [std::os::fd::OwnedFd; 2]) -> Process {
        let [public, admin] = sockets.map(Stdio::from);
        let mut command = Command::new("sh");
        command
            .stdin(public)
            .stdout(admin)
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "public:admin")
            .arg("-c")
            .arg("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$@\"")
            .args(["sh", env!("CARGO_BIN_EXE_kvlens")]);
        self.spawn(command, words)
    }

    fn spawn(&mut self, mut command: Command, words: &str) -> Process {
        self.started += 1;
        let log = self.folder.path().join(format!("{}.log", self.started));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVLENS_")) {
            command.env_remove(name);
        }
        command
            .env("KVLENS_ENGINE_RUN_DIR", self.run_dir())
            .env("KVLENS_MEDIA_ENABLED", "true")
            .env("KVLENS_FRONTEND_EXPOSE_ROUTING", "true")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .args(words.split_whitespace())
            .stderr(fs::File::create(&log).expect("a file"))
            .kill_on_drop(true);
        let child = command.spawn().expect("the program was built");
        Process { child, log }
    }
}

impl Engine {
    /// What an agent beside it is told.
    pub(crate) fn agent_words(&self, worker: &str) -> String {
        let Self {
            url,
            events,
            replay,
        } = self;
        assert!(events.contains(worker), "each agent has its own engine");
        format!("--engine-url {url} --kv-events {events} --kv-replay {replay} --name demo")
    }
}

impl Process {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let pid = Pid::from_raw(id.cast_signed()).expect("a process");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits until it has ended; its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it ends in time").expect("a status").code()
    }

    /// Stops it as an operator does; its exit code.
    pub(crate) async fn stopped(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        let code = self.ended().await;
        assert!(!self.log().contains("panicked"), "{}", self.log());
        code
    }

    /// Waits for a line of its log.
    pub(crate) async fn said(&self, message: &str) -> Value {
        let line = || {
            let log = fs::read_to_string(Path::new(&self.log)).unwrap_or_default();
            let lines = log.lines().map(serde_json::from_str::<Value>);
            lines.flatten().find(|line| line["message"] == message)
        };
        until(message, async || line().is_some()).await;
        line().expect("it was there")
    }
}

impl Frontend {
    /// Waits until so many workers take requests.
    pub(crate) async fn until_ready(&self, workers: u64) {
        until("the workers take requests", async || {
            let page = self.client.get(&format!("{}/ready", self.public)).await;
            page.json()["ready"] == workers
        })
        .await;
    }

    pub(crate) async fn status(&self, path: &str) -> u16 {
        let url = format!("{}{path}", self.public);
        self.client.get(&url).await.status
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.client.get(&format!("{}{path}", self.public)).await
    }

    /// The token ids of a chat's prompt, as they are made here.
    pub(crate) async fn prompt_tokens(&self, body: &Value) -> Value {
        let mut body = body.clone();
        body["return_token_ids"] = true.into();
        let url = format!("{}/kvlens/v1/explain", self.admin);
        let answer = self.client.post(&url, &body).await;
        answer.json()["prompt_token_ids"].clone()
    }

    /// Sends a chat that must succeed.
    pub(crate) async fn ask(&self, body: &Value) -> Told {
        let url = format!("{}/v1/chat/completions", self.public);
        self.client.ask(&url, body).await
    }

    pub(crate) async fn post(&self, body: &Value) -> Answer {
        let url = format!("{}/v1/chat/completions", self.public);
        self.client.post(&url, body).await
    }

    pub(crate) async fn stream(&self, body: &Value) -> Stream {
        let url = format!("{}/v1/chat/completions", self.public);
        self.client.stream(&url, body).await
    }

    /// One worker's entry; null where there is none.
    pub(crate) async fn worker(&self, worker: &str) -> Value {
        let url = format!("{}/kvlens/v1/workers", self.admin);
        let page = self.client.get(&url).await.json();
        let workers = page["workers"].as_array().expect("a list");
        let found = workers.iter().find(|entry| entry["worker"] == worker);
        found.cloned().unwrap_or_default()
    }
}

fn field<'a>(line: &'a Value, name: &str) -> &'a str {
    line[name].as_str().expect("a field")
}
