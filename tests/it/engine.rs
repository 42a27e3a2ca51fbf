//! Engines as child processes: readiness, restarts, and ends that leave nothing behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvlens::config::engine::EngineConfig;
use kvlens::config::instance::Kind;
use kvlens::discovery::engine_file::KvEndpoints;
use kvlens::engine::command::{Listen, Plan, Ranks};
use kvlens::engine::run_dir::RunDir;
use kvlens::engine::{EngineProcess, Launcher, State, free_ports};
use kvlens::id::WorkerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const LONG: Duration = Duration::from_secs(20);

struct Engines {
    folder: tempfile::TempDir,
    launcher: Launcher,
}

impl Engines {
    fn new(grace_secs: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let run = RunDir::create(Some(&folder.path().join("run"))).expect("a fresh folder is ours");
        let config = EngineConfig {
            grace_secs,
            probe_millis: 5,
            backoff_first_millis: 10,
            ..EngineConfig::default()
        };
        let launcher = Launcher {
            config,
            run_dir: Arc::new(run),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { folder, launcher }
    }

    /// Runs a shell script as an engine that is to answer on `port`.
    fn launch(&self, script: &str, port: u16) -> EngineProcess {
        let plan = Plan {
            gpus: Some(["2", "GPU-3"].map(str::to_owned).into()),
            ..plan(&["sh", "-c", script], port)
        };
        let spec = plan.spec(&self.launcher.run_dir).expect("sh is there");
        self.launcher.launch(spec)
    }

    async fn stop(&self) {
        self.launcher.stop.cancel();
        self.launcher.tasks.close();
        let ended = tokio::time::timeout(LONG, self.launcher.tasks.wait()).await;
        ended.expect("engines end in time");
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// A command line as an engine that is to answer on `port`.
fn plan(args: &[&str], port: u16) -> Plan {
    Plan {
        name: "m".to_owned(),
        worker: WorkerId::new("w0").expect("w0 is a worker id"),
        kind: Kind::Command,
        model: None,
        listen: Listen::Port(port),
        ranks: Ranks::One,
        block_size: None,
        gpus: None,
        own_gpus: Vec::new(),
        image: None,
        media_dir: None,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
    }
}

/// Answers every connection as a healthy engine does. An engine here is a shell script, which cannot
/// listen itself.
async fn healthy(listener: &TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("connections can be taken");
        let mut request = [0; 1024];
        // A prober that has gone away is no concern of this test.
        let _ = stream.read(&mut request).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
    }
}

async fn listener(port: u16) -> TcpListener {
    let bound = TcpListener::bind(("127.0.0.1", port)).await;
    bound.expect("the port is free")
}

fn free_port() -> u16 {
    free_ports(1).expect("a port is free")[0]
}

async fn reach(engine: &mut EngineProcess, wanted: impl FnMut(&State) -> bool) -> State {
    let reached = tokio::time::timeout(LONG, engine.state.wait_for(wanted)).await;
    let state = reached.expect("the state comes in time");
    state.expect("the engine is watched").clone()
}

async fn written(path: &str) -> String {
    let read = async {
        loop {
            match fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => break text,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let text = tokio::time::timeout(LONG, read).await;
    text.expect("the engine writes in time")
}

fn runs(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A zombie has ended, although its new parent may not have noticed.
    !status.is_empty() && !status.contains(") Z ")
}

#[tokio::test]
async fn an_engine_gets_ready_and_ends_when_told() {
    let engines = Engines::new(10);
    let port = free_port();
    let script = format!(
        "trap 'echo ended > {}; exit 0' TERM; echo $CUDA_VISIBLE_DEVICES > {}; \
         while :; do sleep 0.01; done",
        engines.path("bye"),
        engines.path("gpus"),
    );
    let mut engine = engines.launch(&script, port);
    assert_eq!(written(&engines.path("gpus")).await, "2,GPU-3\n");
    let listener = listener(port).await;
    let checks = async {
        assert!(engine.ready().await);
        assert_eq!(*engine.state.borrow(), State::Ready { life: 1 });
        let pid_file = engines.launcher.run_dir.path().join("w0.pid");
        assert!(pid_file.exists());
        engines.stop().await;
        assert_eq!(*engine.state.borrow(), State::Stopped);
        assert_eq!(written(&engines.path("bye")).await, "ended\n");
        assert!(!pid_file.exists());
        assert!(!engine.ready().await, "a stopped engine never gets ready");
    };
    tokio::select! {
        () = healthy(&listener) => {}
        () = checks => {}
    }
}

#[tokio::test]
async fn an_engine_that_ends_says_why_and_lives_again() {
    let engines = Engines::new(10);
    let port = free_port();
    let script = format!(
        "echo out of memory >&2; test -e {0} && echo x > {1} && exec sleep 60; echo x > {0}; exit 3",
        engines.path("first"),
        engines.path("second"),
    );
    let mut engine = engines.launch(&script, port);
    let ended = |state: &State| matches!(state, State::Restarting { .. });
    let State::Restarting {
        after,
        cause,
        last_lines,
    } = reach(&mut engine, ended).await
    else {
        panic!("it must be restarting");
    };
    assert_eq!(after, Duration::from_millis(10));
    assert_eq!(cause, "it ended with exit status: 3");
    assert_eq!(&*last_lines, ["out of memory"]);
    written(&engines.path("second")).await;
    let listener = listener(port).await;
    let second = reach(&mut engine, |state| *state == State::Ready { life: 2 });
    tokio::select! {
        () = healthy(&listener) => {}
        _ = second => {}
    }
    engines.stop().await;
}

#[tokio::test]
async fn an_engine_that_hangs_is_restarted() {
    let mut engines = Engines::new(10);
    engines.launcher.config.watch_millis = 5;
    engines.launcher.config.watch_failures_max = 3;
    engines.launcher.config.watch_deadline_millis = 50;
    // Its next life cannot begin while this test listens, and is not looked at.
    engines.launcher.config.backoff_first_millis = 30_000;
    let port = free_port();
    let script = format!("echo x > {}; exec sleep 60", engines.path("started"));
    let mut engine = engines.launch(&script, port);
    written(&engines.path("started")).await;
    let listener = listener(port).await;
    tokio::select! {
        () = healthy(&listener) => {}
        ready = engine.ready() => assert!(ready),
    }
    // The listener stays: connections are made, and nobody answers.
    let hung = |state: &State| matches!(state, State::Restarting { .. });
    let State::Restarting { cause, .. } = reach(&mut engine, hung).await else {
        panic!("it must be restarting");
    };
    assert_eq!(
        cause,
        "it hung: 3 questions in a row had no good answer within 50ms"
    );
    engines.stop().await;
}

#[tokio::test]
async fn a_stranger_on_the_port_is_no_engine() {
    let engines = Engines::new(10);
    let port = free_port();
    let stranger = listener(port).await;
    let script = format!("echo x > {}; exec sleep 60", engines.path("started"));
    let mut engine = engines.launch(&script, port);
    let refused = |state: &State| {
        assert!(!matches!(state, State::Ready { .. }));
        matches!(state, State::Restarting { cause, .. } if cause.contains("is taken"))
    };
    tokio::select! {
        () = healthy(&stranger) => {}
        _ = reach(&mut engine, refused) => {}
    }
    assert!(!Path::new(&engines.path("started")).exists());
    drop(stranger);
    written(&engines.path("started")).await;
    engines.stop().await;
}

#[tokio::test]
async fn a_stubborn_engine_and_its_children_are_killed() {
    let engines = Engines::new(0);
    let script = format!(
        "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $! > {}; \
         echo $$ > {}; while :; do sleep 1; done",
        engines.path("child"),
        engines.path("leader"),
    );
    let _engine = engines.launch(&script, free_port());
    let child = written(&engines.path("child")).await;
    let leader = written(&engines.path("leader")).await;
    assert!(runs(&child) && runs(&leader));
    engines.stop().await;
    let gone = async {
        while runs(&child) || runs(&leader) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(LONG, gone).await;
    ended.expect("nothing of the engine is left");
}

#[tokio::test]
async fn an_engine_too_slow_to_answer_is_restarted() {
    let mut engines = Engines::new(10);
    engines.launcher.config.ready_secs = 1;
    let mut engine = engines.launch("exec sleep 60", free_port());
    let late = |state: &State| matches!(state, State::Restarting { .. });
    let State::Restarting { cause, .. } = reach(&mut engine, late).await else {
        panic!("it must be restarting");
    };
    assert_eq!(cause, "it did not answer within 1s");
    engines.stop().await;
}

#[test]
fn a_missing_program_is_named() {
    let engines = Engines::new(0);
    for (plan, text) in [
        (
            plan(&["no-such-engine"], 1),
            "program \"no-such-engine\" is not found in PATH; name a program that exists, or give \
             its path",
        ),
        (
            plan(&[], 1),
            "engine command is empty; put it after --, as: -- my-engine --port {port}",
        ),
        (
            plan(&["sh", "{prot}"], 1),
            "engine command has \"{prot}\", which is none of {port} {uds} {model} {name} {kv_events} {kv_replay} \
             {worker} {ranks} {media_dir}",
        ),
    ] {
        let error = plan.spec(&engines.launcher.run_dir).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn placeholders_of_a_command_are_filled() {
    let engines = Engines::new(0);
    let mut plan = Plan {
        model: Some("qwen".to_owned()),
        ..plan(
            &[
                "sh",
                "{port}",
                "{model}",
                "{kv_events}",
                "{kv_replay}",
                "{worker}",
            ],
            4321,
        )
    };
    let spec = plan.spec(&engines.launcher.run_dir).unwrap();
    let run = engines.launcher.run_dir.path().display();
    let events = format!("ipc://{run}/w0.kv");
    let replay = format!("ipc://{run}/w0.replay");
    assert_eq!(spec.args, ["4321", "qwen", &events, &replay, "w0"]);
    let source = KvEndpoints {
        events,
        bind: false,
        replay,
    };
    assert_eq!(spec.sources, [source]);
    assert_eq!(spec.address.to_string(), "http://127.0.0.1:4321");
    assert!(Path::new(&spec.program).ends_with("sh"));

    plan.listen = Listen::Socket;
    plan.ranks = Ranks::new(2, 7000, 8000);
    plan.media_dir = Some("/media".into());
    plan.args = ["sh", "{uds}", "{kv_events}", "{ranks}", "{media_dir}"]
        .map(str::to_owned)
        .into();
    let spec = plan.spec(&engines.launcher.run_dir).unwrap();
    let socket = format!("{run}/w0.http.sock");
    let events = "tcp://127.0.0.1:7000";
    assert_eq!(spec.args, [socket.as_str(), events, "2", "/media"]);
    assert_eq!(spec.address.to_string(), format!("unix:{socket}"));
    assert_eq!(spec.sources.len(), 2);
}

#[tokio::test]
async fn a_process_that_left_the_group_ends_with_its_engine() {
    let engines = Engines::new(10);
    let port = free_port();
    // One child in a session of its own, whose parent has gone; the engine then waits to be killed.
    let script = format!(
        "setsid sh -c 'echo $$ > {}; while :; do sleep 1; done' & echo $$ > {}; sleep 60",
        engines.path("stray"),
        engines.path("leader"),
    );
    let mut engine = engines.launch(&script, port);
    let stray = written(&engines.path("stray")).await;
    let leader = written(&engines.path("leader")).await;
    let pid = |text: &str| rustix::process::Pid::from_raw(text.trim().parse().unwrap());
    let (stray_pid, leader_pid) = (pid(&stray), pid(&leader).unwrap());
    let group = rustix::process::getpgid(stray_pid).unwrap();
    assert_ne!(group, leader_pid, "it has left the engine's group");
    rustix::process::kill_process(leader_pid, rustix::process::Signal::KILL).unwrap();
    let ended = |state: &State| matches!(state, State::Restarting { .. });
    reach(&mut engine, ended).await;
    let gone = async {
        while runs(&stray) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(LONG, gone).await;
    ended.expect("the stray is killed when its engine has ended");
    engines.stop().await;
}

#[tokio::test]
async fn an_engine_told_to_restart_does_so_at_once() {
    let mut engines = Engines::new(10);
    engines.launcher.config.backoff_first_millis = 30_000;
    let script = format!("echo x >> {}; exec sleep 60", engines.path("starts"));
    let mut engine = engines.launch(&script, free_port());
    written(&engines.path("starts")).await;
    let ended = |state: &State| matches!(state, State::Restarting { .. });
    engine.restart();
    let State::Restarting { after, .. } = reach(&mut engine, ended).await else {
        panic!("it must be restarting");
    };
    assert_eq!(after, Duration::ZERO);
    let again = async {
        while written(&engines.path("starts")).await != "x\nx\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let again = tokio::time::timeout(LONG, again).await;
    again.expect("it starts again");
    engines.stop().await;
}
