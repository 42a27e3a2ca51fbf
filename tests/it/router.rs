//! The router's promises: what is placed where, what is booked, what a lost worker takes with it.

use std::sync::Arc;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Change, Completeness, Parity, ParityScope, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::{Placement, RouteError, Router};
use kvlens::select::RouterMode;
use kvlens::select::load::Load;
use kvlens::telemetry::metrics::Metrics;

pub(crate) const SIZE: u32 = 16;

pub(crate) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a legal name")
}

pub(crate) fn record(name: &str) -> WorkerRecord {
    let mut record = WorkerRecord::new(worker(name), &format!("http://{name}"), "base");
    record.incarnation = Incarnation(1);
    record.aliases = vec!["alias".to_owned()];
    record.adapters = vec!["adapter".to_owned()];
    record.block_size = BlockSize::new(SIZE);
    record.capacity_blocks = Some(100);
    record.verdict = Verdict::Healthy;
    record.ledger.completeness = Completeness::Complete;
    record
}

fn router(mode: RouterMode, names: &[&str]) -> Arc<Router> {
    let config = RouterConfig {
        mode,
        ..RouterConfig::default()
    };
    let router = Router::new(&config, Arc::new(Metrics::default()));
    names.iter().for_each(|name| up(&router, record(name)));
    router
}

pub(crate) fn up(router: &Router, record: WorkerRecord) {
    router.apply(Update::Change(Change::Up(Box::new(record))));
}

pub(crate) fn stored(router: &Router, name: &str, sequence: u64, hashes: &[u64]) {
    router.apply(Update::Kv(KvEvent {
        worker: worker(name),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: Vec::new(),
        stored: hashes.iter().copied().map(SequenceHash).collect(),
        lower: Tiers::default(),
    }));
}

/// A prompt of these blocks and one token more.
pub(crate) fn footprint(hashes: &[u64]) -> Footprint {
    let prompt_tokens = hashes.len() as u32 * SIZE + 1;
    let size = BlockSize::new(SIZE).expect("16 is not zero");
    Footprint {
        hashes: vec![(size, hashes.iter().copied().map(SequenceHash).collect())],
        ..Footprint::new("base", prompt_tokens)
    }
}

pub(crate) fn place(router: &Arc<Router>, hashes: &[u64]) -> Placement {
    router
        .place(&footprint(hashes), &Wish::default())
        .expect("a worker")
}

fn load(router: &Router, name: &str) -> Load {
    let workers = router.workers();
    workers
        .iter()
        .find(|view| view.record.worker.as_str() == name)
        .expect("known")
        .load[0]
}

#[test]
fn a_prompt_goes_to_the_holder_of_its_blocks() {
    let router = router(RouterMode::Kv, &["a", "b"]);
    stored(&router, "b", 0, &[1, 2, 3]);
    for _ in 0..4 {
        let placement = place(&router, &[1, 2, 3, 4]);
        assert_eq!(placement.worker, worker("b"));
        assert_eq!((placement.overlap_blocks, placement.prompt_blocks), (3, 4));
        assert_eq!(&*placement.address, "http://b");
    }
    // A hole ends the overlap: block 9 is not held, so block 3 behind it is of no use.
    assert_eq!(place(&router, &[1, 9, 3]).overlap_blocks, 1);
}

#[test]
fn an_engine_that_has_not_said_its_block_size_has_that_of_the_others() {
    let router = router(RouterMode::Kv, &["a"]);
    let untold = WorkerRecord {
        block_size: None,
        ..record("b")
    };
    up(&router, untold);
    stored(&router, "b", 0, &[1, 2, 3]);
    for _ in 0..4 {
        let placement = place(&router, &[1, 2, 3, 4]);
        assert_eq!(placement.worker, worker("b"));
        assert_eq!((placement.overlap_blocks, placement.prompt_blocks), (3, 4));
    }
}

#[test]
fn the_last_token_is_never_counted_as_cached() {
    let router = router(RouterMode::Kv, &["a"]);
    stored(&router, "a", 0, &[1, 2, 3]);
    let whole = Footprint {
        prompt_tokens: 3 * SIZE,
        text_tokens: 3 * SIZE,
        ..footprint(&[1, 2, 3])
    };
    let placement = router.place(&whole, &Wish::default()).unwrap();
    assert_eq!((placement.overlap_blocks, placement.prompt_blocks), (2, 3));
}

#[test]
fn a_booking_is_there_before_the_answer_and_gone_with_its_drop() {
    let router = router(RouterMode::Kv, &["a"]);
    let first = place(&router, &[1, 2]);
    assert_eq!(
        load(&router, "a"),
        Load {
            prefill_tokens: 33,
            decode_blocks: 3,
            output_blocks: 0,
            requests: 1
        }
    );
    first.booking.first_token();
    assert_eq!(
        load(&router, "a"),
        Load {
            prefill_tokens: 0,
            decode_blocks: 3,
            output_blocks: 0,
            requests: 1
        }
    );
    drop(first);
    assert_eq!(load(&router, "a"), Load::default());
}

#[test]
fn identical_requests_at_once_do_not_scatter_and_different_ones_do() {
    let router = router(RouterMode::Kv, &["a", "b"]);
    let blocks: Vec<u64> = (1..=20).collect();
    let first = place(&router, &blocks);
    first.booking.first_token();
    let mut held = vec![first];
    held.extend((0..2).map(|_| place(&router, &blocks)));
    assert_eq!(held[1].overlap_blocks, 20); // what is in flight there is as good as held
    assert!(
        held.iter()
            .all(|placement| placement.worker == held[0].worker)
    );
    let other = place(&router, &[77, 78, 79]);
    assert_ne!(other.worker, held[0].worker);
    drop(held);
    assert_eq!(place(&router, &blocks).overlap_blocks, 0); // no event ever confirmed them
}

#[test]
fn modes_other_than_kv_do_not_look_at_caches() {
    let router = router(RouterMode::RoundRobin, &["a", "b"]);
    stored(&router, "a", 0, &[1, 2, 3]);
    let turns: Vec<String> = (0..4)
        .map(|_| place(&router, &[1, 2, 3]).worker.to_string())
        .collect();
    assert_eq!(turns, ["a", "b", "a", "b"]);
}

#[test]
fn names_stand_for_models_and_adapters() {
    let router = router(RouterMode::Kv, &["a"]);
    assert_eq!(router.model_names(), ["base", "alias", "adapter"]);
    assert_eq!(router.model("alias").unwrap().adapter, None);
    assert_eq!(router.model("alias").unwrap().base, "base".into());
    assert_eq!(
        router.model("adapter").unwrap().adapter,
        Some("adapter".into())
    );
    assert_eq!(router.model("other"), None);
    let missing = Footprint {
        model: "other".into(),
        ..footprint(&[1])
    };
    let error = router.place(&missing, &Wish::default()).unwrap_err();
    assert_eq!(
        error,
        RouteError::UnknownModel {
            model: "other".to_owned()
        }
    );
}

#[test]
fn workers_that_cannot_take_requests_get_none() {
    let router = router(RouterMode::Kv, &["a", "b"]);
    stored(&router, "a", 0, &[1, 2]);
    assert_eq!(
        router
            .place(&footprint(&[1, 2]), &Wish::without(&[worker("a")]))
            .unwrap()
            .worker,
        worker("b")
    );
    router.refused(&worker("a"));
    assert_eq!(place(&router, &[1, 2]).worker, worker("b"));
    up(
        &router,
        WorkerRecord {
            verdict: Verdict::Draining,
            ..record("b")
        },
    );
    let error = router
        .place(&footprint(&[1, 2]), &Wish::without(&[worker("a")]))
        .unwrap_err();
    assert!(
        matches!(error, RouteError::NoEligibleWorker { workers: 2, .. }),
        "{error}"
    );
    let reasons: Vec<_> = router
        .explain(&footprint(&[1]), &Wish::default())
        .into_iter()
        .map(|view| view.not_eligible)
        .collect();
    let open = "circuit open: it refused a connection";
    assert_eq!(reasons, [Some(open), Some("it finishes what it has")]);
}

#[test]
fn a_lost_worker_takes_its_blocks_and_bookings_along() {
    let router = router(RouterMode::Kv, &["a", "b"]);
    stored(&router, "a", 0, &[1, 2]);
    let placed = place(&router, &[1, 2]);
    router.apply(Update::Change(Change::Down(worker("a"))));
    stored(&router, "a", 1, &[3]); // a straggler of the dead
    drop(placed);
    let again = place(&router, &[1, 2]);
    assert_eq!((again.worker, again.overlap_blocks), (worker("b"), 0));
    up(&router, record("a"));
    assert_eq!(load(&router, "a"), Load::default());
    assert_eq!(router.workers()[0].indexed_blocks, 0);
}

#[test]
fn explain_books_nothing_and_shows_the_choice() {
    let router = router(RouterMode::Kv, &["a", "b"]);
    stored(&router, "b", 0, &[1, 2, 3]);
    let views = router.explain(&footprint(&[1, 2, 3]), &Wish::default());
    let rows: Vec<_> = views.iter().map(|v| (v.overlap_blocks, v.chosen)).collect();
    assert_eq!(rows, [(0, false), (3, true)]);
    assert!(views[1].cost.total < views[0].cost.total);
    assert_eq!(load(&router, "b"), Load::default());
}

#[test]
fn each_block_size_is_looked_up_by_its_own_hashes() {
    let router = router(RouterMode::Kv, &["a"]);
    let large = BlockSize::new(32).unwrap();
    up(
        &router,
        WorkerRecord {
            block_size: Some(large),
            ..record("b")
        },
    );
    stored(&router, "b", 0, &[500]);
    let mut asked = footprint(&[1, 2]);
    asked.hashes.push((large, [SequenceHash(500)].into()));
    let placement = router.place(&asked, &Wish::default()).unwrap();
    assert_eq!(
        (placement.worker, placement.overlap_blocks),
        (worker("b"), 1)
    );
    assert_eq!(placement.block_size, large);
}

#[test]
fn blocks_that_parity_cannot_vouch_for_do_not_count() {
    let mut prompt = footprint(&[1, 2, 3, 4]);
    prompt.text_tokens = 2 * SIZE + 5;
    let failed = |scope| Parity::Failed {
        scope,
        reason: "token 7 differs".to_owned(),
    };
    for (parity, overlap_blocks) in [
        (Parity::Unchecked, 4),
        (failed(ParityScope::Media), 2),
        (failed(ParityScope::Text), 0),
        (Parity::Exact, 4),
    ] {
        let router = router(RouterMode::Kv, &["a"]);
        stored(&router, "a", 0, &[1, 2, 3, 4]);
        let mut record = record("a");
        record.parity = parity.clone();
        up(&router, record);
        let placement = router.place(&prompt, &Wish::default()).unwrap();
        assert_eq!(placement.overlap_blocks, overlap_blocks, "{parity:?}");
    }
}

#[test]
fn an_engine_that_is_away_ends_what_is_in_flight_and_comes_back_with_its_blocks() {
    let router = router(RouterMode::Kv, &["a"]);
    stored(&router, "a", 0, &[1, 2]);
    for (verdict, is_cut) in [(Verdict::Draining, false), (Verdict::Failed, true)] {
        let placement = place(&router, &[1, 2]);
        let mut away = record("a");
        away.verdict = verdict;
        up(&router, away);
        assert_eq!(placement.gone.is_cancelled(), is_cut, "{verdict:?}");
        let refused = router
            .place(&footprint(&[1]), &Wish::default())
            .unwrap_err();
        assert!(matches!(refused, RouteError::NoEligibleWorker { .. }));
        up(&router, record("a"));
        let placement = place(&router, &[1, 2]);
        assert!(!placement.gone.is_cancelled());
        assert_eq!(placement.overlap_blocks, 2);
    }
}

#[test]
fn a_block_stored_since_the_booking_is_not_disproved() {
    let metrics = Arc::new(Metrics::default());
    let router = Router::new(&RouterConfig::default(), metrics.clone());
    let counted = |ledger: &str| {
        let name = format!("kvlens_overlap_disproved_blocks_total{{ledger=\"{ledger}\"}} ");
        let page = metrics.encode();
        let count = page.lines().find_map(|line| line.strip_prefix(&name));
        count.map_or(0, |count| count.parse::<u64>().expect("a number"))
    };
    let mut partial = record("a");
    partial.ledger.completeness = Completeness::Partial;
    up(&router, partial);
    stored(&router, "a", 0, &[1, 2, 3, 4]);
    let placement = place(&router, &[1, 2, 3, 4]);
    assert_eq!(placement.overlap_blocks, 4);
    stored(&router, "a", 1, &[3]);
    placement.booking.found_cached(1);
    assert_eq!(counted("partial"), 2, "2 and 4");
    drop(placement);
    // What only other requests in flight vouched for was never the index's word.
    let first = place(&router, &[7, 8]);
    let second = place(&router, &[7, 8]);
    assert_eq!(second.overlap_blocks, 2);
    second.booking.found_cached(0);
    assert_eq!((counted("partial"), counted("complete")), (2, 0));
    assert_eq!(
        router.workers()[0].indexed_blocks,
        4,
        "all was computed anew"
    );
    drop((first, second));
    assert_eq!(load(&router, "a"), Load::default());
}

#[test]
fn workers_with_partial_ledgers_are_counted_while_they_are() {
    let metrics = Arc::new(Metrics::default());
    let router = Router::new(&RouterConfig::default(), metrics.clone());
    let steps = [
        ("a", Completeness::Partial, 1),
        ("b", Completeness::Partial, 2),
        ("a", Completeness::Complete, 1),
    ];
    let counted = |count: u64| {
        let line = format!("kvlens_partial_ledgers {count}");
        metrics.encode().lines().any(|found| found == line)
    };
    for (name, completeness, count) in steps {
        let mut record = record(name);
        record.ledger.completeness = completeness;
        up(&router, record);
        assert!(counted(count), "after {name} {completeness:?}");
    }
    router.apply(Update::Change(Change::Down(worker("b"))));
    assert!(counted(0));
}
