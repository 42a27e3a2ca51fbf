//! `kvlens up` with two mock engines, as its own process.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) struct Up {
    process: Child,
    /// Where clients ask.
    pub(crate) public: SocketAddr,
    /// Where the first engine answers.
    pub(crate) engine: SocketAddr,
    /// From exec to the line that says so.
    pub(crate) ready_after: Duration,
}

impl Up {
    /// Starts it with this level of logs, written to a file, and these arguments of its engines;
    /// returns when it is ready.
    pub(crate) fn start(level: &str, engine_args: &[&str]) -> Self {
        let log: File = tempfile::tempfile().expect("a temporary file");
        let started = Instant::now();
        let mut process = Command::new(env!("CARGO_BIN_EXE_kvlens"))
            .args(["up", "--engine", "mock", "--port", "0", "--"])
            .args(engine_args)
            .env("KVLENS_LOG_LEVEL", level)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("kvlens starts");
        let output = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let mut urls = lines.by_ref().filter_map(|line| {
            let url = line.split("http://").nth(1)?;
            let address = url.split(['/', ' ']).next()?.parse().ok()?;
            Some((line.contains("ready:"), address))
        });
        let mut engine = None;
        let public = loop {
            match urls.next().expect("it says where it answers") {
                (true, address) => break address,
                (false, address) => engine = engine.or(Some(address)),
            }
        };
        Self {
            ready_after: started.elapsed(),
            process,
            public,
            engine: engine.expect("it says where its engines answer"),
        }
    }

    /// CPU time that its own process has used, and its engines.
    pub(crate) fn cpu_times(&self) -> [Duration; 2] {
        let up = self.process.id();
        let engines = tasks(up).flat_map(|task| {
            let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
            let pids = children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok());
            pids.map(cpu_time).collect::<Vec<_>>()
        });
        [cpu_time(up), engines.sum()]
    }
}

/// CPU time of all threads that a process has now.
fn cpu_time(pid: u32) -> Duration {
    let nanos = tasks(pid).filter_map(|task| {
        let stat = std::fs::read_to_string(task.join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn tasks(pid: u32) -> impl Iterator<Item = PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| task.path())
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.process.id() as i32) {
            // It may have ended already.
            kill_process(pid, Signal::TERM).ok();
        }
        self.process.wait().ok();
    }
}
