//! A request at work: its choices on one rank, read token by token, stopped when dropped.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::mock::answer::{Answer, Cursor, Finish};
use crate::mock::hash::Identity;
use crate::mock::prompt::Prompt;
use crate::mock::rank::{Rank, Track};
use crate::mock::scheduler::{Sequence, SequenceId};
use crate::mock::server::{Server, Terms};

/// All choices of a request. Dropping it aborts those that still run.
#[derive(Debug)]
pub struct Generation {
    server: Arc<Server>,
    rank: Arc<Rank>,
    wake: Arc<Notify>,
    pub choices: Vec<Choice>,
    prompts: Vec<PromptSize>,
    /// The first prompt's ids, for `return_token_ids`.
    pub prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug)]
struct PromptSize {
    tokens: usize,
    image_tokens: Option<usize>,
    first_choice: usize,
}

/// One choice of the answer.
#[derive(Debug)]
pub struct Choice {
    id: SequenceId,
    track: Arc<Track>,
    answer: Arc<OnceLock<Answer>>,
    cursor: Cursor,
    /// Tokens handed out.
    read: usize,
    text_bytes: usize,
}

/// One token's share of an answer.
#[derive(Debug)]
pub struct Piece {
    pub token: u32,
    pub text: String,
    pub finish: Option<Finish>,
}

impl Generation {
    /// Hands every choice of every prompt to the rank.
    pub fn start(server: &Arc<Server>, terms: &Terms, prompts: Vec<Prompt>) -> Self {
        let ids = terms
            .return_token_ids
            .then(|| prompts.first().map(|p| p.tokens.clone()));
        let mut generation = Self {
            server: Arc::clone(server),
            rank: Arc::clone(&server.ranks[terms.rank]),
            wake: Arc::default(),
            choices: Vec::with_capacity(prompts.len() * terms.choices),
            prompts: Vec::with_capacity(prompts.len()),
            prompt_token_ids: ids.flatten(),
        };
        for prompt in prompts {
            let image_tokens = prompt.media.iter().map(|span| span.length).sum();
            generation.prompts.push(PromptSize {
                tokens: prompt.tokens.len(),
                image_tokens: (!prompt.media.is_empty()).then_some(image_tokens),
                first_choice: generation.choices.len(),
            });
            for _ in 1..terms.choices {
                generation.submit(terms, prompt.clone());
            }
            generation.submit(terms, prompt);
        }
        generation
    }

    /// Waits until something has changed.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    pub fn is_finished(&self) -> bool {
        self.choices.iter().all(Choice::is_finished)
    }

    /// The next token of choice `index` that nobody has read.
    pub fn next_piece(&mut self, index: usize) -> Option<Piece> {
        self.choices[index].next_piece(&self.server)
    }

    /// The whole of a finished choice: its tokens, its text and why it ended.
    pub fn whole(&self, index: usize) -> Option<(&Answer, String)> {
        let answer = self.choices[index].answer.get()?;
        let mut text = self
            .server
            .model
            .decode(&answer.tokens[..answer.text_tokens]);
        if text.len() > answer.text_bytes_max {
            text.truncate(text.floor_char_boundary(answer.text_bytes_max));
        }
        Some((answer, text))
    }

    /// The `usage` object as of now; `created` where vLLM counts what was added to the cache.
    pub fn usage(&self, created: bool) -> Value {
        let states: Vec<_> = self
            .choices
            .iter()
            .map(|choice| choice.track.read())
            .collect();
        let completion: usize = states.iter().map(|state| state.produced).sum();
        let prompt: usize = self.prompts.iter().map(|prompt| prompt.tokens).sum();
        let images = self.prompts.iter().filter_map(|prompt| prompt.image_tokens);
        let images = images.reduce(|sum, tokens| sum + tokens);
        // Other choices of a prompt always find it cached; only the first one tells.
        let first = self
            .prompts
            .iter()
            .map(|prompt| states[prompt.first_choice]);
        let admissions: Vec<_> = first.filter_map(|state| state.admission).collect();
        let cached: usize = admissions
            .iter()
            .map(|admission| admission.cached_tokens)
            .sum();
        let added: usize = admissions
            .iter()
            .map(|admission| admission.created_tokens)
            .sum();
        json!({
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {
                "cached_tokens": cached,
                "created_cache_tokens": created.then_some(added),
                "multimodal_tokens": images.map(|tokens| json!({ "image": tokens })),
            },
            "completion_tokens_details": null,
        })
    }

    fn submit(&mut self, terms: &Terms, prompt: Prompt) {
        let track = Arc::new(Track::new(Arc::clone(&self.wake), terms.stream));
        let answer = Arc::new(OnceLock::new());
        let id = self.server.next_sequence();
        let seen = prompt.describe();
        let begun = self.server.writer.begun(&self.server.model, &prompt.tokens);
        let prompt_tokens = prompt.tokens.len();
        let mut wishes = terms.wishes.clone();
        wishes.context_tokens_left = self.server.context_tokens_max - prompt_tokens;
        let (server, decided, told) = (
            Arc::clone(&self.server),
            Arc::clone(&answer),
            Arc::clone(&track),
        );
        let sequence = Sequence {
            id,
            tokens: prompt.tokens,
            identity: Identity {
                lora: terms.lora.clone(),
                salt: terms.salt.clone(),
                media: prompt.media,
            },
            report_reused: terms.report_reused,
            skip_cache: terms.skip_cache,
            session: terms.session.clone(),
            answer: Box::new(move |admission| {
                told.admitted(admission);
                let known = (admission, prompt_tokens);
                let prompt = (&*seen, begun.as_deref());
                let answer = server.writer.write(&server.model, prompt, known, &wishes);
                Arc::clone(&decided.get_or_init(|| answer).tokens)
            }),
        };
        self.rank.submit(sequence, Arc::clone(&track));
        self.choices.push(Choice {
            id,
            track,
            answer,
            cursor: Cursor::default(),
            read: 0,
            text_bytes: 0,
        });
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let running = self.choices.iter().filter(|choice| !choice.is_finished());
        running.for_each(|choice| self.rank.abort(choice.id));
    }
}

impl Choice {
    /// True once the engine has produced its last token.
    pub fn is_finished(&self) -> bool {
        self.track.read().finished
    }

    /// True once its last token has been read.
    pub fn is_read(&self) -> bool {
        self.answer
            .get()
            .is_some_and(|answer| answer.tokens.len() == self.read)
    }

    fn next_piece(&mut self, server: &Server) -> Option<Piece> {
        let answer = self.answer.get()?;
        if self.read >= self.track.read().produced {
            return None;
        }
        let token = answer.tokens[self.read];
        self.read += 1;
        let last = self.read == answer.tokens.len();
        let mut text = String::new();
        if self.read <= answer.text_tokens {
            let ended = self.read == answer.text_tokens;
            text = self
                .cursor
                .read(&server.model, &answer.tokens[..self.read], ended);
        }
        let left = answer.text_bytes_max.saturating_sub(self.text_bytes);
        if text.len() > left {
            text.truncate(text.floor_char_boundary(left));
        }
        self.text_bytes += text.len();
        let finish = last.then(|| answer.finish.clone());
        Some(Piece {
            token,
            text,
            finish,
        })
    }
}
