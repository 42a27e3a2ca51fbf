//! Everything at once, in any order.

use std::time::Duration;

use kvlens::block::SequenceHash;
use kvlens::discovery::{Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::Placement;
use kvlens::router::footprint::Wish;
use kvlens::router::view::CircuitView;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::time::advance;

use crate::queue::{Asked, BATCH_TOKENS, World, config, of, pinned, record, told, worker};

const WORKERS: [&str; 3] = ["a", "b", "c"];

/// The one that never goes, and what it holds.
const STEADY: (&str, u64) = ("c", 5);

#[derive(Clone, Debug)]
enum Step {
    Ask {
        tenant: u8,
        tokens: u32,
        wish: u8,
    },
    /// A client goes while its request waits, or is placed and does not know it yet.
    Cancel(Index),
    FirstToken(Index),
    /// An answer ends; or its engine fails, and the request is placed again elsewhere.
    End(Index, bool),
    Down(Index),
    Up(Index),
    Drain(Index),
    Refused(Index),
    Succeeded(Index),
    /// Those whose turn has come notice it.
    Look,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        12 => (0..3_u8, 1..3 * BATCH_TOKENS, 0..6_u8)
            .prop_map(|(tenant, tokens, wish)| Step::Ask { tenant, tokens, wish }),
        3 => at().prop_map(Step::Cancel),
        4 => at().prop_map(Step::FirstToken),
        4 => (at(), any::<bool>()).prop_map(|(at, failed)| Step::End(at, failed)),
        1 => at().prop_map(Step::Down),
        2 => at().prop_map(Step::Up),
        1 => at().prop_map(Step::Drain),
        1 => at().prop_map(Step::Refused),
        2 => at().prop_map(Step::Succeeded),
        2 => Just(Step::Look),
        2 => (1..9_000_u64).prop_map(Step::Pass),
    ]
}

/// What is under way.
struct Storm {
    world: World,
    waiting: Vec<(Asked, Wish)>,
    running: Vec<Placement>,
}

impl Storm {
    fn new() -> Self {
        let world = World::new(&config(), &WORKERS);
        world.router.apply(Update::Kv(KvEvent {
            worker: worker(STEADY.0),
            rank: DpRank(0),
            incarnation: Incarnation(1),
            sequence: 0,
            cleared: false,
            removed: Vec::new(),
            stored: (0..STEADY.1).map(SequenceHash).collect(),
            lower: Tiers::default(),
        }));
        Self {
            world,
            waiting: Vec::new(),
            running: Vec::new(),
        }
    }

    async fn step(&mut self, step: Step) {
        let fleeting = |at: Index| WORKERS[at.index(WORKERS.len() - 1)];
        match step {
            Step::Ask {
                tenant,
                tokens,
                wish,
            } => {
                let wish = match wish {
                    0 => pinned("a"),
                    1 => pinned(STEADY.0),
                    2 => Wish::without(&[worker("b")]),
                    _ => Wish::default(),
                };
                self.ask(&format!("t{tenant}"), tokens, wish);
            }
            Step::Cancel(at) if !self.waiting.is_empty() => {
                drop(self.waiting.swap_remove(at.index(self.waiting.len())));
            }
            Step::FirstToken(at) if !self.running.is_empty() => {
                self.running[at.index(self.running.len())]
                    .booking
                    .first_token();
            }
            Step::End(at, failed) if !self.running.is_empty() => {
                let ended = self.running.swap_remove(at.index(self.running.len()));
                let wish = Wish::without(std::slice::from_ref(&ended.worker));
                drop(ended);
                if failed {
                    self.ask("t0", BATCH_TOKENS, wish);
                }
            }
            Step::Down(at) => self.world.down(fleeting(at)),
            Step::Up(at) => self.world.up(record(fleeting(at))),
            Step::Drain(at) => self.world.up(WorkerRecord {
                verdict: Verdict::Draining,
                ..record(fleeting(at))
            }),
            Step::Refused(at) => self.world.router.refused(&worker(fleeting(at))),
            Step::Succeeded(at) => self.world.router.succeeded(&worker(fleeting(at))),
            Step::Look => self.look(),
            Step::Pass(millis) => advance(Duration::from_millis(millis)).await,
            Step::Cancel(_) | Step::FirstToken(_) | Step::End(..) => {}
        }
    }

    fn ask(&mut self, tenant: &str, tokens: u32, wish: Wish) {
        let mut asked = self.world.ask(of(tenant, tokens), wish.clone());
        match told(&mut asked) {
            None => self.waiting.push((asked, wish)),
            Some(outcome) => self.running.extend(outcome),
        }
    }

    fn look(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (mut asked, wish) in waiting {
            match told(&mut asked) {
                None => self.waiting.push((asked, wish)),
                Some(outcome) => self.running.extend(outcome),
            }
        }
    }

    /// Whether somebody still waits although a worker that it may go to has room.
    fn waits_in_vain(&mut self) -> bool {
        self.look();
        let views = self.world.router.workers();
        let has_room = |wish: &Wish| {
            let mut open = views.iter().filter(|view| {
                let worker = &view.record.worker;
                let is_meant = wish.worker.as_ref().is_none_or(|meant| meant == worker);
                is_meant && !wish.excluded.contains(worker)
            });
            open.any(|view| {
                view.record.verdict.takes_requests()
                    && view.circuit == CircuitView::Closed
                    && view.load[0].prefill_tokens <= u64::from(BATCH_TOKENS)
            })
        };
        self.waiting.iter().any(|(_, wish)| has_room(wish))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What is booked is freed, whatever happens in between; nobody waits in vain; what is held
    /// where is nobody's concern.
    #[test]
    fn all_that_is_taken_is_given_back(steps in prop::collection::vec(step(), 1..120)) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let mut storm = Storm::new();
            for step in steps {
                // After an end nobody is asked, so that some leave who do not know that their turn
                // has come.
                let is_checked = !matches!(step, Step::End(..) | Step::Pass(_));
                storm.step(step).await;
                prop_assert!(!is_checked || !storm.waits_in_vain());
            }
            let Storm { world, waiting, running, .. } = storm;
            drop(waiting);
            prop_assert_eq!(world.depth(), (0.0, 0.0));
            drop(running);
            prop_assert_eq!(world.load(), 0);
            let views = world.router.workers();
            let steady = views.iter().find(|view| view.record.worker == worker(STEADY.0));
            prop_assert_eq!(steady.expect("it never went").indexed_blocks, STEADY.1);
            // Nobody but the test owns the router any more.
            prop_assert_eq!(std::sync::Arc::strong_count(&world.router), 1);
            Ok(())
        })?;
    }
}
