//! Which worker a request goes to beyond the blocks it holds: wishes, health, labels, images, and
//! caches that are only assumed.

use std::sync::Arc;

use kvlens::block::SequenceHash;
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Completeness, EngineLoad, Parity, ParityScope, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation, MediaDigest};
use kvlens::index::KvEvent;
use kvlens::ledger::change::Changes;
use kvlens::ledger::tier::Tiers;
use kvlens::router::basis::Basis;
use kvlens::router::footprint::{Footprint, Hints, MediaShare, Wish};
use kvlens::router::{RouteError, Router};
use kvlens::select::{Device, RouterMode};
use kvlens::telemetry::metrics::Metrics;

use crate::router::{SIZE, footprint, place, record, stored, up, worker};

fn router(config: &RouterConfig, records: impl IntoIterator<Item = WorkerRecord>) -> Arc<Router> {
    let router = Router::new(config, Arc::new(Metrics::default()));
    records.into_iter().for_each(|record| up(&router, record));
    router
}

fn named(name: &str) -> Wish {
    Wish {
        worker: Some(worker(name)),
        ..Wish::default()
    }
}

/// Tells what a worker holds in host memory and on disk.
fn offloaded(router: &Router, sequence: u64, host: &[u64], disk: &[u64]) {
    let changes = |hashes: &[u64]| Changes {
        removed: Vec::new(),
        stored: hashes.iter().copied().map(SequenceHash).collect(),
    };
    router.apply(Update::Kv(KvEvent {
        worker: worker("a"),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: Vec::new(),
        stored: Vec::new(),
        lower: Tiers {
            host: changes(host),
            disk: changes(disk),
        },
    }));
}

#[test]
fn blocks_behind_the_overlap_count_in_slower_tiers_too() {
    let unused = RouterConfig {
        use_kv_events: false,
        ..RouterConfig::default()
    };
    for (config, gpu, host, disk, found) in [
        (
            RouterConfig::default(),
            &[1, 2][..],
            &[3, 4, 7][..],
            &[4, 5, 6][..],
            [2, 3, 2],
        ),
        (
            RouterConfig::default(),
            &[],
            &[1],
            &[2, 3, 4, 5, 6, 7],
            [0, 1, 6],
        ),
        (RouterConfig::default(), &[1, 3], &[4], &[], [1, 0, 0]), // a hole in both
        // The last token is always computed.
        (
            RouterConfig::default(),
            &[1],
            &[2, 3, 4, 5, 6, 7, 8],
            &[],
            [1, 6, 0],
        ),
        (unused, &[1, 2], &[3], &[], [0, 0, 0]),
    ] {
        let router = router(&config, [record("a")]);
        stored(&router, "a", 0, gpu);
        offloaded(&router, 1, host, disk);
        let prompt = Footprint {
            prompt_tokens: 8 * SIZE,
            ..footprint(&[1, 2, 3, 4, 5, 6, 7, 8])
        };
        let candidate = router.explain(&prompt, &Wish::default()).remove(0);
        let counts = [
            candidate.overlap_blocks,
            candidate.host_blocks,
            candidate.disk_blocks,
        ];
        assert_eq!(counts, found, "{gpu:?} {host:?} {disk:?}");
        let placement = router.place(&prompt, &Wish::default()).expect("a");
        assert_eq!(placement.overlap_blocks, found[0]);
        assert_eq!(placement.lower_blocks, found[1] + found[2]);
        let [overlap, host, disk] = found.map(f64::from);
        let tokens = f64::from(SIZE) * (8.0 - overlap - 0.75 * host - 0.25 * disk);
        let view = router.workers().remove(0);
        assert_eq!(
            view.load[0].prefill_tokens, tokens as u64,
            "what loading takes is booked"
        );
    }
}

#[test]
fn what_a_worker_has_offloaded_is_shown_and_forgotten() {
    let router = router(&RouterConfig::default(), [record("a")]);
    stored(&router, "a", 0, &[1]);
    offloaded(&router, 1, &[1, 2], &[3]);
    let shown = || {
        let view = router.workers().remove(0);
        (view.indexed_blocks, view.host_blocks, view.disk_blocks)
    };
    assert_eq!(shown(), (1, 2, 1));
    let mut reborn = KvEvent {
        worker: worker("a"),
        rank: DpRank(0),
        incarnation: Incarnation(2),
        sequence: 0,
        cleared: false,
        removed: Vec::new(),
        stored: Vec::new(),
        lower: Tiers::default(),
    };
    reborn.lower.disk.stored.push(SequenceHash(9));
    router.apply(Update::Kv(reborn));
    assert_eq!(shown(), (0, 0, 1), "another process has another memory");
}

#[test]
fn a_named_worker_is_chosen_or_the_request_refused() {
    let mut draining = record("c");
    draining.verdict = Verdict::Draining;
    let mut ranked = record("b");
    ranked.ranks = 2;
    let router = router(&RouterConfig::default(), [record("a"), ranked, draining]);
    stored(&router, "a", 0, &[1, 2, 3]);
    let rank = |number| Wish {
        rank: Some(DpRank(number)),
        ..named("b")
    };
    for wish in [named("b"), rank(0), rank(1)] {
        let placement = router.place(&footprint(&[1, 2, 3]), &wish).expect("b");
        assert_eq!(placement.worker, worker("b"), "{wish:?}");
        assert!(wish.rank.is_none_or(|rank| placement.rank == rank));
    }
    let turns = Wish {
        mode: Some(RouterMode::RoundRobin),
        ..Wish::default()
    };
    let mut seen: Vec<_> = (0..3)
        .map(|_| router.place(&footprint(&[1, 2, 3]), &turns).expect("one"))
        .map(|placement| (placement.worker, placement.rank))
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "each rank of each worker in turn");
    let refused = |wish: &Wish| router.place(&footprint(&[1]), wish).expect_err("refused");
    assert!(matches!(
        refused(&named("x")),
        RouteError::WorkerNotFound { .. }
    ));
    assert!(matches!(refused(&rank(2)), RouteError::RankNotFound { .. }));
    let unavailable = refused(&named("c"));
    assert!(
        matches!(
            &unavailable,
            RouteError::WorkerUnavailable { reason, .. } if reason == "it finishes what it has"
        ),
        "{unavailable}"
    );
    let excluded = Wish {
        excluded: vec![worker("b")],
        ..named("b")
    };
    assert!(matches!(
        refused(&excluded),
        RouteError::NoEligibleWorker { .. }
    ));
    let direct = Wish {
        mode: Some(RouterMode::Direct),
        ..Wish::default()
    };
    assert_eq!(refused(&direct), RouteError::WorkerNotNamed);
}

#[test]
fn degraded_and_unloved_workers_get_requests_only_for_what_they_hold() {
    let mut degraded = record("a");
    degraded.verdict = Verdict::Degraded;
    let mut labelled = record("a");
    labelled.labels = vec!["slow".to_owned()];
    let avoiding = RouterConfig {
        preferred_labels: vec!["slow = -0.3".to_owned()],
        ..RouterConfig::default()
    };
    for (config, other) in [(RouterConfig::default(), degraded), (avoiding, labelled)] {
        let router = router(&config, [other, record("b")]);
        for _ in 0..8 {
            assert_eq!(place(&router, &[7, 8, 9]).worker, worker("b"));
        }
        let long: Vec<u64> = (100..140).collect();
        stored(&router, "a", 0, &long);
        assert_eq!(
            place(&router, &long).worker,
            worker("a"),
            "it holds forty blocks"
        );
    }
}

#[test]
fn cpus_get_their_share() {
    let mut cpu = record("cpu");
    cpu.device = Device::Cpu;
    let config = RouterConfig {
        mode: RouterMode::DeviceAwareWeighted,
        ..RouterConfig::default()
    };
    let router = router(&config, [record("gpu"), cpu]);
    let placed: Vec<_> = (0..27).map(|number| place(&router, &[number])).collect();
    let on_cpu = placed.iter().filter(|p| p.worker == worker("cpu")).count();
    assert_eq!(on_cpu, 3, "one in nine");
}

#[test]
fn an_image_goes_where_it_was_encoded_though_the_text_before_it_differs() {
    let router = router(&RouterConfig::default(), ["a", "b", "c"].map(record));
    let with_image = |text: u64, image: u8| Footprint {
        media: [MediaShare {
            digest: MediaDigest([image; 32]),
            start: SIZE,
            tokens: 4 * SIZE,
        }]
        .into(),
        ..footprint(&[text, text + 1, text + 2, text + 3, text + 4])
    };
    let place = |text, image| {
        let placed = router.place(&with_image(text, image), &Wish::default());
        placed.expect("a worker").worker
    };
    let homes: Vec<_> = (1..9)
        .map(|image| place(1_000 * u64::from(image), image))
        .collect();
    for (image, home) in (1..9).zip(&homes) {
        for again in 1..6 {
            let text = 1_000 * u64::from(image) + 100 * again;
            assert_eq!(place(text, image), *home, "image {image}");
        }
    }
    let views = router.explain(&with_image(77, 1), &Wish::default());
    let encoded: Vec<_> = views.iter().map(|view| view.encoded_tokens).collect();
    assert_eq!(encoded.iter().sum::<u32>(), 4 * SIZE, "{views:?}");
    // Another process of that name has encoded nothing.
    let mut anew = record(homes[0].as_str());
    anew.incarnation = Incarnation(2);
    up(&router, anew);
    let views = router.explain(&with_image(77, 1), &Wish::default());
    assert!(views.iter().all(|view| view.encoded_tokens == 0));
}

#[test]
fn without_events_what_was_sent_is_assumed_to_be_there() {
    let unused = RouterConfig {
        use_kv_events: false,
        ..RouterConfig::default()
    };
    let events = RouterConfig::default();
    let change = |change: fn(&mut WorkerRecord)| {
        ["a", "b"].map(|name| {
            let mut record = record(name);
            change(&mut record);
            record
        })
    };
    let plain = || change(|_| {});
    let unfollowed = || change(|record| record.ledger.is_followed = false);
    let silent = || change(|record| record.ledger.completeness = Completeness::Partial);
    let parity = || {
        change(|record| {
            record.parity = Parity::Failed {
                scope: ParityScope::Text,
                reason: "token 3 differs".to_owned(),
            };
        })
    };
    for (config, records, basis, overlap_blocks) in [
        (&events, plain(), Basis::Events, 0),
        (&unused, plain(), Basis::EventsUnused, 3),
        (&events, unfollowed(), Basis::Unfollowed, 3),
        (&events, silent(), Basis::NothingNamed, 3),
        (&events, parity(), Basis::Parity, 3),
    ] {
        let router = router(config, records);
        let first = place(&router, &[1, 2, 3]);
        assert_eq!((first.basis, first.overlap_blocks), (basis, 0));
        let home = first.worker.clone();
        // Gone again, so that it vouches for nothing itself.
        drop(first);
        let again = place(&router, &[1, 2, 3, 4]);
        assert_eq!(again.overlap_blocks, overlap_blocks, "{basis:?}");
        assert!(again.worker == home || !basis.is_approximate(), "{basis:?}");
        let shown = &router.workers()[0].basis;
        assert_eq!(shown, &[basis]);
    }
}

#[test]
fn assumptions_end_when_events_tell() {
    let mut silent = record("a");
    silent.ledger.completeness = Completeness::Partial;
    let router = router(&RouterConfig::default(), [silent]);
    drop(place(&router, &[1, 2, 3]));
    assert_eq!(place(&router, &[1, 2, 3]).overlap_blocks, 3);
    stored(&router, "a", 0, &[1]);
    let told = place(&router, &[1, 2, 3]);
    assert_eq!((told.basis, told.overlap_blocks), (Basis::Events, 1));
}

#[test]
fn an_answer_weighs_what_it_is_expected_to_or_what_has_come() {
    let router = router(&RouterConfig::default(), [record("a")]);
    let long = Footprint {
        hints: Hints {
            output_tokens: Some(64),
            ..Hints::default()
        },
        ..footprint(&[1])
    };
    let placed = router.place(&long, &Wish::default()).expect("a worker");
    let output_blocks = || router.workers()[0].load[0].output_blocks;
    assert_eq!(output_blocks(), 4);
    placed.booking.progress(65);
    assert_eq!(output_blocks(), 5);
    drop(placed);
    assert_eq!(output_blocks(), 0);
}

#[test]
fn the_prefill_of_an_answer_in_one_piece_ends_with_its_last_block() {
    let router = router(&RouterConfig::default(), [record("a")]);
    let _placed = place(&router, &[1, 2]);
    let prefill_tokens = || router.workers()[0].load[0].prefill_tokens;
    for (sequence, hashes, left) in [(0, [1], 33), (1, [2], 0)] {
        stored(&router, "a", sequence, &hashes);
        assert_eq!(prefill_tokens(), left, "after {hashes:?}");
    }
}

#[test]
fn requests_that_others_send_an_engine_count_there() {
    let router = router(&RouterConfig::default(), ["a", "b"].map(record));
    for reading in 1..4 {
        let mut busy = record("a");
        busy.engine_load = vec![EngineLoad {
            running: 6,
            waiting: 0,
            used_blocks: Some(41),
        }];
        busy.engine_readings = reading;
        up(&router, busy);
    }
    let load = router.workers()[0].load[0];
    assert_eq!((load.requests, load.decode_blocks), (6, 41));
    for number in 0..4 {
        assert_eq!(place(&router, &[number]).worker, worker("b"));
    }
}
