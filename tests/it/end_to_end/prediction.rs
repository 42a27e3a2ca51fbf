//! Many requests of every kind: what the router predicts is what the engine finds cached.

use serde_json::{Value, json};

use crate::end_to_end::pictures::{data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{FAST, Stack};

const REQUESTS: usize = 500;

/// Tokens of a block of the mock engines.
const BLOCK: u64 = 16;

/// Small, so that blocks are evicted all the time: two caches hold 3,800 tokens in all.
const BLOCKS: &str = "--num-gpu-blocks 120";

/// Turns after which a conversation ends, so that it fits the cache.
const TURNS_MAX: usize = 4;

const SYSTEM: [&str; 2] = [
    "You describe pictures to people who cannot see them. Be brief, name colours, count things.",
    "You are a surveyor who reads maps and aerial pictures and answers with numbers alone, please.",
];

const QUESTIONS: [&str; 5] = [
    "What is in the middle, and what stands to the left of it?",
    "How many are there? Läuft da jemand, 走る, or is nobody to be seen at all?",
    "Compare it with the one before and list three differences between them, one per line.",
    "Is it day or night there, and how can you tell? Look at the shadows and the sky again.",
    "And now?",
];

/// Evenly spread numbers that follow from the seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// A conversation, which grows by a question and an answer at each turn.
#[derive(Clone)]
struct Talk {
    salt: Value,
    messages: Vec<Value>,
    turns: usize,
}

/// Makes requests that are like those before them, more or less.
struct Clients {
    random: Random,
    pictures: Vec<String>,
    talks: Vec<Talk>,
}

impl Clients {
    fn new(seed: u64) -> Self {
        let sizes = [
            (20, 30),
            (64, 64),
            (300, 200),
            (200, 300),
            (512, 256),
            (448, 448),
        ];
        let picture = |((width, height), seed): (_, u8)| data_uri(&png(width, height, seed));
        // Each size comes twice, with other pixels.
        let pictures = sizes.into_iter().cycle().zip(0..12).map(picture);
        Self {
            random: Random(seed),
            pictures: pictures.collect(),
            talks: Vec::new(),
        }
    }

    /// The next request, and the conversation it belongs to.
    fn next(&mut self) -> (Value, Option<Talk>) {
        let mut talk = None;
        let mut body = match self.random.below(10) {
            0 => self.completion_of_text(),
            1 => self.completion_of_tokens(),
            _ => {
                let next = self.turn();
                let body = json!({"messages": next.messages, "cache_salt": next.salt});
                talk = Some(next);
                body
            }
        };
        body["model"] = "demo".into();
        body["max_tokens"] = (1 + self.random.below(48)).into();
        if self.random.below(3) == 0 {
            body = streamed(body);
        }
        (body, talk)
    }

    fn completion_of_text(&mut self) -> Value {
        let mut prompt = SYSTEM[0].repeat(1 + self.random.below(6));
        prompt.push_str(self.random.pick(&QUESTIONS));
        json!({"prompt": prompt})
    }

    fn completion_of_tokens(&mut self) -> Value {
        let start = self.random.below(3);
        let count = 1 + self.random.below(400);
        let tokens: Vec<usize> = (0..count)
            .map(|at| (start * 97 + at * 31) % 2_000)
            .collect();
        json!({"prompt": tokens})
    }

    fn turn(&mut self) -> Talk {
        let is_new = self.talks.is_empty() || self.random.below(3) == 0;
        let mut talk = if is_new {
            let salt = self
                .random
                .pick(&[json!(null), json!("red"), json!("blue")]);
            let system = self.random.pick(&SYSTEM);
            Talk {
                salt,
                messages: vec![json!({"role": "system", "content": system})],
                turns: 0,
            }
        } else {
            self.random.pick(&self.talks)
        };
        let mut parts = vec![text(self.random.pick(&QUESTIONS))];
        if self.random.below(3) > 0 {
            let at = self.random.below(2);
            parts.insert(at, image(&self.random.pick(&self.pictures)));
        }
        talk.messages
            .push(json!({"role": "user", "content": parts}));
        talk.turns += 1;
        talk
    }

    fn answered(&mut self, mut talk: Talk, answer: &str) {
        talk.messages
            .push(json!({"role": "assistant", "content": answer}));
        if talk.turns < TURNS_MAX {
            self.talks.push(talk);
        }
        if self.talks.len() > 8 {
            self.talks.remove(0);
        }
    }
}

#[tokio::test]
async fn the_prediction_is_right_every_time() {
    let stack = Stack::start(&format!("-- {FAST} {BLOCKS}")).await;
    let mut clients = Clients::new(0x6b76_6c65_6e73);
    let mut cached_requests = 0;
    let mut workers = std::collections::BTreeSet::new();
    for number in 0..REQUESTS {
        let (body, talk) = clients.next();
        let told = stack.ask_settled(&body).await;
        let predicted_tokens = told.overlap_blocks * BLOCK;
        assert_eq!(
            told.cached_tokens, predicted_tokens,
            "request {number}: {told:?} {body}"
        );
        assert_eq!(
            told.prompt_blocks,
            told.prompt_tokens / BLOCK,
            "request {number}"
        );
        cached_requests += usize::from(told.cached_tokens > 0);
        if let Some(talk) = talk {
            clients.answered(talk, &told.text);
        }
        workers.insert(told.worker);
    }
    assert_eq!(workers.len(), 2);
    assert!(
        cached_requests > REQUESTS / 4,
        "{cached_requests} found something cached"
    );
    let evicted = stack
        .metric("kvlens_kv_events_total{kind=\"removed\"}")
        .await;
    assert!(evicted > 100.0, "{evicted} blocks were evicted");
    for (name, expected) in [
        ("kvlens_kv_event_gaps_total", 0.0),
        ("kvlens_retries_total", 0.0),
        ("kvlens_parity_failures_total", 0.0),
        ("kvlens_prompt_length_mismatch_total", 0.0),
        ("kvlens_in_flight_requests", 0.0),
    ] {
        assert_eq!(stack.metric(name).await, expected, "{name}");
    }
    stack.end().await;
}
