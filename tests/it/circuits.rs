//! Workers that fail get no requests for a while, and wishes for one of them are followed or refused.

use std::sync::Arc;

use kvlens::block::BlockSize;
use kvlens::config::circuit::CircuitConfig;
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Change, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::view::CircuitView;
use kvlens::router::{Placement, RouteError, Router};
use kvlens::telemetry::metrics::Metrics;

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a legal name")
}

fn record(name: &str) -> WorkerRecord {
    let mut record = WorkerRecord::new(worker(name), &format!("http://{name}"), "base");
    record.incarnation = Incarnation(1);
    record.block_size = BlockSize::new(16);
    record.ranks = 2;
    record.verdict = Verdict::Healthy;
    record
}

fn up(router: &Router, record: WorkerRecord) {
    router.apply(Update::Change(Change::Up(Box::new(record))));
}

/// A router whose pauses outlast every test.
fn router(names: &[&str]) -> (Arc<Router>, Arc<Metrics>) {
    let config = RouterConfig {
        circuit: CircuitConfig {
            failures_max: 2,
            pause_secs: 3_600,
            pause_secs_max: 3_600,
        },
        ..RouterConfig::default()
    };
    let metrics = Arc::new(Metrics::default());
    let router = Router::new(&config, metrics.clone());
    names.iter().for_each(|name| up(&router, record(name)));
    (router, metrics)
}

fn place(router: &Arc<Router>, wish: &Wish) -> Result<Placement, RouteError> {
    router.place(&Footprint::new("base", 33), wish)
}

fn placed(router: &Arc<Router>) -> Option<String> {
    let placement = place(router, &Wish::default()).ok()?;
    Some(placement.worker.to_string())
}

fn states(router: &Router) -> Vec<&'static str> {
    let workers = router.workers().into_iter();
    let state = |circuit| match circuit {
        CircuitView::Closed => "closed",
        CircuitView::Open {
            since,
            until,
            cause,
        } => {
            assert!(since < until && since.ends_with('Z') && !cause.is_empty());
            "open"
        }
        CircuitView::HalfOpen { .. } => "half_open",
    };
    workers.map(|view| state(view.circuit)).collect()
}

#[test]
fn a_worker_that_fails_gets_none_until_it_has_answered() {
    let (router, metrics) = router(&["a", "b"]);
    router.failed(&worker("a"));
    assert_eq!(states(&router), ["closed", "closed"], "once is chance");
    router.failed(&worker("a"));
    assert_eq!(states(&router), ["open", "closed"]);
    for _ in 0..4 {
        assert_eq!(placed(&router).as_deref(), Some("b"));
    }
    let explained = router.explain(&Footprint::new("base", 33), &Wish::default());
    let reasons: Vec<_> = explained.iter().map(|view| view.not_eligible).collect();
    let open = Some("circuit open: requests failed one after the other");
    assert_eq!(reasons, [open, open, None, None]);
    assert!(explained[2].chosen || explained[3].chosen);
    router.succeeded(&worker("a"));
    assert_eq!(states(&router), ["closed", "closed"]);
    let page = metrics.encode();
    assert!(
        page.contains("\nkvlens_circuit_openings_total 1\n"),
        "{page}"
    );
}

#[test]
fn where_all_are_open_each_is_tried_by_one_request_at_a_time() {
    let (router, _) = router(&["a", "b"]);
    router.refused(&worker("b"));
    router.refused(&worker("a"));
    // The one that was tried least lately first.
    let first = place(&router, &Wish::default()).unwrap();
    assert_eq!(first.worker, worker("b"));
    assert_eq!(states(&router), ["open", "half_open"]);
    let second = place(&router, &Wish::default()).unwrap();
    assert_eq!(second.worker, worker("a"));
    let error = place(&router, &Wish::default()).unwrap_err();
    assert!(
        matches!(error, RouteError::NoEligibleWorker { workers: 4, .. }),
        "{error}"
    );
    // Its client went away: another request may try it.
    drop(second);
    assert_eq!(placed(&router).as_deref(), Some("a"));
    router.succeeded(&first.worker);
    assert_eq!(states(&router), ["open", "closed"]);
    assert_eq!(placed(&router).as_deref(), Some("b"));
}

#[test]
fn a_process_does_not_answer_for_the_one_before() {
    let (router, _) = router(&["a"]);
    router.refused(&worker("a"));
    up(&router, record("a"));
    assert_eq!(states(&router), ["open"]);
    let next = WorkerRecord {
        incarnation: Incarnation(2),
        ..record("a")
    };
    up(&router, next);
    assert_eq!(states(&router), ["closed"]);
}

#[test]
fn wishes_are_followed_or_refused() {
    let (router, _) = router(&["a", "b", "c"]);
    let draining = WorkerRecord {
        verdict: Verdict::Draining,
        ..record("c")
    };
    up(&router, draining);
    let wish = |name: Option<&str>, rank: Option<u32>| Wish {
        worker: name.map(worker),
        rank: rank.map(DpRank),
        ..Wish::default()
    };
    for (name, rank) in [(Some("a"), None), (Some("b"), Some(1)), (None, Some(1))] {
        for _ in 0..3 {
            let placement = place(&router, &wish(name, rank)).unwrap();
            assert!(name.is_none_or(|name| placement.worker == worker(name)));
            assert!(rank.is_none_or(|rank| placement.rank == DpRank(rank)));
        }
    }
    for (name, rank, expected) in [
        (Some("d"), None, "no worker d serves the model"),
        (
            Some("a"),
            Some(2),
            "no worker that was asked for has a rank 2",
        ),
        (None, Some(2), "no worker that was asked for has a rank 2"),
        (
            Some("c"),
            None,
            "worker c takes no requests now: it finishes what it has",
        ),
    ] {
        let error = place(&router, &wish(name, rank)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    // Once it has failed, it is not tried again, and nobody in its place.
    let failed = Wish {
        excluded: vec![worker("a")],
        ..wish(Some("a"), None)
    };
    let error = place(&router, &failed).unwrap_err();
    assert!(
        matches!(error, RouteError::NoEligibleWorker { .. }),
        "{error}"
    );
}
