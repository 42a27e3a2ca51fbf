//! What the mock engine says: what it saw, what its cache knew, then filler.

use crate::mock::scheduler::Admission;
use crate::model::Model;

/// Answer tokens when the client names no limit.
pub const DEFAULT_TOKENS: usize = 64;

const FILLER: &str = " This answer is made up by a mock engine, which has no weights and no GPU; \
     it counts blocks as a real engine does, and its words only take their time: läuft, 走る, готово.";

/// Why an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At its natural end, or at one of the client's stop strings.
    Stop(Option<String>),
    Length,
}

/// What the client asked of the answer.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub tokens_max: Option<usize>,
    /// What the model's context leaves.
    pub context_tokens_left: usize,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
}

/// A whole answer, decided when its request is admitted.
#[derive(Clone, Debug)]
pub struct Answer {
    pub tokens: std::sync::Arc<[u32]>,
    /// Tokens that have text; an end token after them has none.
    pub text_tokens: usize,
    /// Where a stop string cuts the text.
    pub text_bytes_max: usize,
    pub finish: Finish,
}

/// Writes answers; reads the filler once.
#[derive(Debug)]
pub struct Writer {
    filler: Vec<u32>,
}

impl Writer {
    /// A writer in the model's tokens.
    pub fn new(model: &Model) -> Self {
        let filler = model.encode(FILLER, false).unwrap_or_default();
        // A tokenizer that knows none of the words still has to answer something.
        let filler = if filler.is_empty() { vec![0] } else { filler };
        Self { filler }
    }

    /// The answer to a prompt in which `seen` was seen.
    pub fn write(
        &self,
        model: &Model,
        seen: &str,
        admission: (Admission, usize),
        wishes: &Wishes,
    ) -> Answer {
        let (Admission { cached_tokens, .. }, prompt_tokens) = admission;
        let head = format!(
            "I see {seen}; {cached_tokens} of {prompt_tokens} prompt tokens came from my cache."
        );
        let eos = model.eos_tokens().first().filter(|_| !wishes.ignore_eos);
        let wanted = wishes.tokens_max.unwrap_or(DEFAULT_TOKENS);
        let count = wanted.min(wishes.context_tokens_left).max(1);
        let ends = wishes.tokens_max.is_none() && count == wanted;
        let text_tokens = if ends && eos.is_some() {
            count - 1
        } else {
            count
        };
        let mut tokens = model.encode(&head, false).unwrap_or_default();
        tokens.truncate(text_tokens);
        let missing = text_tokens - tokens.len();
        tokens.extend(self.filler.iter().cycle().take(missing));
        if let Some(cut) = find_stop(model, &tokens, &wishes.stop) {
            return cut;
        }
        if ends {
            tokens.extend(eos);
        }
        Answer {
            tokens: tokens.into(),
            text_tokens,
            text_bytes_max: usize::MAX,
            finish: if ends {
                Finish::Stop(None)
            } else {
                Finish::Length
            },
        }
    }
}

/// The answer cut at the first stop string; the tokens up to the one that completes it remain.
fn find_stop(model: &Model, tokens: &[u32], stop: &[String]) -> Option<Answer> {
    if stop.is_empty() {
        return None;
    }
    let mut cursor = Cursor::default();
    let mut text = String::new();
    for count in 1..=tokens.len() {
        text.push_str(&cursor.read(model, &tokens[..count], false));
        let found = stop
            .iter()
            .filter_map(|stop| Some((text.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min() {
            return Some(Answer {
                tokens: tokens[..count].into(),
                text_tokens: count,
                text_bytes_max: at,
                finish: Finish::Stop(Some(stop.clone())),
            });
        }
    }
    None
}

/// Turns a growing list of tokens into text, never splitting a character.
#[derive(Debug, Default)]
pub struct Cursor {
    context: usize,
    read: usize,
}

impl Cursor {
    /// The text that the tokens since the last call add; empty while a character is incomplete,
    /// unless they are the `last` ones.
    pub fn read(&mut self, model: &Model, tokens: &[u32], last: bool) -> String {
        // Decoding starts at earlier tokens because some tokenizers drop a leading space.
        let before = model.decode(&tokens[self.context..self.read]);
        let mut text = model.decode(&tokens[self.context..]);
        if text.len() <= before.len() || (text.ends_with('\u{fffd}') && !last) {
            return String::new();
        }
        self.context = self.read;
        self.read = tokens.len();
        if text.is_char_boundary(before.len()) {
            text.split_off(before.len())
        } else {
            String::new()
        }
    }
}
