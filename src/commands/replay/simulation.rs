//! A trace through the router and simulated engines, event by event, on a virtual clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use crate::commands::replay::engine::{Engine, Job, Speed};
use crate::commands::replay::outcome::Tally;
use crate::commands::replay::progress::Progress;
use crate::commands::replay::prompt::MODEL;
use crate::commands::replay::routed::{Fleet, Placed, Routed};
use crate::commands::replay::trace::{Request, Trace};
use crate::router::RouteError;
use crate::router::admission::ARRIVALS_MAX;
use crate::router::footprint::Footprint;
use crate::router::state::BookingKey;

/// What will happen, soonest first; at one time in the order in which it was planned.
type Agenda = BinaryHeap<Reverse<(Duration, u64, Due)>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A worker has computed the prompt under way.
    Computed { worker: usize },
    /// An answer has ended.
    Answered { worker: usize, request: usize },
}

/// One run of a trace.
#[derive(Debug)]
pub(crate) struct Simulation<'a> {
    trace: &'a Trace,
    fleet: Fleet,
    router: Routed,
    engines: Vec<Engine>,
    agenda: Agenda,
    planned: u64,
    bookings: HashMap<usize, BookingKey>,
    tally: Tally,
}

impl<'a> Simulation<'a> {
    /// A run that has not begun.
    pub(crate) fn new(trace: &'a Trace, router: Routed, fleet: Fleet, speed: Speed) -> Self {
        let engine = || Engine::new(fleet.block_size, fleet.capacity_blocks, speed);
        Self {
            trace,
            fleet,
            router,
            engines: std::iter::repeat_with(engine).take(fleet.workers).collect(),
            agenda: Agenda::new(),
            planned: 0,
            bookings: HashMap::new(),
            tally: Tally::new(fleet.workers),
        }
    }

    /// Lets every request come, and all of them end.
    ///
    /// # Errors
    /// When the router refuses one.
    pub(crate) fn run(mut self, progress: &mut Progress) -> Result<Tally, RouteError> {
        let trace = self.trace;
        let mut number = 0;
        let instants = trace.requests.chunk_by(|a, b| a.arrival == b.arrival);
        for instant in instants.flat_map(|instant| instant.chunks(ARRIVALS_MAX)) {
            let now = instant[0].arrival;
            self.until(now)?;
            for request in instant {
                let footprint = footprint(request, self.fleet);
                self.router.arrive(number, &footprint, now);
                number += 1;
            }
            let placed = self.router.receive(now)?;
            self.dispatch(placed, now);
            progress.at(number);
        }
        self.until(Duration::MAX)?;
        debug_assert!(self.router.is_free(), "a booking is left");
        debug_assert!(self.engines.iter().all(Engine::is_idle), "a block is held");
        Ok(self.tally)
    }

    /// Lets happen what is due until `now`.
    fn until(&mut self, now: Duration) -> Result<(), RouteError> {
        while let Some(Reverse((at, _, due))) = self.agenda.peek().copied()
            && at <= now
        {
            self.agenda.pop();
            match due {
                Due::Computed { worker } => self.computed(worker, at),
                Due::Answered { worker, request } => self.answered(worker, request, at),
            }
            let placed = self.router.let_in(at)?;
            self.dispatch(placed, at);
        }
        Ok(())
    }

    fn dispatch(&mut self, placed: Vec<Placed>, now: Duration) {
        for Placed {
            request,
            worker,
            booking,
        } in placed
        {
            self.bookings.insert(request, booking);
            let Request {
                prompt,
                tenant,
                output_tokens,
                ..
            } = &self.trace.requests[request];
            self.engines[worker].enqueue(Job {
                request,
                hashes: prompt.hashes(tenant, self.fleet.block_size).into(),
                prompt_tokens: prompt.tokens(),
                output_tokens: *output_tokens,
            });
            self.start(worker, now);
        }
    }

    fn start(&mut self, worker: usize, now: Duration) {
        let Some(started) = self.engines[worker].start() else {
            return;
        };
        self.tally
            .add(worker, started.cached_tokens, started.computed_tokens);
        self.router.tell(worker, now, (started.removed, Vec::new()));
        let first_token = now + started.takes;
        let arrival = self.trace.requests[started.request].arrival;
        self.tally.ttft.push(first_token - arrival);
        self.plan(first_token, Due::Computed { worker });
    }

    fn computed(&mut self, worker: usize, now: Duration) {
        let Some(computed) = self.engines[worker].computed() else {
            return;
        };
        self.router.tell(worker, now, (Vec::new(), computed.stored));
        let request = computed.request;
        if let Some(booking) = self.bookings.get(&request) {
            self.router.prefill_done(*booking, now);
        }
        self.plan(now + computed.takes, Due::Answered { worker, request });
        self.start(worker, now);
    }

    fn answered(&mut self, worker: usize, request: usize, now: Duration) {
        self.engines[worker].answered(request);
        if let Some(booking) = self.bookings.remove(&request) {
            self.router.free(booking);
        }
        // It may have been its blocks that the next prompt waits for.
        self.start(worker, now);
    }

    fn plan(&mut self, at: Duration, due: Due) {
        self.planned += 1;
        self.agenda.push(Reverse((at, self.planned, due)));
    }
}

fn footprint(request: &Request, fleet: Fleet) -> Footprint {
    let hashes = request.prompt.hashes(&request.tenant, fleet.block_size);
    Footprint {
        tenant: request.tenant.clone(),
        hashes: vec![(fleet.block_size, hashes.into())],
        text_tokens: request.prompt.text_tokens(),
        media: request.prompt.media().into(),
        stream: true,
        ..Footprint::new(MODEL, request.prompt.tokens())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::block::BlockSize;
    use crate::commands::replay::oracle;
    use crate::commands::replay::prompt::{Part, Prompt};
    use crate::commands::replay::synthetic::Synthetic;
    use crate::config::router::RouterConfig;
    use crate::select::RouterMode;

    const SPEED: Speed = Speed {
        prefill_tokens_per_second: 20_000.0,
        decode_tokens_per_second: 50.0,
    };

    fn fleet(workers: usize, capacity_blocks: u64) -> Fleet {
        Fleet {
            workers,
            capacity_blocks,
            block_size: BlockSize::new(16).unwrap(),
        }
    }

    fn replay(trace: &Trace, mode: RouterMode, fleet: Fleet) -> Tally {
        let config = RouterConfig {
            mode,
            ..RouterConfig::default()
        };
        let router = Routed::new(&config, fleet).unwrap();
        let simulation = Simulation::new(trace, router, fleet, SPEED);
        let mut progress = Progress::new(String::new(), trace.requests.len());
        // That all bookings and blocks are given back is asserted inside.
        simulation.run(&mut progress).unwrap()
    }

    fn bound(trace: &Trace, fleet: Fleet) -> Tally {
        let mut progress = Progress::new(String::new(), trace.requests.len());
        oracle::replay(trace, fleet, SPEED, &mut progress)
    }

    #[test]
    fn every_prompt_is_computed_or_cached_and_no_policy_beats_the_oracle() {
        // The second fleet's caches are too small, and must evict and wait.
        for (kind, fleet) in [
            (Synthetic::Image, fleet(4, 20_000)),
            (Synthetic::Image, fleet(3, 1_200)),
            (Synthetic::Chat, fleet(4, 20_000)),
        ] {
            let trace = kind.trace(400, 3);
            let all = trace.requests.iter().map(|r| u64::from(r.prompt.tokens()));
            let all: u64 = all.sum();
            let bound = bound(&trace, fleet);
            let modes = RouterMode::value_variants().iter();
            for mode in modes.filter(|mode| **mode != RouterMode::Direct) {
                let tally = replay(&trace, *mode, fleet);
                let computed: u64 = tally.computed_tokens.iter().sum();
                assert_eq!(tally.ttft.len(), 400, "{mode:?}");
                assert_eq!(tally.prompt_tokens, all, "{mode:?}");
                assert_eq!(tally.cached_tokens + computed, all, "{mode:?}");
                assert!(tally.cached_tokens <= bound.cached_tokens, "{mode:?}");
                let sum = |tally: &Tally| tally.ttft.iter().sum::<Duration>();
                assert!(sum(&tally) >= sum(&bound), "{mode:?}");
            }
        }
    }

    #[test]
    fn the_kv_mode_finds_what_in_turn_is_lost() {
        // Three prompts over two workers: in turn, each comes to both of them.
        let request = |number: u64| Request {
            arrival: Duration::from_secs(number),
            tenant: "".into(),
            prompt: Prompt::Parts([Part::text(number % 3, 320), Part::text(99, 5)].into()),
            output_tokens: 2,
        };
        let trace = Trace::new("t".to_owned(), (0..30).map(request).collect());
        let fleet = fleet(2, 100);
        for (mode, misses) in [(RouterMode::Kv, 3), (RouterMode::RoundRobin, 6)] {
            let tally = replay(&trace, mode, fleet);
            assert_eq!(tally.cached_tokens, 320 * (30 - misses), "{mode:?}");
        }
    }

    #[test]
    fn times_are_those_of_the_queue() {
        let request = |(arrival_ms, tokens)| Request {
            arrival: Duration::from_millis(arrival_ms),
            tenant: "".into(),
            prompt: Prompt::Parts([Part::text(arrival_ms, tokens)].into()),
            output_tokens: 10,
        };
        // 20 tokens take a millisecond.
        let requests = [(0, 2_000), (10, 400), (500, 20)].map(request);
        let trace = Trace::new("t".to_owned(), requests.into());
        let tally = replay(&trace, RouterMode::Kv, fleet(1, 1_000));
        assert_eq!(tally.ttft, [100, 110, 1].map(Duration::from_millis));
        let bound = bound(&trace, fleet(1, 1_000));
        assert_eq!(bound.ttft, [100, 20, 1].map(Duration::from_millis));
    }
}
