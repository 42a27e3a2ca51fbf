//! `kvlens engine` from outside: its folder, its control socket, its exit codes.

pub(crate) mod running;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use http::{Method, StatusCode};
use kvlens::gpu::{self, Gpus};
use rustix::process::Signal;
use serde_json::Value;
use zeromq::{Socket, SocketRecv, SubSocket};

use crate::engine_role::running::{Role, chat, gone, mock, read, request, written};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[tokio::test]
async fn an_engine_is_described_answers_and_leaves_nothing() {
    let folder = folder();
    let mut role = Role::start(
        &folder,
        &mock("--name demo --media-dir /media --block-size 32"),
    );
    let file = role.file().await;
    let run = role.folder();
    let mode = run.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!((file.kind.as_str(), file.name.as_str()), ("mock", "demo"));
    assert_eq!((file.model, file.public_address), (None, None));
    assert_eq!(file.media_dir, Some("/media".into()));
    assert_eq!(
        file.address,
        format!("unix:{}", run.join("http.sock").display())
    );
    let [source] = &file.sources[..] else {
        panic!("one rank has one source: {:?}", file.sources);
    };
    assert_eq!(source.events, format!("ipc://{}", run.join("kv").display()));
    assert!(!source.bind);

    let status = role.until("state", "ready").await;
    assert_eq!(
        (&status["life"], &status["worker"]),
        (&1.into(), &"w0".into())
    );
    let said = request(Method::POST, &chat(4, false), "");
    let (status, answer) = read(role.ask(&file.address, "/v1/chat/completions", said).await).await;
    assert_eq!(status, StatusCode::OK, "{answer}");

    assert_eq!(role.control("/restart").await.0, StatusCode::ACCEPTED);
    let status = role.until("life", 2).await;
    assert_eq!(status["cause"], "it was told to start again");
    assert_eq!(role.control("/drain").await.0, StatusCode::CONFLICT);

    let mut second = Role::start(&folder, &mock(""));
    assert_eq!(second.ended().await.code(), Some(1));
    let log = second.log();
    assert!(log.contains("engine w0 runs already"), "{log}");

    role.until("state", "ready").await;
    role.signal(Signal::TERM);
    assert_eq!(role.ended().await.code(), Some(0), "{}", role.log());
    assert!(!run.exists(), "the folder goes with its owner");
}

#[tokio::test]
async fn what_a_killed_role_left_is_ended_by_the_next() {
    let folder = folder();
    let pids = [folder.path().join("leader"), folder.path().join("stray")];
    // Neither ends with its standard input, and the second has left the group.
    let script = format!(
        "echo $$ > {}; setsid sh -c 'echo $$ > {}; exec sleep 600' & exec sleep 600",
        pids[0].display(),
        pids[1].display()
    );
    let words = ["--kind", "command", "--", "sh", "-c", &script].map(str::to_owned);
    let mut killed = Role::start_words(&folder, &words);
    let (leader, stray) = (written(&pids[0]).await, written(&pids[1]).await);
    killed.signal(Signal::KILL);
    killed.ended().await;
    assert!(killed.folder().join("pid").exists());

    let mut next = Role::start(&folder, &mock(""));
    next.until("state", "ready").await;
    gone(&leader).await;
    gone(&stray).await;
    next.signal(Signal::TERM);
    assert_eq!(next.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_engine_that_fails_says_why() {
    let folder = folder();
    let words = [
        "--kind",
        "command",
        "--",
        "sh",
        "-c",
        "echo no memory >&2; exit 3",
    ];
    let mut role = Role::start_words(&folder, &words.map(str::to_owned));
    let status = role.until("state", "restarting").await;
    assert_eq!(status["cause"], "it ended with exit status: 3");
    assert_eq!(status["last_lines"][0], "no memory");
    role.signal(Signal::TERM);
    assert_eq!(role.ended().await.code(), Some(0));
    let log = role.log();
    assert!(log.contains("engine wrote before its end"), "{log}");
}

#[tokio::test]
async fn what_cannot_be_run_ends_with_78() {
    let folder = folder();
    let open = folder.path().join("open.keys");
    std::fs::write(&open, "key\n").unwrap();
    let world = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&open, world).unwrap();
    let keys = format!(
        "--kind mock --listen 127.0.0.1:0 --key-file {}",
        open.display()
    );
    let bad = "--kind vllm --model tests/golden/models/qwen3_vl --";
    let half = folder.path().join("half");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("config.json"), "{}").unwrap();
    let half = half.display();
    for (words, part) in [
        ("--kind vllm", "--kind vllm needs --model"),
        ("--kind vllm --model no/such", "no/such"),
        (
            &format!("--kind vllm --model {half}"),
            "--model cannot be used: ",
        ),
        (
            &format!("--kind mock --model {half}"),
            "half/tokenizer.json is missing",
        ),
        (
            &format!("{bad} --kv-events-config x"),
            "is refused: kvlens sets it",
        ),
        ("--kind command", "engine command is empty"),
        ("--kind command -- no-such-engine", "is not found in PATH"),
        ("--kind command -- sh {prot}", "{prot}"),
        ("--kind mock --listen 0.0.0.0:0", "needs --key-file"),
        (&keys, "has mode 644"),
        ("--kind mock --block-size 0", "engine.block_size is 0"),
    ] {
        let mut role = Role::start(&folder, words);
        assert_eq!(
            role.ended().await.code(),
            Some(78),
            "{words}: {}",
            role.log()
        );
        assert!(role.log().contains(part), "{words}: {}", role.log());
    }
}

/// On a host without a driver; on another these would find one.
#[tokio::test]
async fn without_a_driver_vllm_is_refused_and_others_run() {
    if matches!(gpu::find(None), Gpus::Some(_)) {
        return;
    }
    let folder = folder();
    let model = "--model tests/golden/models/qwen3_vl";
    for gpus in ["", "--gpus 7"] {
        let mut role = Role::start(&folder, &format!("--kind vllm {model} {gpus}"));
        assert_eq!(role.ended().await.code(), Some(78), "{}", role.log());
        let log = role.log();
        assert!(log.contains("--kind vllm needs an NVIDIA GPU: "), "{log}");
    }
    let mut role = Role::start(&folder, &mock("--gpus 7"));
    let file = role.file().await;
    role.until("state", "ready").await;
    assert_eq!((file.gpus, file.pid), (Vec::new(), Some(role.pid())));
    role.signal(Signal::TERM);
    assert_eq!(role.ended().await.code(), Some(0));
}

#[tokio::test]
async fn each_rank_publishes_to_where_its_agent_listens() {
    let folder = folder();
    let role = Role::start(&folder, &mock("--ranks 2"));
    let file = role.file().await;
    assert_eq!(file.sources.len(), 2);
    let mut ranks = Vec::new();
    for source in &file.sources {
        assert!(source.bind && source.events.starts_with("tcp://127.0.0.1:"));
        let mut socket = SubSocket::new();
        socket.subscribe("").await.unwrap();
        socket.bind(&source.events).await.unwrap();
        ranks.push(socket);
    }
    role.until("state", "ready").await;
    for (rank, socket) in ranks.iter_mut().enumerate() {
        // A message may be sent before the subscription has come: each request has one of its own.
        let mut received = None;
        for number in 0..100 {
            let mut body = chat(1, false);
            body["messages"][0]["content"] = format!("{number} {}", "so it is ".repeat(20)).into();
            let mut said = request(Method::POST, &body, "");
            let value = rank.to_string().parse().unwrap();
            said.headers_mut().insert("x-data-parallel-rank", value);
            let answer = role.ask(&file.address, "/v1/chat/completions", said).await;
            assert_eq!(read(answer).await.0, StatusCode::OK);
            let next = tokio::time::timeout(Duration::from_millis(100), socket.recv()).await;
            if let Ok(Ok(message)) = next {
                received = Some(message.into_vec());
                break;
            }
        }
        let frames = received.expect("a batch");
        let batch = rmpv::decode::read_value(&mut &frames[2][..]).unwrap();
        assert_eq!(batch[2].as_u64(), Some(rank as u64), "{batch}");
    }
    let sources = role
        .client
        .get(&file.address, "/kv_event_sources", Duration::from_secs(5));
    let sources: Value = serde_json::from_slice(&sources.await.unwrap().1).unwrap();
    assert_eq!(sources["1"]["endpoint"], file.sources[1].events);
    assert_eq!(sources["1"]["replay_endpoint"], file.sources[1].replay);
}
