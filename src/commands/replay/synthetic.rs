//! Traces made up by chance, after what is known of real ones.
//!
//! The counts of tokens are those of ServeGen's trace of a multimodal service (its `mm-image` set, of
//! 35 clients): their medians and 90th percentiles over the clients' windows. What it does not tell is
//! how often an image comes again; that, and what makes it hard, is chosen here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use crate::commands::replay::chance::{Chance, Tokens, Zipf};
use crate::commands::replay::prompt::{Part, Prompt};
use crate::commands::replay::trace::{Request, Trace};

/// Tokens of one image.
const IMAGE: Tokens = Tokens {
    p50: 361.0,
    p90: 1_170.0,
    max: 16_384,
};

/// Tokens of a request's text; a client's own lead is as long as what is new.
const TEXT: Tokens = Tokens {
    p50: 71.0,
    p90: 383.0,
    max: 8_192,
};

/// Tokens of an answer.
const OUTPUT: Tokens = Tokens {
    p50: 41.0,
    p90: 217.0,
    max: 4_096,
};

/// Of the requests with so many images, those with one more: 1 at the median, 1.95 at the 90th
/// percentile.
const ONE_MORE_IMAGE: f64 = 0.2;

/// Most images of a request.
const IMAGES_MAX: usize = 16;

/// Clients, each with a lead of its own; as many as ServeGen saw, to a power of two.
const CLIENTS: u32 = 32;

/// Images that come again and again, the first of them most often.
const POOL_IMAGES: u32 = 4_096;

/// The share of images that are of the pool; the others come once.
const REUSE: f64 = 0.5;

/// Requests in a second; eight engines of 20,000 tokens a second compute their prompts in about
/// half of the time, if nothing is cached.
const IMAGE_REQUESTS_PER_SECOND: f64 = 100.0;

/// How often a burst begins, how long it lasts, and the share of requests in it that show its image:
/// one picture that many ask about at once.
const BURST_EVERY: f64 = 20.0;
const BURST_SECONDS: f64 = 3.0;
const BURST_SHARE: f64 = 0.6;

/// Conversations that begin in a second, the chance of one more turn, and the mean time between an
/// answer and the next question. Chosen, not measured.
const CHATS_PER_SECOND: f64 = 5.0;
const ONE_MORE_TURN: f64 = 0.8;
const THINKING_SECONDS: f64 = 30.0;

/// Tokens of a chat's questions and answers: longer than about images. Chosen, not measured.
const QUESTION: Tokens = Tokens {
    p50: 300.0,
    p90: 2_000.0,
    max: 32_768,
};
const ANSWER: Tokens = Tokens {
    p50: 200.0,
    p90: 700.0,
    max: 4_096,
};

/// Most turns of a conversation.
const TURNS_MAX: usize = 64;

/// Tokens of a chat client's lead.
const CHAT_LEAD_TOKENS: u32 = 1_024;

/// How fast answers come while a chat is made up; the next question waits for them.
const ANSWER_TOKENS_PER_SECOND: f64 = 50.0;

/// Requests of a trace unless told.
pub(crate) const REQUESTS: usize = 20_000;

/// What is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Synthetic {
    /// Short prompts about one or two images, some of which many ask about at once
    Image,
    /// Conversations whose prompts grow with each turn
    Chat,
}

impl Synthetic {
    /// A trace of so many requests, which `seed` decides.
    pub(crate) fn trace(self, requests: usize, seed: u64) -> Trace {
        let chance = Chance::new(seed);
        match self {
            Self::Image => Trace::new("synthetic-image".to_owned(), images(requests, chance)),
            Self::Chat => Trace::new("synthetic-chat".to_owned(), chats(requests, chance)),
        }
    }
}

/// Ids that come once.
#[derive(Debug)]
struct Fresh(u64);

impl Fresh {
    fn next(&mut self) -> u64 {
        // Far from those of clients and of the pool.
        self.0 += 1;
        (1 << 32) + self.0
    }
}

/// An image of the pool always has one size, and one client that asks about it.
fn pool_image(seed: u64, rank: usize) -> (Part, u32) {
    let mut chance = Chance::new(seed ^ (rank as u64 + 1));
    let part = Part::image(rank as u64, chance.tokens(IMAGE));
    (part, (chance.bits() % u64::from(CLIENTS)) as u32)
}

fn lead(seed: u64, client: u32) -> Part {
    let mut chance = Chance::new(seed ^ (u64::from(client) << 32));
    Part::text(u64::from(client), chance.tokens(TEXT).div_ceil(2))
}

fn images(requests: usize, mut chance: Chance) -> Vec<Request> {
    let seed = chance.bits();
    let pool = Zipf::new(POOL_IMAGES, 1.0);
    let clients = Zipf::new(CLIENTS, 1.0);
    let mut fresh = Fresh(0);
    let mut now = 0.0;
    let mut hot = 0;
    let request = |_| {
        let burst = now % BURST_EVERY < BURST_SECONDS && now > BURST_EVERY;
        let before = now;
        now += chance.exponential(1.0 / IMAGE_REQUESTS_PER_SECOND);
        if (before / BURST_EVERY).floor() < (now / BURST_EVERY).floor() {
            // The next burst's image; any of the pool.
            hot = (chance.bits() % u64::from(POOL_IMAGES)) as usize;
        }
        let mut client = chance.rank(&clients) as u32;
        let mut shown = Vec::new();
        while shown.len() < IMAGES_MAX && (shown.is_empty() || chance.happens(ONE_MORE_IMAGE)) {
            let is_hot = burst && shown.is_empty() && chance.happens(BURST_SHARE);
            let part = if is_hot || chance.happens(REUSE) {
                let rank = if is_hot { hot } else { chance.rank(&pool) };
                let (part, owner) = pool_image(seed, rank);
                client = if shown.is_empty() { owner } else { client };
                part
            } else {
                Part::image(fresh.next(), chance.tokens(IMAGE))
            };
            shown.push(part);
        }
        let question = Part::text(fresh.next(), chance.tokens(TEXT).div_ceil(2));
        let mut parts = vec![lead(seed, client)];
        parts.append(&mut shown);
        parts.push(question);
        Request {
            arrival: Duration::from_secs_f64(now),
            tenant: Arc::default(),
            prompt: Prompt::Parts(parts.into()),
            output_tokens: chance.tokens(OUTPUT),
        }
    };
    (0..requests).map(request).collect()
}

fn chats(requests: usize, mut chance: Chance) -> Vec<Request> {
    let clients = Zipf::new(CLIENTS, 1.0);
    let mut fresh = Fresh(0);
    let mut made = Vec::with_capacity(requests);
    // Questions to come, by nanosecond; at one time in the order in which they were planned.
    let mut coming = BinaryHeap::new();
    let mut told: Vec<Vec<Part>> = Vec::new();
    let mut next_chat = 0.0;
    while made.len() < requests {
        let next: Option<Reverse<(Duration, usize)>> = coming.peek().copied();
        let begins = Duration::from_secs_f64(next_chat);
        let (now, chat) = match next {
            Some(Reverse((at, chat))) if at < begins => {
                coming.pop();
                (at, chat)
            }
            _ => {
                next_chat += chance.exponential(1.0 / CHATS_PER_SECOND);
                let client = chance.rank(&clients) as u64;
                told.push(vec![Part::text(client, CHAT_LEAD_TOKENS)]);
                (begins, told.len() - 1)
            }
        };
        let parts = &mut told[chat];
        parts.push(Part::text(fresh.next(), chance.tokens(QUESTION)));
        let output_tokens = chance.tokens(ANSWER);
        made.push(Request {
            arrival: now,
            tenant: Arc::default(),
            prompt: Prompt::Parts(parts.as_slice().into()),
            output_tokens,
        });
        parts.push(Part::text(fresh.next(), output_tokens));
        if parts.len() / 2 < TURNS_MAX && chance.happens(ONE_MORE_TURN) {
            let answering = f64::from(output_tokens) / ANSWER_TOKENS_PER_SECOND;
            let waits = answering + chance.exponential(THINKING_SECONDS);
            coming.push(Reverse((now + Duration::from_secs_f64(waits), chat)));
        } else {
            *parts = Vec::new();
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::replay::prompt::PartKind;

    fn images_of(request: &Request) -> Vec<u64> {
        let Prompt::Parts(parts) = &request.prompt else {
            panic!("it is made of parts");
        };
        let images = parts.iter().filter(|part| part.kind == PartKind::Image);
        images.map(|part| part.id).collect()
    }

    #[test]
    fn images_come_again_and_in_bursts() {
        let trace = Synthetic::Image.trace(10_000, 1);
        let shown: Vec<_> = trace.requests.iter().map(images_of).collect();
        let mean = shown.iter().map(Vec::len).sum::<usize>() as f64 / 1e4;
        assert!((1.2..1.3).contains(&mean), "{mean}");
        let pooled = |ids: &&Vec<u64>| ids[0] < u64::from(POOL_IMAGES);
        let reused = shown.iter().filter(pooled).count() as f64 / 1e4;
        assert!((0.5..0.6).contains(&reused), "{reused}");
        // In a burst most show one image.
        let in_burst = |request: &&Request| (80.0..83.0).contains(&request.arrival.as_secs_f64());
        let firsts = trace.requests.iter().filter(in_burst);
        let firsts: Vec<_> = firsts.map(|request| images_of(request)[0]).collect();
        let most = |id: &u64| firsts.iter().filter(|other| *other == id).count();
        let share = firsts.iter().map(most).max().unwrap() as f64 / firsts.len() as f64;
        assert!((0.5..0.75).contains(&share), "{share}");
    }

    #[test]
    fn a_turn_begins_with_the_turns_before_it() {
        let trace = Synthetic::Chat.trace(2_000, 1);
        let parts = |request: &Request| match &request.prompt {
            Prompt::Parts(parts) => parts.to_vec(),
            Prompt::Named { .. } => Vec::new(),
        };
        let prompts: Vec<_> = trace.requests.iter().map(parts).collect();
        let later = prompts.iter().filter(|parts| parts.len() > 2);
        for parts in later.clone() {
            let before = &parts[..parts.len() - 2];
            assert!(prompts.iter().any(|other| other == before));
        }
        let share = later.count() as f64 / 2_000.0;
        assert!((0.5..0.75).contains(&share), "{share}"); // 0.8 without the start
    }

    #[test]
    fn a_seed_decides_everything() {
        for kind in [Synthetic::Image, Synthetic::Chat] {
            let [a, b, c] = [1, 1, 2].map(|seed| kind.trace(300, seed).requests);
            assert_eq!(a, b);
            assert_ne!(a, c);
            assert_eq!(a.len(), 300);
        }
    }
}
