//! The mock engine's scheduler when memory or a step is too small.

use kvlens::mock::hash::Identity;
use kvlens::mock::pool::Event;
use kvlens::mock::scheduler::{Bounds, Scheduler, Sequence, SequenceId};

fn bounds(blocks: u32, batched_tokens_max: usize) -> Bounds {
    Bounds {
        block_size: 16,
        blocks,
        host_blocks: 16,
        running_max: 2,
        batched_tokens_max,
    }
}

/// A request of `prompt` tokens that answers with `answer` tokens.
fn sequence(id: u64, prompt: u32, answer: usize) -> Sequence {
    let first = id as u32 * 1000;
    Sequence {
        id: SequenceId(id),
        tokens: (first..first + prompt).collect(),
        identity: Identity::default(),
        report_reused: false,
        skip_cache: false,
        session: None,
        answer: Box::new(move |_| vec![7; answer].into()),
    }
}

#[test]
fn the_youngest_request_gives_way_and_comes_back() {
    let mut scheduler = Scheduler::new(bounds(8, 8192), true);
    // Seven blocks hold both prompts, but not both answers.
    scheduler.submit(sequence(1, 40, 40));
    scheduler.submit(sequence(2, 40, 40));
    let mut finished = Vec::new();
    for _ in 0..200 {
        scheduler.schedule();
        let progress = scheduler.finish_step().into_iter();
        finished.extend(progress.filter(|progress| progress.finished));
    }
    let ends: Vec<_> = finished
        .iter()
        .map(|end| (end.id.0, end.produced))
        .collect();
    assert_eq!(ends, [(1, 40), (2, 40)]);
    assert_eq!(scheduler.totals().preemptions, 1);
    assert_eq!(scheduler.totals().generated_tokens, 80);
    assert_eq!((scheduler.running_len(), scheduler.waiting_len()), (0, 0));
    assert_eq!(scheduler.usage(), 0.0);
}

#[test]
fn a_long_prompt_is_computed_in_chunks() {
    let mut scheduler = Scheduler::new(bounds(64, 100), true);
    scheduler.submit(sequence(1, 250, 2));
    let mut steps = Vec::new();
    while scheduler.running_len() + scheduler.waiting_len() > 0 {
        let work = scheduler.schedule();
        let produced = scheduler.finish_step().len();
        let stored = |event: &Event| match event {
            Event::Stored(stored) => stored.hashes.len(),
            _ => 0,
        };
        let blocks: usize = scheduler.take_events().iter().map(stored).sum();
        steps.push((work.prefill_tokens, work.decoding, blocks, produced));
    }
    let expected = [(100, 0, 6, 0), (100, 0, 6, 0), (50, 0, 3, 1), (0, 1, 0, 1)];
    assert_eq!(steps, expected);
}

#[test]
fn what_was_evicted_is_loaded_from_host_memory() {
    let mut scheduler = Scheduler::new(bounds(8, 8192), true);
    let mut run = |id: u64, prompt| {
        scheduler.submit(sequence(id, prompt, 1));
        scheduler.schedule();
        scheduler.finish_step();
        scheduler.take_events()
    };
    let [Event::Stored(first)] = &run(1, 40)[..] else {
        panic!("two blocks in one event");
    };
    // Seven blocks: the last of the first prompt's is taken for the second.
    let events = run(2, 100);
    let offloaded = |events: &[Event]| {
        let hash = |event: &Event| match event {
            Event::Offloaded(hash) => Some(*hash),
            _ => None,
        };
        events.iter().filter_map(hash).collect::<Vec<_>>()
    };
    assert_eq!(offloaded(&events), [first.hashes[1], first.hashes[0]]);
    assert!(matches!(events.last(), Some(Event::Offloaded(_))));
    // What is loaded is stored on the GPU anew, and evicts others.
    let events = run(1, 40);
    let stored = Event::Stored(first.clone());
    assert!(events.contains(&stored), "{events:?}");
    assert_eq!(offloaded(&events).len(), 2);
    assert_eq!(scheduler.totals().hit_tokens, 0, "nothing was on the GPU");
}

#[test]
fn an_aborted_request_leaves_its_full_blocks_cached() {
    let mut scheduler = Scheduler::new(bounds(64, 8192), true);
    scheduler.submit(sequence(1, 40, 40));
    scheduler.schedule();
    assert!(!scheduler.clear_cache(), "a running request holds blocks");
    scheduler.abort(SequenceId(1));
    assert_eq!((scheduler.running_len(), scheduler.waiting_len()), (0, 0));
    assert_eq!(scheduler.usage(), 0.0);
    scheduler.submit(sequence(1, 40, 1));
    scheduler.schedule();
    assert_eq!(scheduler.totals().hit_tokens, 32);
}
