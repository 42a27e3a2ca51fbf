//! An agent that has the model's files holds its engine's prompts against ours.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use http::StatusCode;
use kvlens::discovery::{Parity, ParityScope};
use kvlens::id::WorkerId;
use kvlens::model::Model;
use kvlens::telemetry::metrics::Metrics;
use kvlens::worker::parity::Check;
use kvlens::worker::spec::AgentSpec;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::mock_client::Mock;

/// What an agent beside the engine at `address` finds, and the metrics after it.
async fn found(address: String, model: Model) -> (Parity, String) {
    let worker = WorkerId::new("w").expect("a legal id");
    let spec = AgentSpec {
        files: Some(Arc::new(model)),
        ..AgentSpec::new(worker, &address, "base")
    };
    let metrics = Metrics::default();
    let mut check = Check::start(&spec, &["base".to_owned()]);
    let found = timeout(Duration::from_secs(20), check.outcome(&metrics)).await;
    (found.expect("in time"), metrics.encode())
}

fn failures(metrics: &str) -> &str {
    let name = "kvlens_parity_failures_total{check=\"registration\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the metric")
}

#[tokio::test]
async fn an_engines_prompts_are_ours_or_said_to_differ() {
    for (words, wanted) in [
        ("", None),
        ("--fault served-expansion", None),
        (
            "--fault tokens",
            Some((ParityScope::Text, "prompt with text alone: ")),
        ),
        (
            "--fault expansion",
            Some((ParityScope::Media, "prompt with one image: ")),
        ),
    ] {
        let mock = Mock::start(words).await;
        let model = Model::demo().expect("the demo model");
        let (parity, metrics) = found(mock.url(""), model).await;
        match (parity, wanted) {
            (Parity::Exact, None) => assert_eq!(failures(&metrics), "0"),
            (Parity::Failed { scope, reason }, Some((wanted, start))) => {
                assert_eq!(scope, wanted, "{words}: {reason}");
                assert!(reason.starts_with(start), "{reason}");
                assert!(
                    reason.contains(" here and ") && reason.contains("(lengths "),
                    "{reason}"
                );
                assert_eq!(failures(&metrics), "1");
            }
            (parity, _) => panic!("{words}: {parity:?}"),
        }
        mock.end().await;
    }
}

/// An engine with nothing but health, a model and these answers of /tokenize.
async fn engine(status: StatusCode, answer: &'static str) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let routes = Router::new()
        .route("/health", get(|| async { "" }))
        .route(
            "/v1/models",
            get(|| async { r#"{"data": [{"id": "base"}]}"# }),
        )
        .route("/tokenize", post(move || async move { (status, answer) }));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, routes).await.expect("serve") });
    (address, tasks)
}

#[tokio::test]
async fn an_engine_that_cannot_tell_is_unchecked() {
    for (status, answer) in [
        (StatusCode::NOT_FOUND, "{\"detail\": \"Not Found\"}"),
        (StatusCode::METHOD_NOT_ALLOWED, ""),
        (
            StatusCode::BAD_REQUEST,
            "{\"error\": \"prompt is missing\"}",
        ),
    ] {
        let (address, _engine) = engine(status, answer).await;
        let spec_model = Model::demo().expect("the demo model");
        let (parity, metrics) = found(address, spec_model).await;
        assert_eq!(parity, Parity::Unchecked, "{status}");
        assert_eq!(failures(&metrics), "0");
    }
    // The files may have no template: nothing of ours could be compared.
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("config.json", "{}");
    write(
        "tokenizer.json",
        include_str!("../../src/model/demo/tokenizer.json"),
    );
    let model = Model::load(folder.path()).unwrap();
    let (address, _engine) = engine(StatusCode::OK, "{\"tokens\": [1, 2]}").await;
    assert_eq!(found(address, model).await.0, Parity::Unchecked);
    // With the demo's, the same answer is a difference.
    let (address, _engine) = engine(StatusCode::OK, "{\"tokens\": [1, 2]}").await;
    let (parity, _) = found(address, Model::demo().unwrap()).await;
    assert!(matches!(
        parity,
        Parity::Failed {
            scope: ParityScope::Text,
            ..
        }
    ));
}
