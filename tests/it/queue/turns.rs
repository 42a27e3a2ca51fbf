//! Whose turn it is, as hints, retries and tenants have it.

use futures_util::FutureExt;
use kvlens::config::router::RouterConfig;
use kvlens::router::footprint::{Footprint, Hints, Wish};
use kvlens::select::queue::QueuePolicy;

use crate::queue::{Asked, BATCH_TOKENS, World, config, of, prompt, told, worker};

/// One of these makes a rank busy.
const BUSY: u32 = BATCH_TOKENS + 1;

fn any() -> Wish {
    Wish::default()
}

#[tokio::test(start_paused = true)]
async fn turns_go_by_retries_hints_policy_and_tenants() {
    let hinted = |priority, strict_priority, tokens| Footprint {
        hints: Hints {
            priority,
            strict_priority,
            output_tokens: None,
        },
        ..prompt(tokens)
    };
    let (t, u) = (BUSY, BUSY + 1);
    let open = |footprint| (footprint, any());
    let retry = (prompt(t), Wish::without(&[worker("b")]));
    let two = || [open(prompt(t)), open(prompt(t))];
    let strict = [open(prompt(t)), open(hinted(0, 1, u))];
    let head_start = [open(prompt(t)), open(hinted(1, 0, t))];
    let shortest = [open(prompt(u)), open(prompt(t))];
    let tenants = [open(of("x", t)), open(of("y", t))];
    for (what, policy, asked, expected) in [
        ("in order", QueuePolicy::Fcfs, two(), [0, 1]),
        (
            "retry",
            QueuePolicy::Fcfs,
            [open(hinted(9, 9, t)), retry],
            [1, 0],
        ),
        ("strict", QueuePolicy::Wspt, strict, [1, 0]),
        ("head start", QueuePolicy::Fcfs, head_start, [1, 0]),
        ("shortest", QueuePolicy::Wspt, shortest, [1, 0]),
        ("last", QueuePolicy::Lcfs, two(), [1, 0]),
        ("tenants", QueuePolicy::Lcfs, tenants, [0, 1]),
    ] {
        let config = RouterConfig {
            queue_policy: policy,
            ..config()
        };
        for at_one_instant in [false, true] {
            let world = World::new(&config, &["a"]);
            let mut held = (!at_one_instant).then(|| world.place(BUSY, any()));
            let asked = asked.iter().cloned();
            let mut waiting: Vec<_> = asked
                .map(|(footprint, wish)| match at_one_instant {
                    false => world.wait(footprint, wish),
                    true => come(world.ask(footprint, wish)),
                })
                .collect();
            for at in expected {
                held.take();
                let turns: Vec<_> = waiting.iter_mut().map(told).collect();
                let turn = turns.iter().position(Option::is_some);
                assert_eq!(turn, Some(at), "{what}, {at_one_instant}");
                held = turns.into_iter().flatten().next().and_then(Result::ok);
                // Its future is spent: another takes its stand.
                waiting[at] = Box::pin(std::future::pending());
            }
            assert!(held.is_some());
        }
    }
}

/// Lets a request come, and others after it before anything is decided.
fn come(mut asked: Asked) -> Asked {
    let told = (&mut asked).now_or_never();
    assert!(told.is_none());
    asked
}
