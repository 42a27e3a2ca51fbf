//! What the queue promises whatever comes: nobody starves, nothing is lost, the same comes out again.

use std::collections::BTreeMap;
use std::time::Duration;

use kvlens::select::queue::line::{LOOK_AHEAD, OLDEST_EVERY, QUANTUM_TOKENS};
use kvlens::select::queue::{Entry, Queue, QueueLimits, QueuePolicy, Ticket};
use proptest::prelude::*;

/// Tenants, and kinds of requests that are stuck together.
const KINDS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Push {
        tenant: usize,
        tokens: u32,
        priority: u32,
        strict_priority: u32,
        is_retry: bool,
        kind: usize,
    },
    /// Takes one out; requests of the kinds given are stuck.
    Pop([bool; KINDS]),
    Leave(prop::sample::Index),
}

fn push() -> impl Strategy<Value = Step> {
    let hints = (0..40_u32, 0..3_u32, any::<bool>());
    (0..KINDS, 0..40_000_u32, hints, 0..KINDS).prop_map(|(tenant, tokens, hints, kind)| {
        let (priority, strict_priority, is_retry) = hints;
        Step::Push {
            tenant,
            tokens,
            priority,
            strict_priority,
            is_retry,
            kind,
        }
    })
}

fn policy() -> impl Strategy<Value = QueuePolicy> {
    use QueuePolicy::{Fcfs, Lcfs, Wspt};
    prop::sample::select(vec![Fcfs, Wspt, Lcfs])
}

fn queue(policy: QueuePolicy) -> Queue {
    let limits = QueueLimits {
        requests_max: 1_000,
        tokens_max: u64::MAX,
        wait_max: Duration::from_secs(1_000_000),
    };
    Queue::new(policy, limits)
}

/// A request that waits.
#[derive(Clone, Debug)]
struct Waiting {
    tenant: usize,
    charge_tokens: u64,
    kind: usize,
    /// How many of its tenant waited when it came.
    found: u32,
    /// How many of its tenant were taken out since.
    passed: u32,
}

/// The queue beside a plain record of what is in it.
struct Watched {
    queue: Queue,
    waiting: BTreeMap<Ticket, Waiting>,
    time: Duration,
    /// Tokens taken out, by the tenant that waited and the tenant that was served, since the one
    /// began to wait.
    served: [[u64; KINDS]; KINDS],
    order: Vec<Ticket>,
}

impl Watched {
    fn new(policy: QueuePolicy) -> Self {
        Self {
            queue: queue(policy),
            waiting: BTreeMap::new(),
            time: Duration::ZERO,
            served: [[0; KINDS]; KINDS],
            order: Vec::new(),
        }
    }

    fn of(&self, tenant: usize) -> impl Iterator<Item = &Waiting> {
        let waiting = self.waiting.values();
        waiting.filter(move |waiting| waiting.tenant == tenant)
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.time += Duration::from_secs(1);
        match step {
            Step::Push { .. } => self.push(step),
            Step::Pop(stuck) => self.pop(*stuck)?,
            Step::Leave(index) if !self.waiting.is_empty() => {
                let at = index.index(self.waiting.len());
                let ticket = *self.waiting.keys().nth(at).expect("one of them");
                prop_assert!(self.queue.remove(ticket));
                self.forget(ticket);
            }
            Step::Leave(_) => {}
        }
        prop_assert_eq!(self.queue.requests(), self.waiting.len());
        Ok(())
    }

    fn push(&mut self, step: &Step) {
        let &Step::Push {
            tenant,
            tokens,
            priority,
            strict_priority,
            is_retry,
            kind,
        } = step
        else {
            return;
        };
        let found = self.of(tenant).count() as u32;
        let entry = Entry {
            model: "m".into(),
            tenant: format!("t{tenant}").into(),
            tokens,
            uncached_tokens: tokens,
            priority,
            strict_priority,
            is_retry,
            arrived: self.time,
        };
        let ticket = self.queue.ticket();
        self.queue.push(ticket, entry).expect("there is room");
        let waiting = Waiting {
            tenant,
            charge_tokens: u64::from(tokens.max(1)),
            kind,
            found,
            passed: 0,
        };
        self.waiting.insert(ticket, waiting);
    }

    fn pop(&mut self, stuck: [bool; KINDS]) -> Result<(), TestCaseError> {
        let fits = |waiting: &Waiting| !stuck[waiting.kind];
        let popped = self.queue.pop("m", |ticket| fits(&self.waiting[&ticket]));
        let Some(ticket) = popped else {
            // Only what stands behind too many that are stuck may be left.
            for tenant in 0..KINDS {
                let few = self.of(tenant).count() <= LOOK_AHEAD;
                prop_assert!(!few || !self.of(tenant).any(fits));
            }
            return Ok(());
        };
        let taken = self.waiting[&ticket].clone();
        prop_assert!(fits(&taken));
        self.order.push(ticket);
        self.forget(ticket);
        for waiting in self.waiting.values_mut() {
            waiting.passed += u32::from(waiting.tenant == taken.tenant);
        }
        for by_served in &mut self.served {
            by_served[taken.tenant] += taken.charge_tokens;
        }
        Ok(())
    }

    fn forget(&mut self, ticket: Ticket) {
        let left = self.waiting.remove(&ticket).expect("it waited");
        if self.of(left.tenant).next().is_none() {
            self.served[left.tenant] = [0; KINDS];
        }
    }

    /// Begins to count anew for those who do not wait.
    fn rest(&mut self) {
        for tenant in 0..KINDS {
            if self.of(tenant).next().is_none() {
                self.served[tenant] = [0; KINDS];
            }
        }
    }
}

proptest! {
    /// Where everything could be placed, a waiting tenant is served as much as any other, but for
    /// what two turns and two requests may differ; and each of its requests gets through after a
    /// number of others that follows from how many it found.
    #[test]
    fn nobody_starves(
        policy in policy(),
        steps in prop::collection::vec(prop_oneof![3 => push(), 2 => Just(Step::Pop([false; KINDS]))], 1..300),
    ) {
        let mut watched = Watched::new(policy);
        let largest = 40_000_u64;
        let drain = std::iter::repeat_n(&Step::Pop([false; KINDS]), 300);
        for step in steps.iter().chain(drain) {
            watched.rest();
            watched.step(step)?;
            for (tenant, served) in watched.served.iter().enumerate() {
                let own = served[tenant];
                for other in served {
                    let most = own + 2 * (QUANTUM_TOKENS + largest);
                    prop_assert!(watched.of(tenant).next().is_none() || *other <= most);
                }
            }
            for waiting in watched.waiting.values() {
                prop_assert!(waiting.passed < OLDEST_EVERY * (waiting.found + 1));
            }
        }
        prop_assert_eq!(watched.queue.requests(), 0);
    }

    /// Whatever is stuck for a while, each request comes out once, in the same order every time.
    #[test]
    fn nothing_is_lost_or_left_to_chance(
        policy in policy(),
        steps in prop::collection::vec(
            prop_oneof![
                6 => push(),
                4 => any::<[bool; KINDS]>().prop_map(Step::Pop),
                1 => any::<prop::sample::Index>().prop_map(Step::Leave),
            ],
            1..200,
        ),
    ) {
        let run = || -> Result<Vec<Ticket>, TestCaseError> {
            let mut watched = Watched::new(policy);
            for step in &steps {
                watched.step(step)?;
            }
            while watched.queue.requests() > 0 {
                watched.step(&Step::Pop([false; KINDS]))?;
            }
            prop_assert_eq!(watched.queue.tokens(), 0);
            prop_assert!(watched.queue.models().is_empty());
            Ok(watched.order)
        };
        prop_assert_eq!(run()?, run()?);
    }
}

/// The looks that a pass costs, with as many waiting as may.
#[test]
fn a_pass_over_a_full_queue_looks_at_few() {
    for (tenants, looks_max) in [(1, LOOK_AHEAD), (16, 16 * LOOK_AHEAD), (4_096, 4_096)] {
        let limits = QueueLimits {
            requests_max: 8_192,
            tokens_max: u64::MAX,
            wait_max: Duration::from_secs(50),
        };
        let mut queue = Queue::new(QueuePolicy::Fcfs, limits);
        for number in 0..4_096 {
            let entry = Entry {
                model: "m".into(),
                tenant: format!("t{}", number % tenants).into(),
                tokens: 1_000,
                uncached_tokens: 1_000,
                priority: 0,
                strict_priority: 0,
                is_retry: false,
                arrived: Duration::ZERO,
            };
            assert!(queue.room_for(&entry.tenant, 1).is_ok());
            let ticket = queue.ticket();
            queue.push(ticket, entry).expect("room");
        }
        // One alone has half of it, and no more.
        assert_eq!(queue.room_for("t0", 0).is_err(), tenants == 1);
        let mut looks = 0;
        let popped = queue.pop("m", |_| {
            looks += 1;
            false
        });
        assert_eq!((popped, looks), (None, looks_max));
        looks = 0;
        assert!(
            queue
                .pop("m", |_| {
                    looks += 1;
                    true
                })
                .is_some()
        );
        assert_eq!(looks, 1);
    }
}
