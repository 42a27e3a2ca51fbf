//! A trace through the router and simulated engines, event by event, on a virtual clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use crate::commands::replay::engine::{Engine, Job, Speed};
use crate::commands::replay::outcome::Tally;
use crate::commands::replay::progress::Progress;
use crate::commands::replay::prompt::MODEL;
use crate::commands::replay::routed::{Fleet, Routed};
use crate::commands::replay::trace::{Request, Trace};
use crate::router::state::BookingKey;
use crate::router::{Footprint, RouteError};

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
        for (number, request) in trace.requests.iter().enumerate() {
            self.until(request.arrival);
            self.arrive(number, request)?;
            progress.at(number + 1);
        }
        self.until(Duration::MAX);
        debug_assert!(self.router.is_free(), "a booking is left");
        debug_assert!(self.engines.iter().all(Engine::is_idle), "a block is held");
        Ok(self.tally)
    }

    /// Lets happen what is due until `now`.
    fn until(&mut self, now: Duration) {
        while let Some(Reverse((at, _, due))) = self.agenda.peek().copied()
            && at <= now
        {
            self.agenda.pop();
            match due {
                Due::Computed { worker } => self.computed(worker, at),
                Due::Answered { worker, request } => self.answered(worker, request, at),
            }
        }
    }

    fn arrive(&mut self, number: usize, request: &Request) -> Result<(), RouteError> {
        let footprint = footprint(request, self.fleet);
        let placed = self.router.place(&footprint, request.arrival)?;
        self.bookings.insert(number, placed.booking);
        let hashes = footprint.hashes.into_iter().next();
        self.engines[placed.worker].enqueue(Job {
            request: number,
            hashes: hashes.map(|(_, hashes)| hashes).unwrap_or_default(),
            prompt_tokens: footprint.prompt_tokens,
            output_tokens: request.output_tokens,
        });
        self.start(placed.worker, request.arrival);
        Ok(())
    }

    fn start(&mut self, worker: usize, now: Duration) {
        let Some(started) = self.engines[worker].start() else {
            return;
        };
        self.tally
            .add(worker, started.cached_tokens, started.computed_tokens);
        self.router
            .tell(worker, now, (started.removed, Vec::new()));
        let first_token = now + started.takes;
        let arrival = self.trace.requests[started.request].arrival;
        self.tally.ttft.push(first_token - arrival);
        self.plan(first_token, Due::Computed { worker });
    }

    fn computed(&mut self, worker: usize, now: Duration) {
        let Some(computed) = self.engines[worker].computed() else {
            return;
        };
        self.router
            .tell(worker, now, (Vec::new(), computed.stored));
        let request = computed.request;
        if let Some(booking) = self.bookings.get(&request) {
            self.router.prefill_done(*booking);
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
        model: MODEL.into(),
        adapter: None,
        hashes: vec![(fleet.block_size, hashes.into())],
        prompt_tokens: request.prompt.tokens(),
        text_tokens: request.prompt.text_tokens(),
        estimated_tokens: 0,
    }
}
