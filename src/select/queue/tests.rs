//! Whose turn it is, row by row.

use super::*;

const LIMITS: QueueLimits = QueueLimits {
    requests_max: 100,
    tokens_max: 1_000_000,
    wait_max: Duration::from_secs(50),
};

fn entry(arrived_secs: u64, uncached_tokens: u32) -> Entry {
    Entry {
        model: "m".into(),
        tenant: "".into(),
        tokens: uncached_tokens,
        uncached_tokens,
        priority: 0,
        strict_priority: 0,
        is_retry: false,
        arrived: Duration::from_secs(arrived_secs),
    }
}

fn hinted(arrived_secs: u64, uncached_tokens: u32, priority: u32, strict: u32) -> Entry {
    Entry {
        priority,
        strict_priority: strict,
        ..entry(arrived_secs, uncached_tokens)
    }
}

fn of(tenant: &str, uncached_tokens: u32) -> Entry {
    Entry {
        tenant: tenant.into(),
        ..entry(0, uncached_tokens)
    }
}

fn push(queue: &mut Queue, entry: Entry) -> Result<Ticket, QueueFull> {
    let ticket = queue.ticket();
    queue.push(ticket, entry)?;
    Ok(ticket)
}

/// The order in which requests that all fit are taken out, by their positions in `entries`.
fn order(policy: QueuePolicy, entries: &[Entry]) -> Vec<u64> {
    let mut queue = Queue::new(policy, LIMITS);
    for entry in entries {
        push(&mut queue, entry.clone()).unwrap();
    }
    let popped = std::iter::from_fn(|| queue.pop("m", |_| true));
    let order = popped.map(|ticket| ticket.0).collect();
    assert_eq!((queue.requests(), queue.tokens()), (0, 0));
    assert!(!queue.has_waiting("m"));
    order
}

#[test]
fn a_tenants_requests_go_by_its_policy() {
    use QueuePolicy::{Fcfs, Lcfs, Wspt};
    let plain = [entry(1, 300), entry(2, 100), entry(3, 200)];
    let hints = [
        hinted(1, 300, 0, 0),
        hinted(2, 100, 0, 0),
        hinted(6, 400, 5, 0), // a head start of 5 s, and of 5 times its length
    ];
    let strict = [
        hinted(1, 10, 900, 0),
        hinted(2, 9_000, 0, 1),
        hinted(3, 9_001, 0, 2),
    ];
    let retry = Entry {
        is_retry: true,
        ..entry(9, 9_000)
    };
    let again = [hinted(1, 1, 9, 9), retry];
    let equal = [entry(1, 10), entry(1, 10), entry(1, 10)];
    for (policy, entries, expected) in [
        (Fcfs, &plain[..], &[0, 1, 2][..]),
        (Fcfs, &hints, &[0, 2, 1]),
        (Fcfs, &equal, &[0, 1, 2]),
        (Wspt, &plain, &[1, 2, 0]),
        (Wspt, &hints, &[2, 1, 0]),
        (Wspt, &equal, &[0, 1, 2]),
        (Lcfs, &plain, &[2, 1, 0]),
        (Lcfs, &hints, &[2, 1, 0]),
        (Lcfs, &equal, &[2, 1, 0]),
        (Fcfs, &strict, &[2, 1, 0]),
        (Wspt, &strict, &[2, 1, 0]),
        (Lcfs, &strict, &[2, 1, 0]),
        (Fcfs, &again, &[1, 0]),
        (Wspt, &again, &[1, 0]),
    ] {
        assert_eq!(order(policy, entries), expected, "{policy:?} {entries:?}");
    }
}

#[test]
fn tenants_take_turns_by_tokens() {
    for (entries, expected) in [
        // Ten times as many requests are no more tokens.
        (
            vec![
                of("a", 4_096),
                of("a", 4_096),
                of("a", 4_096),
                of("b", 4_096),
            ],
            vec![0, 1, 3, 2],
        ),
        // A quantum pays for one long request or for several short ones.
        (
            vec![
                of("a", 8_192),
                of("a", 8_192),
                of("b", 4_000),
                of("b", 4_000),
            ],
            vec![0, 2, 3, 1],
        ),
        // What is above a quantum is saved up for over turns.
        (
            vec![
                of("a", 20_000),
                of("b", 8_000),
                of("b", 8_000),
                of("b", 8_000),
            ],
            vec![1, 2, 0, 3],
        ),
        // Nothing is saved up by who does not ask, and all of a prompt that is cached costs 1.
        (vec![of("a", 0), of("b", 0), of("a", 0)], vec![0, 2, 1]),
    ] {
        assert_eq!(order(QueuePolicy::Fcfs, &entries), expected, "{entries:?}");
    }
}

#[test]
fn a_priority_moves_nobody_ahead_of_another_tenant() {
    let urgent = |tenant: &str| Entry {
        strict_priority: 9,
        priority: 1_000,
        is_retry: true,
        ..of(tenant, 8_192)
    };
    let entries = [of("a", 8_192), urgent("b"), urgent("b"), of("a", 8_192)];
    assert_eq!(order(QueuePolicy::Fcfs, &entries), [0, 1, 3, 2]);
}

#[test]
fn one_in_eight_is_the_oldest() {
    let entries: Vec<_> = (0..20).map(|at| entry(at, 1)).collect();
    let order = order(QueuePolicy::Lcfs, &entries);
    assert_eq!(order[..9], [19, 18, 17, 16, 15, 14, 13, 0, 12]);
    assert_eq!(order[15], 1);
}

#[test]
fn an_oldest_one_that_was_stuck_goes_first_as_soon_as_it_can() {
    let mut queue = Queue::new(QueuePolicy::Lcfs, LIMITS);
    for at in 0..30 {
        push(&mut queue, entry(at, 1)).unwrap();
    }
    let mut pop = |stuck: u64| queue.pop("m", |ticket| ticket.0 != stuck).map(|t| t.0);
    let popped: Vec<_> = (0..10).filter_map(|_| pop(0)).collect();
    assert_eq!(popped, [29, 28, 27, 26, 25, 24, 23, 1, 22, 21]);
    assert_eq!([pop(99), pop(99)], [Some(0), Some(20)]);
}

#[test]
fn who_cannot_be_placed_holds_up_nobody_else() {
    let stuck_of = |entries: &[Entry], stuck: &[u64]| {
        let mut queue = Queue::new(QueuePolicy::Fcfs, LIMITS);
        for entry in entries {
            push(&mut queue, entry.clone()).unwrap();
        }
        let mut asked = 0;
        let popped = queue.pop("m", |ticket| {
            asked += 1;
            !stuck.contains(&ticket.0)
        });
        (popped.map(|ticket| ticket.0), asked)
    };
    let many: Vec<_> = (0..40).map(|at| entry(at, 1)).collect();
    let first = |count: u64| (0..count).collect::<Vec<_>>();
    assert_eq!(stuck_of(&many, &first(3)), (Some(3), 4));
    assert_eq!(stuck_of(&many, &first(15)), (Some(15), 16));
    // So many are passed over, and no more.
    assert_eq!(stuck_of(&many, &first(16)), (None, 16));
    // But that is each tenant's own affair.
    let others: Vec<_> = many.iter().cloned().chain([of("b", 1)]).collect();
    assert_eq!(stuck_of(&others, &first(16)), (Some(40), 17));
}

#[test]
fn a_tenant_that_is_stuck_keeps_its_turn() {
    let mut queue = Queue::new(QueuePolicy::Fcfs, LIMITS);
    let entries = [
        of("a", 8_192),
        of("b", 8_192),
        of("b", 8_192),
        of("b", 8_192),
    ];
    for entry in entries {
        push(&mut queue, entry).unwrap();
    }
    for _ in 0..2 {
        assert_ne!(queue.pop("m", |ticket| ticket.0 != 0), Some(Ticket(0)));
    }
    assert_eq!(queue.pop("m", |_| true), Some(Ticket(0)));
}

#[test]
fn no_more_waits_than_may() {
    let full = |requests_max, tokens_max, entries: &[Entry]| {
        let limits = QueueLimits {
            requests_max,
            tokens_max,
            ..LIMITS
        };
        let mut queue = Queue::new(QueuePolicy::Fcfs, limits);
        let pushed: Vec<_> = entries
            .iter()
            .map(|e| push(&mut queue, e.clone()))
            .collect();
        let taken = pushed.iter().filter(|pushed| pushed.is_ok()).count();
        let refused = pushed.into_iter().find_map(Result::err);
        (taken, refused.map(|full| full.to_string()))
    };
    let requests = "2 requests wait already, as many as may";
    let tokens = "5 prompt tokens wait already, and with 6 more they would be above 10";
    for (limits, expected) in [
        ((3, 100), (3, None)),
        ((2, 100), (2, Some(requests))),
        ((3, 10), (2, Some(tokens))),
    ] {
        let entries = [entry(1, 5), entry(2, 6), entry(3, 5)];
        let (taken, refused) = full(limits.0, limits.1, &entries);
        assert_eq!((taken, refused.as_deref()), expected, "{limits:?}");
    }
}

#[test]
fn no_tenant_fills_the_queue() {
    let limits = QueueLimits {
        requests_max: 12,
        tokens_max: 1_200,
        ..LIMITS
    };
    let mut queue = Queue::new(QueuePolicy::Fcfs, limits);
    let mut fill = |tenant: &str, tokens: u32| {
        let tickets = std::iter::from_fn(|| push(&mut queue, of(tenant, tokens)).ok());
        let taken = tickets.count();
        let refused = push(&mut queue, of(tenant, tokens)).unwrap_err();
        assert!(matches!(refused, QueueFull::Tenant { .. }), "{refused}");
        taken
    };
    // Each as many as it leaves free; by requests first, then by tokens.
    assert_eq!([fill("a", 10), fill("b", 10), fill("c", 400)], [6, 3, 1]);
    for _ in 0..10 {
        queue.pop("m", |_| true).unwrap();
    }
    assert!(queue.tenants.is_empty());
}

#[test]
fn who_leaves_or_has_waited_long_enough_makes_room() {
    let mut queue = Queue::new(QueuePolicy::Lcfs, LIMITS);
    let tickets: Vec<_> = (0..4)
        .map(|at| push(&mut queue, entry(at, 10)).unwrap())
        .collect();
    assert!(queue.remove(tickets[1]));
    assert!(!queue.remove(tickets[1]), "once only");
    assert_eq!((queue.requests(), queue.tokens()), (3, 30));
    for (now_secs, expired) in [(49, &[][..]), (50, &tickets[..1]), (52, &tickets[2..3])] {
        let now = Duration::from_secs(now_secs);
        assert_eq!(queue.has_expired(now), !expired.is_empty());
        assert_eq!(queue.expire(now), expired, "at {now:?}");
    }
    assert_eq!(queue.pop("m", |_| true), Some(tickets[3]));
    assert_eq!((queue.requests(), queue.tokens()), (0, 0));
    assert!(queue.models().is_empty());
}

#[test]
fn models_wait_apart() {
    let mut queue = Queue::new(QueuePolicy::Fcfs, LIMITS);
    let other = Entry {
        model: "other".into(),
        ..entry(1, 10)
    };
    let first = push(&mut queue, other).unwrap();
    let second = push(&mut queue, entry(2, 10)).unwrap();
    assert_eq!(queue.pop("m", |_| true), Some(second));
    assert_eq!(queue.pop("m", |_| true), None);
    assert_eq!(queue.pop("other", |_| true), Some(first));
}
