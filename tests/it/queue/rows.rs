//! One wait at a time.

use std::time::Duration;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::{Placement, RouteError};
use kvlens::select::queue::QueueFull;
use tokio::time::advance;

use crate::queue::{
    BATCH_TOKENS, World, config, pinned, placed, prompt, record, told, waits, worker,
};

/// More than one of these makes no difference: a rank with one is busy.
const BUSY: u32 = BATCH_TOKENS + 1;

fn any() -> Wish {
    Wish::default()
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_only_while_all_it_may_go_to_are_busy() {
    let off = RouterConfig {
        queue_threshold: 0.0,
        ..config()
    };
    let untold = || WorkerRecord {
        max_batched_tokens: None,
        ..record("a")
    };
    let assumed = RouterConfig {
        queue_batch_tokens: u64::from(BATCH_TOKENS),
        ..config()
    };
    for (what, config, record_a, tokens, wish, must_wait) in [
        (
            "one batch",
            config(),
            record("a"),
            BATCH_TOKENS,
            pinned("a"),
            false,
        ),
        ("more", config(), record("a"), BUSY, pinned("a"), true),
        ("another is free", config(), record("a"), BUSY, any(), false),
        (
            "that one is excluded",
            config(),
            record("a"),
            BUSY,
            Wish::without(&[worker("b")]),
            true,
        ),
        (
            "no threshold",
            off,
            record("a"),
            90 * BUSY,
            pinned("a"),
            false,
        ),
        ("not told", config(), untold(), 8_192, pinned("a"), false),
        ("not told", config(), untold(), 8_193, pinned("a"), true),
        (
            "a budget by configuration",
            assumed,
            untold(),
            BUSY,
            pinned("a"),
            true,
        ),
    ] {
        let world = World::new(&config, &["b"]);
        world.up(record_a);
        let _first = world.place(tokens, pinned("a"));
        let mut second = world.ask(prompt(1), wish);
        assert_eq!(waits(&mut second), must_wait, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_makes_room_lets_the_next_in() {
    type Make = fn(&World, &mut Option<Placement>);
    let rows: [(&str, Make); 5] = [
        ("a first token", |_, first| {
            first.as_ref().expect("placed").booking.first_token();
        }),
        ("an end", |_, first| drop(first.take())),
        ("a new worker", |world, _| world.up(record("b"))),
        ("a worker that heals", |world, _| world.up(record("sick"))),
        ("a larger budget", |world, _| {
            world.up(WorkerRecord {
                max_batched_tokens: Some(1_000),
                ..record("a")
            });
        }),
    ];
    for (what, make_room) in rows {
        let world = World::new(&config(), &["a"]);
        world.up(WorkerRecord {
            verdict: Verdict::Draining,
            ..record("sick")
        });
        let mut first = Some(world.place(BUSY, any()));
        let mut second = world.wait(prompt(70), any());
        assert_eq!(world.depth(), (1.0, 70.0));
        advance(Duration::from_millis(400)).await;
        make_room(&world, &mut first);
        assert_eq!(world.depth(), (0.0, 0.0), "{what}");
        let second = placed(&mut second);
        assert_eq!(second.queued, Duration::from_millis(400), "{what}");
        assert_eq!(world.metric("kvlens_queue_wait_seconds_count "), 1.0);
        drop((first, second));
        assert_eq!(world.load(), 0, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_arrival_does_not_overtake() {
    let world = World::new(&config(), &["a"]);
    let first = world.place(BUSY, any());
    let mut second = world.wait(prompt(BUSY), any());
    let mut third = world.wait(prompt(1), any());
    first.booking.first_token();
    let second = placed(&mut second);
    assert!(waits(&mut third), "the second has made it busy again");
    let mut fourth = world.wait(prompt(1), any());
    drop(second);
    for asked in [&mut third, &mut fourth] {
        placed(asked);
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_busy_worker_holds_up_nobody_else() {
    let world = World::new(&config(), &["b"]);
    world.up(WorkerRecord {
        adapters: vec!["adapter".to_owned()],
        ..record("a")
    });
    let on_a = world.place(BUSY, pinned("a"));
    let on_b = world.place(BUSY, pinned("b"));
    let adapted = Footprint {
        adapter: Some("adapter".into()),
        ..prompt(30)
    };
    let mut wants_a = [
        world.wait(prompt(50), pinned("a")),
        world.wait(adapted, any()),
        world.wait(prompt(20), Wish::without(&[worker("b")])),
    ];
    let mut open = world.wait(prompt(50), any());
    drop(on_b);
    assert_eq!(placed(&mut open).worker, worker("b"));
    // Its line is not empty, and yet it needs no place in it.
    assert_eq!(world.place(50, any()).worker, worker("b"));
    assert!(wants_a.iter_mut().all(waits));
    drop(on_a);
    for asked in &mut wants_a {
        assert_eq!(placed(asked).worker, worker("a"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_worker_is_chosen_when_the_turn_comes() {
    let world = World::new(&config(), &["a", "b"]);
    let held = [
        world.place(BUSY, pinned("a")),
        world.place(BUSY, pinned("b")),
    ];
    let hashes = (1..=32).map(SequenceHash).collect();
    let size = BlockSize::new(16).expect("16 is not zero");
    let footprint = Footprint {
        hashes: vec![(size, hashes)],
        ..prompt(32 * 16 + 1)
    };
    let mut asked = world.wait(footprint, any());
    world.router.apply(Update::Kv(KvEvent {
        worker: worker("b"),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence: 0,
        cleared: false,
        removed: Vec::new(),
        stored: (1..=32).map(SequenceHash).collect(),
        lower: Tiers::default(),
    }));
    assert!(waits(&mut asked), "an event makes no room");
    held[0].booking.first_token();
    let placement = placed(&mut asked);
    // Room is on the one, but what it came to need meanwhile is on the other.
    assert_eq!(
        (&placement.worker, placement.overlap_blocks),
        (&worker("b"), 32)
    );
    drop((placement, held));
    assert_eq!(world.load(), 0);
    assert_eq!(world.router.workers()[1].indexed_blocks, 32);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_nothing_along() {
    let world = World::new(&config(), &["a"]);
    let first = world.place(BUSY, any());
    let leaver = world.wait(prompt(BUSY), any());
    let chosen = world.wait(prompt(BUSY), any());
    let mut last = world.wait(prompt(7), any());
    drop(leaver);
    assert_eq!(world.depth(), (2.0, f64::from(BUSY + 7)));
    drop(first);
    assert_eq!(
        world.depth(),
        (1.0, 7.0),
        "its turn has come, and it does not know yet"
    );
    assert!(world.load() > 0);
    drop(chosen);
    assert_eq!(world.depth(), (0.0, 0.0));
    drop(placed(&mut last));
    assert_eq!(world.load(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_nobody_is_told_at_once() {
    type Change = fn(&World);
    let rows: [(&str, Change, bool); 2] = [
        ("left", |world| world.down("a"), false),
        (
            "draining",
            |world| {
                world.up(WorkerRecord {
                    verdict: Verdict::Draining,
                    ..record("a")
                });
            },
            true,
        ),
    ];
    for (what, change, is_known) in rows {
        let world = World::new(&config(), &["a"]);
        let _first = world.place(BUSY, any());
        let mut second = world.wait(prompt(1), any());
        change(&world);
        let error = told(&mut second)
            .expect("an answer")
            .expect_err("no worker");
        let is_eligible = matches!(error, RouteError::NoEligibleWorker { workers: 1, .. });
        assert_eq!(is_eligible, is_known, "{what}: {error}");
        assert_eq!(
            (world.depth(), world.refusals("no_worker")),
            ((0.0, 0.0), 1.0)
        );
    }
    // Others wait on.
    let world = World::new(&config(), &["a", "b"]);
    let _held = [
        world.place(BUSY, pinned("a")),
        world.place(BUSY, pinned("b")),
    ];
    let mut lost = world.wait(prompt(1), pinned("a"));
    let mut open = world.wait(prompt(1), any());
    world.down("a");
    assert!(matches!(told(&mut lost), Some(Err(_))));
    assert!(waits(&mut open));
}

#[tokio::test(start_paused = true)]
async fn one_of_those_who_wait_tries_a_worker_that_failed() {
    let world = World::new(&config(), &["a"]);
    let _first = world.place(BUSY, any());
    let mut waiting: Vec<_> = (0..3).map(|_| world.wait(prompt(1), any())).collect();
    world.router.refused(&worker("a"));
    assert_eq!(placed(&mut waiting[0]).worker, worker("a"));
    for asked in &mut waiting[1..] {
        let error = told(asked).expect("an answer").expect_err("no worker");
        assert!(
            matches!(error, RouteError::NoEligibleWorker { .. }),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefill_that_must_be_over_makes_room() {
    let world = World::new(&config(), &["a"]);
    let first = world.place(BUSY, any());
    advance(Duration::from_secs(1)).await;
    // So much a second, it seems; the next one's first token does not show.
    first.booking.first_token();
    let whole = Footprint {
        stream: false,
        ..prompt(2 * BUSY)
    };
    let _second = placed(&mut world.ask(whole, any()));
    let mut third = world.wait(prompt(1), any());
    advance(Duration::from_millis(3_900)).await;
    assert!(waits(&mut third));
    advance(Duration::from_millis(400)).await;
    placed(&mut third);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pause_is_noticed() {
    let world = World::new(&config(), &["a", "b"]);
    let _held = world.place(BUSY, pinned("a"));
    world.router.refused(&worker("b"));
    let mut asked = world.wait(prompt(1), any());
    for _ in 0..2 {
        advance(Duration::from_millis(900)).await;
        assert!(waits(&mut asked));
    }
    advance(Duration::from_millis(1_300)).await;
    assert_eq!(placed(&mut asked).worker, worker("b"));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_one_may() {
    let world = World::new(&config(), &["a"]);
    let _first = world.place(BUSY, any());
    let mut early = world.wait(prompt(1), any());
    advance(Duration::from_secs(30)).await;
    let mut late = world.wait(prompt(1), any());
    advance(Duration::from_millis(19_990)).await;
    assert!(waits(&mut early) && waits(&mut late));
    advance(Duration::from_millis(20)).await;
    // Any look tells all that are due, whoever looks.
    assert!(waits(&mut late));
    let error = told(&mut early).expect("an answer").expect_err("too late");
    assert_eq!(
        error,
        RouteError::QueueTimeout {
            model: "base".to_owned(),
            waited: Duration::from_secs(50)
        }
    );
    assert_eq!(
        (world.depth(), world.refusals("expired")),
        ((1.0, 1.0), 1.0)
    );
    advance(Duration::from_secs(30)).await;
    assert!(matches!(
        told(&mut late),
        Some(Err(RouteError::QueueTimeout { .. }))
    ));
}

#[tokio::test(start_paused = true)]
async fn no_more_waits_than_may() {
    let limits = RouterConfig {
        queue_requests_max: 2,
        queue_tokens_max: 60,
        ..config()
    };
    let world = World::new(&limits, &["a"]);
    let _first = world.place(BUSY, any());
    let _second = world.wait(prompt(50), any());
    let refused = |tokens| {
        let error = told(&mut world.ask(prompt(tokens), any()));
        match error.expect("an answer").expect_err("a refusal") {
            RouteError::QueueFull { full, .. } => full,
            error => panic!("{error}"),
        }
    };
    assert!(matches!(refused(11), QueueFull::Tokens { tokens: 11, .. }));
    let third = world.wait(prompt(10), any());
    assert_eq!(refused(1), QueueFull::Requests { requests_max: 2 });
    assert_eq!(
        (world.refusals("tokens"), world.refusals("requests")),
        (1.0, 1.0)
    );
    drop(third);
    let _third = world.wait(prompt(10), any());
    // Who has waited long enough is in nobody's way, even when it does not look itself.
    advance(Duration::from_secs(50)).await;
    let _fourth = world.wait(prompt(60), any());
    assert_eq!(world.depth(), (1.0, 60.0));
}
