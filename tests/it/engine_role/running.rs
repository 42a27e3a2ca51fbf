//! `kvlens engine` as a child process, and what its owner sees of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, StatusCode};
use kvlens::discovery::engine_file::{self, EngineFile};
use kvlens::dispatch::{EngineAnswer, EngineClient};
use kvlens::id::WorkerId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `kvlens engine` of worker `w0`. Dropped, it is killed, and a mock engine ends with it.
pub(crate) struct Role {
    child: Child,
    pub(crate) client: EngineClient,
    /// Where its run folder is made.
    base: PathBuf,
    log: PathBuf,
}

/// The words of a mock engine, with further words of the role.
pub(crate) fn mock(words: &str) -> String {
    format!("--kind mock {words}")
}

/// A chat for the demo model.
pub(crate) fn chat(answer_tokens: u32, stream: bool) -> Value {
    json!({
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me of the sea, and of ships. ".repeat(8)}],
        "max_tokens": answer_tokens,
        "ignore_eos": true,
        "stream": stream,
    })
}

/// A request with a key, without one where that is empty.
pub(crate) fn request(method: Method, body: &Value, key: &str) -> Request<Bytes> {
    let body = match body {
        Value::Null => Bytes::new(),
        body => body.to_string().into(),
    };
    let mut request = Request::builder().method(method);
    if !key.is_empty() {
        request = request.header(AUTHORIZATION, format!("Bearer {key}"));
    }
    request.body(body).expect("a request")
}

impl Role {
    /// Starts it in a folder that another may have left.
    pub(crate) fn start(folder: &TempDir, words: &str) -> Self {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        Self::start_words(folder, &words)
    }

    /// The same with words that may have spaces.
    pub(crate) fn start_words(folder: &TempDir, words: &[String]) -> Self {
        let base = folder.path().join("run");
        let log = folder.path().join("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvlens"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVLENS_")) {
            command.env_remove(name);
        }
        let child = command
            .env("KVLENS_ENGINE_RUN_DIR", &base)
            .env("KVLENS_ENGINE_PROBE_MILLIS", "20")
            .args(["engine", "--worker", "w0"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a file"))
            .kill_on_drop(true)
            .spawn();
        Self {
            child: child.expect("the program was built"),
            client: EngineClient::new(),
            base,
            log,
        }
    }

    /// The folder of its engine.
    pub(crate) fn folder(&self) -> PathBuf {
        let worker = WorkerId::new("w0").expect("a worker id");
        engine_file::folder(Some(&self.base), &worker)
    }

    /// Waits for the engine's description.
    pub(crate) async fn file(&self) -> EngineFile {
        let mut file = EngineFile::read(&self.folder());
        let patience = Instant::now() + PATIENCE;
        while file.is_err() {
            assert!(Instant::now() < patience, "no description: {}", self.log());
            sleep(Duration::from_millis(5)).await;
            file = EngineFile::read(&self.folder());
        }
        file.expect("it was read")
    }

    /// Waits until its status has a value in a field.
    pub(crate) async fn until(&self, field: &str, value: impl Into<Value>) -> Value {
        let value = value.into();
        let patience = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if status.as_ref().is_some_and(|status| status[field] == value) {
                return status.expect("it was there");
            }
            let late = Instant::now() > patience;
            assert!(
                !late,
                "{status:?} never has {field} {value}: {}",
                self.log()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn status(&self) -> Option<Value> {
        let address = self.control_address();
        let asked = self.client.get(&address, "/status", PATIENCE).await;
        serde_json::from_slice(&asked.ok()?.1).ok()
    }

    /// Posts to the control socket.
    pub(crate) async fn control(&self, path: &str) -> (StatusCode, Value) {
        let request = request(Method::POST, &Value::Null, "");
        let address = self.control_address();
        let answer = self.client.forward(&address, path, request).await;
        read(answer.expect("the control socket answers")).await
    }

    fn control_address(&self) -> String {
        format!("unix:{}", self.folder().join("control.sock").display())
    }

    /// Sends a request to an address and waits for the answer's head.
    pub(crate) async fn ask(
        &self,
        address: &str,
        path: &str,
        request: Request<Bytes>,
    ) -> EngineAnswer {
        let answer = timeout(PATIENCE, self.client.forward(address, path, request)).await;
        answer.expect("an answer in time").expect("an answer")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it ends in time").expect("a status")
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }
}

/// An answer's status and its body as JSON.
pub(crate) async fn read(answer: EngineAnswer) -> (StatusCode, Value) {
    let status = answer.status;
    let body = answer.whole().await.expect("a whole answer");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// Waits until a file has a line, and returns it.
pub(crate) async fn written(path: &Path) -> String {
    let patience = Instant::now() + PATIENCE;
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(Instant::now() < patience, "nothing in {}", path.display()),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a process has ended.
pub(crate) async fn gone(pid: &str) {
    let patience = Instant::now() + PATIENCE;
    // A zombie has ended, although its new parent may not have noticed.
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while runs() {
        assert!(Instant::now() < patience, "process {pid} never ends");
        sleep(Duration::from_millis(5)).await;
    }
}
