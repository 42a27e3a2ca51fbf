//! Placements that a frontend asks of a router in another process, over NATS.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use kvlens::block::SequenceHash;
use kvlens::bus::subjects;
use kvlens::router::Placement;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::telemetry::metrics::Metrics;
use tokio::runtime::Runtime;

use crate::agents::runtime;
use crate::asked::{Frontend, PROMPT_BLOCKS, footprint, is_remote};
use crate::figures::{row, table, target};
use crate::fleet::{self, Chance, WORKERS, cpu_time};
use crate::pace::Pace;
use crate::samples::Samples;
use crate::servers::{Routing, Server, until};

const PACE: Pace = Pace {
    per_second: 500,
    warm: Duration::from_secs(1),
    measured: Duration::from_secs(10),
};
/// How long a booking is held: 250 are in flight, 4 on each worker.
const HELD: Duration = Duration::from_millis(500);
const P99_MAX: Duration = Duration::from_millis(1);

/// From when it was due, and from when it was asked.
type Times = (Duration, Duration);

pub(crate) fn print(nats: &Server, frontend: &Frontend, shared: &[SequenceHash]) {
    until("the frontend has found the router", || {
        !frontend.remote.routers().is_empty()
    });
    let (question, answer) = sizes(nats, frontend, shared);
    let (floor_due, floor) = floor(nats, question, answer);
    let (due, asked, elsewhere) = placements(frontend, shared);
    until("all bookings are over", || frontend.in_flight() == 0);
    let here = here(shared);

    let rows = [
        row(["microseconds", "p50", "p99"]),
        floor_due.row("floor: bare NATS request and reply, from when it was due"),
        floor.row("  from when it was asked"),
        due.row("placement over NATS, from when it was due"),
        asked.row("  from when it was asked"),
        here.row("CPU time of the same in the router's process"),
    ];
    let title = format!(
        "placements over NATS: {} a second, {PROMPT_BLOCKS} blocks, {WORKERS} workers; question {question} \
         bytes, answer {answer}; {elsewhere} not placed by the router",
        PACE.per_second
    );
    table(&title, &rows);
    let ratio = due.percentile(99).as_secs_f64() / floor_due.percentile(99).as_secs_f64();
    println!("  p99 is {ratio:.1} times the floor");
    if floor_due.percentile(99) > P99_MAX {
        println!("  the floor alone is over the target: the machine has other work");
    }
    let what = format!("p99 from when it was due <= {P99_MAX:?}, all placed by the router");
    target(&what, due.percentile(99) <= P99_MAX && elsewhere == 0);
}

/// Bytes of a question and of its answer, as one listens to them.
fn sizes(nats: &Server, frontend: &Frontend, shared: &[SequenceHash]) -> (usize, usize) {
    let tap = runtime();
    tap.block_on(async {
        let client = nats.bare().await;
        let place = subjects::place(Routing::ID);
        let mut questions = client.subscribe(place).await.expect("it is up");
        let mut answers = client.subscribe("_INBOX.>").await.expect("it is up");
        client.flush().await.expect("it is up");
        let footprint = prompt(shared, &mut Chance(1));
        let wish = Wish::default();
        let placed = frontend.remote.place(&footprint, &wish);
        placed.await.expect("a worker is there");
        let question = questions.next().await.expect("it was asked");
        let answer = answers.next().await.expect("it was answered");
        (question.payload.len(), answer.payload.len())
    })
}

/// Bare questions and answers of the same sizes at the same pace.
fn floor(nats: &Server, question: usize, answer: usize) -> (Samples, Samples) {
    let (asking, answering) = (runtime(), runtime());
    answering.block_on(async {
        let client = nats.bare().await;
        let mut questions = client.subscribe("floor").await.expect("it is up");
        client.flush().await.expect("it is up");
        let answer = Bytes::from(vec![7; answer]);
        answering.spawn(async move {
            while let Some(question) = questions.next().await {
                let reply = question.reply.expect("it asks for one");
                let sent = client.publish(reply, answer.clone());
                sent.await.expect("it is up");
            }
        });
    });
    let client = asking.block_on(nats.bare());
    let question = Bytes::from(vec![7; question]);
    let (due, asked, _) = load(&asking, || {
        let (client, question) = (client.clone(), question.clone());
        async move {
            let answer = client.request("floor", question).await;
            answer.expect("it is answered");
            None
        }
    });
    (due, asked)
}

fn placements(frontend: &Frontend, shared: &[SequenceHash]) -> (Samples, Samples, usize) {
    let mut chance = Chance(3);
    load(&frontend.runtime, || {
        let remote = frontend.remote.clone();
        let footprint = prompt(shared, &mut chance);
        async move {
            let placed = remote.admit(&footprint, &Wish::default()).await;
            let placed = placed.expect("a worker is there");
            // At once, or all workers would soon be busy and requests wait for them.
            placed.booking.first_token();
            Some(placed)
        }
    })
}

/// Asks when it is due, in a task each: times from then and from asking, and how many were placed by
/// others than the router.
fn load<T: Future<Output = Option<Placement>> + Send + 'static>(
    runtime: &Runtime,
    mut ask: impl FnMut() -> T,
) -> (Samples, Samples, usize) {
    let (mut due_times, mut asked_times) = (Samples::default(), Samples::default());
    let mut elsewhere = 0;
    let mut held = VecDeque::new();
    let (done, ended) = mpsc::channel::<(bool, Times, Option<Placement>)>();
    let mut take = |(counts, (from_due, from_asked), placed): (bool, Times, Option<Placement>)| {
        if counts {
            due_times.push(from_due);
            asked_times.push(from_asked);
        }
        if let Some(placed) = placed {
            elsewhere += usize::from(!is_remote(&placed.chooser));
            held.push_back((Instant::now() + HELD, placed));
        }
        while held
            .front()
            .is_some_and(|(until, _)| *until <= Instant::now())
        {
            held.pop_front();
        }
    };
    PACE.keep(|number, due| {
        let (asked, done) = (ask(), done.clone());
        runtime.spawn(async move {
            let started = Instant::now();
            let placed = asked.await;
            let times = (due.elapsed(), started.elapsed());
            // It is taken for as long as the load goes on.
            done.send((PACE.counts(number), times, placed)).ok();
        });
        ended.try_iter().for_each(&mut take);
    });
    drop(done);
    ended.iter().for_each(take);
    (due_times, asked_times, elsewhere)
}

/// CPU time of placements in the router's process, with nothing in flight.
fn here(shared: &[SequenceHash]) -> Samples {
    let router = fleet::router(Arc::new(Metrics::default()), WORKERS, shared);
    let mut chance = Chance(5);
    let mut samples = Samples::default();
    for _ in 0..2_000 {
        let footprint = prompt(shared, &mut chance);
        let started = cpu_time();
        let placed = router.place(&footprint, &Wish::default());
        samples.push(cpu_time() - started);
        drop(placed);
    }
    samples
}

fn prompt(shared: &[SequenceHash], chance: &mut Chance) -> Footprint {
    let own = std::iter::repeat_with(|| SequenceHash(chance.next()));
    let hashes = shared.iter().copied().chain(own);
    footprint(hashes.take(PROMPT_BLOCKS).collect())
}
