//! Requests to an engine's gate over the bus, and what is lost on the way.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use kvlens::bus::{Bus, subjects};
use kvlens::config::frontend::LimitsConfig;
use kvlens::config::nats::NatsConfig;
use kvlens::config::network::Network;
use kvlens::dispatch::plane::BusPlane;
use kvlens::dispatch::{DispatchError, EngineClient, GATE_NOT_FETCHED};
use kvlens::engine::requests::Requests;
use kvlens::http::Limits;
use kvlens::id::RequestId;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::bus::server::Server;
use crate::end_to_end::stack::until;

use crate::bus::gated::{NOBODY, PATIENCE, Party, asked, causes, json_of, request, told, worker};

#[tokio::test]
async fn a_request_and_its_answer_come_whole() {
    let party = Party::start().await;
    let body = Bytes::from_static(b"{\"a\": 1}");
    let answer = told(&party.client, body.clone()).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.headers["x-mine"], "kept");
    assert_eq!(answer.headers.get("content-length"), None);
    let expected = json!({"id": "r-1", "rank": "3", "type": "application/json",
        "digest": blake3::hash(&body).to_string()});
    assert_eq!(json_of(answer).await, expected);

    // Some are larger than a message, and all are more than may be on their way.
    let wish = json!({"pieces": 500, "bytes": 40_000});
    let id = RequestId::from_client("r-1").expect("an id");
    let direct = request("/v1/completions", wish.to_string(), &id);
    let direct = party.client.send(&party.engine.address, direct).await;
    let direct = direct
        .expect("an answer")
        .whole()
        .await
        .expect("a whole one");
    assert!(direct.len() > 5 << 20, "{}", direct.len());
    let answer = asked(&party.client, &wish).await.expect("an answer");
    assert!(answer.whole().await.expect("a whole one") == direct);
    assert_eq!(party.gate.in_flight(), 0);
}

#[tokio::test]
async fn the_servers_rules_that_we_ship_let_requests_through() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/nats.conf");
    let text = std::fs::read_to_string(path).expect("it is there");
    let at = text.find("\nauthorization {").expect("it has rules");
    let names = [("@worker@", "w"), ("@frontend@", "f"), ("@router@", "r")];
    let rules = names
        .iter()
        .fold(text[at..].to_owned(), |text, (mark, name)| {
            text.replace(mark, name)
        });
    let server = Server::configured(&rules).await;
    let folder = tempfile::tempdir().expect("a folder");
    let connected = async |user: &str, password: &str| {
        let path = folder.path().join(user);
        std::fs::write(&path, password).expect("a file");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, private).expect("ours");
        let config = NatsConfig {
            user: Some(user.to_owned()),
            password_file: Some(path),
            ..server.config()
        };
        let bus = Bus::connect(&config, user).await.expect("files");
        until("the bus is up", async || bus.is_up()).await;
        bus
    };
    let of_gate = connected("engine-w", "@engine_password@").await;
    let of_frontend = connected("frontend-f", "@frontend_password@").await;
    let of_router = connected("router-r", "@router_password@").await;
    let party = Party::over(server, (of_gate, of_frontend), &[]).await;
    let wish = json!({"pieces": 300, "bytes": 40_000});
    let answer = asked(&party.client, &wish).await.expect("an answer");
    assert!(answer.whole().await.expect("a whole one").len() > 3 << 20);
    let endless = json!({"pieces": 1_000_000, "bytes": 99, "pause_millis": 5});
    let answer = asked(&party.client, &endless).await.expect("an answer");
    party.until_open(1).await;
    drop(answer);
    party.until_open(0).await;
    // A router asks itself whether it answers, and where it does not, whether the bus does.
    let own = subjects::place("r");
    let mut questions = of_router.listen(own.clone()).await.expect("it listens");
    let mut answers = of_router.ask(own, &()).await.expect("it is asked");
    let question = timeout(PATIENCE, questions.next()).await;
    let reply = question.expect("in time").and_then(|heard| heard.reply);
    let reply = reply.expect("somewhere to answer to");
    of_router
        .send(reply, None, Bytes::new())
        .await
        .expect("it goes out");
    answers.next(PATIENCE).await.expect("its own answer");
    assert!(of_router.echoes(PATIENCE).await);
    // And an engine whether it is well.
    let (plane, _telling) = BusPlane::new(of_router);
    let router = EngineClient::new().over(plane);
    let health = router.look((&worker(), NOBODY), "/health", PATIENCE).await;
    assert_eq!(health.expect("an answer").0, StatusCode::OK);
}

#[tokio::test]
async fn only_the_gates_paths_pass_and_none_while_it_drains() {
    let party = Party::start().await;
    let (worker, id) = (worker(), RequestId::from_client("r-1").expect("an id"));
    let reset = request("/reset_prefix_cache", "{}", &id);
    let answer = party.client.ask((&worker, NOBODY), reset).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(json_of(answer).await["error"]["code"], "not_found");
    party.gate.set_draining(true);
    let answer = told(&party.client, Bytes::new()).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json_of(answer).await["error"]["code"], "draining");
}

#[tokio::test]
async fn whoever_leaves_aborts_the_request_in_the_engine() {
    let party = Party::start().await;
    let endless = json!({"pieces": 1_000_000, "bytes": 99, "pause_millis": 5});
    let mut answer = asked(&party.client, &endless).await.expect("an answer");
    answer.chunk().await.expect("a chunk").expect("a chunk");
    party.until_open(1).await;
    assert_eq!(party.gate.in_flight(), 1);
    drop(answer);
    party.until_open(0).await;
    until("nothing is in flight", async || party.gate.in_flight() == 0).await;

    // Gone before the head was there.
    let slow = json!({"pieces": 1, "bytes": 99, "pause_millis": 60_000});
    let asking = timeout(Duration::from_millis(300), asked(&party.client, &slow)).await;
    drop(asking);
    party.until_open(0).await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_engine_up_and_loses_nothing() {
    let party = Party::start().await;
    let wish = json!({"pieces": 3_000, "bytes": 30_000});
    let mut answer = asked(&party.client, &wish).await.expect("an answer");
    let given = || party.engine.given.load(Ordering::SeqCst);
    until("the engine waits", async || {
        let before = given();
        sleep(Duration::from_millis(300)).await;
        before > 0 && given() == before
    })
    .await;
    let before = given();
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(given(), before, "nothing more is made meanwhile");
    assert!(before < 2_900, "{before} of 3000 pieces");
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await {
        bytes += chunk.expect("a chunk").len() as u64;
    }
    assert_eq!(
        bytes,
        (0..3_000).map(|at| (at * 7_919) % 30_000 + 1).sum::<u64>()
    );
}

#[tokio::test]
async fn an_engine_that_breaks_off_is_told_from_one_that_is_silent() {
    let party = Party::start().await;
    let breaks = json!({"pieces": 3, "bytes": 99, "breaks": true, "pause_millis": 20});
    let mut answer = asked(&party.client, &breaks).await.expect("an answer");
    let mut chunks = 0;
    let error = loop {
        match answer.chunk().await.expect("no proper end") {
            Ok(_) => chunks += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, DispatchError::CutAnswer { .. }), "{error}");
    assert!(causes(&error).contains("broke off"), "{}", causes(&error));
    assert_eq!(chunks, 3);

    // Longer than a side may be silent.
    let slow = json!({"pieces": 1, "bytes": 99, "pause_millis": 6_500});
    let slow = asked(&party.client, &slow);
    // One whose reader says nothing is dropped, and one whose gate says nothing.
    let (mute, _telling) = BusPlane::new(party.bus.clone());
    let mute = EngineClient::new().over(mute);
    let endless = json!({"pieces": 1_000_000, "bytes": 9, "pause_millis": 3_000});
    let muted = asked(&mute, &endless);
    let (slow, muted) = tokio::join!(slow, muted);
    assert_eq!(
        slow.expect("an answer").whole().await.expect("whole").len(),
        1
    );
    party.until_open(0).await;
    drop(muted);
}

#[tokio::test]
async fn a_gate_that_is_gone_is_noticed() {
    let mut party = Party::start().await;
    let endless = json!({"pieces": 1_000_000, "bytes": 99, "pause_millis": 50});
    let mut answer = asked(&party.client, &endless).await.expect("an answer");
    answer.chunk().await.expect("a chunk").expect("a chunk");
    party.gate_tasks.shutdown().await;
    party.until_open(0).await;
    let since = Instant::now();
    let refused = asked(&party.client, &endless).await.expect_err("nobody");
    assert!(
        matches!(refused, DispatchError::Refused { .. }),
        "{refused:?}"
    );
    assert!(since.elapsed() < Duration::from_secs(2), "at once");
    let error = loop {
        match answer.chunk().await.expect("no proper end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, DispatchError::CutAnswer { .. }), "{error}");
    assert!(
        since.elapsed() < Duration::from_secs(9),
        "{:?}",
        since.elapsed()
    );

    // No engine is to blame for a bus that goes, or is away.
    let party = Party::start().await;
    let mut answer = asked(&party.client, &endless).await.expect("an answer");
    party.server.kill().await;
    let since = Instant::now();
    let error = loop {
        match answer.chunk().await.expect("no proper end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, DispatchError::CutPlane { .. }), "{error}");
    assert!(since.elapsed() < Duration::from_secs(2), "at once");
    let open = || party.engine.open.load(Ordering::SeqCst);
    until("the engine is let go", async || open() == 0).await;
    until("the bus is away", async || !party.bus.is_up()).await;
    let error = asked(&party.client, &endless).await.expect_err("no bus");
    assert!(matches!(error, DispatchError::Plane { .. }), "{error:?}");
}

#[tokio::test]
async fn a_gate_that_is_back_after_us_is_not_taken_for_gone() {
    let mut party = Party::start().await;
    party.gate_tasks.shutdown().await;
    let port = party.server.kill().await;
    party.server = Server::again(port).await;
    let of_gate = party.server.bus("w").await;
    until("the bus is up", async || party.bus.is_up()).await;
    let limits = Limits::from(&LimitsConfig::default());
    let requests = Requests::new(party.gate.clone(), (of_gate, worker()), limits, &[]);
    let late = async {
        sleep(Duration::from_millis(400)).await;
        party
            .gate_tasks
            .spawn(requests.run(CancellationToken::new()));
    };
    let body = Bytes::from_static(b"{}");
    let (answer, ()) = tokio::join!(told(&party.client, body), late);
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_body_that_is_larger_than_a_message_is_fetched() {
    let mut party = Party::start().await;
    let body = Bytes::from(vec![7; 3 << 20]);
    let error = told(&party.client, body.clone())
        .await
        .expect_err("none lent");
    let is_named = matches!(error, DispatchError::TooLarge { bytes, bytes_max }
        if bytes == 3 << 20 && bytes_max < 1 << 20);
    assert!(is_named, "{error:?}");
    let lender = party.lender().await;
    for bytes in [1_040_000, 1_044_481, 1 << 20, 3 << 20] {
        let body = body.slice(..bytes);
        let answer = told(&lender, body.clone()).await.expect("an answer");
        let digest = blake3::hash(&body).to_string();
        assert_eq!(json_of(answer).await["digest"], digest, "{bytes}");
    }

    let elsewhere = Network::parse("10.0.0.0/8").expect("a network");
    let mut party = Party::within(&[elsewhere]).await;
    let lender = party.lender().await;
    let answer = told(&lender, body).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json_of(answer).await["error"]["code"], GATE_NOT_FETCHED);
}

#[tokio::test]
async fn a_body_over_the_gates_limits_is_refused_as_over_http() {
    for (body_bytes_max, in_flight_bytes_max, status, code) in [
        (1_000, 5_000, 413, "body_too_large"),
        (2_000, 1_000, 503, "overloaded"),
    ] {
        let mut party = Party::start().await;
        party.gate_tasks.shutdown().await;
        let limits = Limits {
            body_bytes_max,
            bodies_in_flight_bytes_max: in_flight_bytes_max,
            ..Limits::from(&LimitsConfig::default())
        };
        let to = (party.server.bus("w").await, worker());
        let requests = Requests::new(party.gate.clone(), to, limits, &[]);
        party
            .gate_tasks
            .spawn(requests.run(CancellationToken::new()));
        until("the gate is asked", async || {
            told(&party.client, Bytes::new()).await.is_ok()
        })
        .await;
        let body = Bytes::from(vec![7; 1_001]);
        let answer = told(&party.client, body).await.expect("an answer");
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(json_of(answer).await["error"]["code"], code);
    }
}
