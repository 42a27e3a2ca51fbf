//! What the mock engine says: what it saw, what its cache knew, then filler.
//!
//! Like a model it reads its own answer so far: a prompt that ends with the beginning of an answer
//! gets the rest of it, to the token, so that a cut shows in the whole.

use crate::mock::scheduler::Admission;
use crate::model::Model;

/// Answer tokens when the client names no limit.
pub const DEFAULT_TOKENS: usize = 64;

const FILLER: &str = " This answer is made up by a mock engine, which has no weights and no GPU; \
     it counts blocks as a real engine does, and its words only take their time: läuft, 走る, готово.";

/// How every answer begins, and how what it says of the prompt ends.
const OPENING: &str = "I see ";
const CLOSING: &str = " came from my cache.";

/// Tokens at a prompt's end in which an answer's beginning is looked for.
const LOOK_BACK_TOKENS: usize = 8_192;

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

    /// The beginning of an answer that a prompt ends with.
    pub fn begun(&self, model: &Model, prompt: &[u32]) -> Option<String> {
        // Most prompts end with a line break, and no answer has one.
        let last = model.decode(&prompt[prompt.len().saturating_sub(1)..]);
        if last.is_empty() || last.ends_with('\n') {
            return None;
        }
        let tail = model.decode(&prompt[prompt.len().saturating_sub(LOOK_BACK_TOKENS)..]);
        let text = &tail[tail.rfind(OPENING)?..];
        let Some(at) = text.find(CLOSING) else {
            return (!text.contains('\n')).then(|| text.to_owned());
        };
        let said = text[at + CLOSING.len()..].chars();
        let is_filler = said.zip(FILLER.chars().cycle()).all(|(a, b)| a == b);
        is_filler.then(|| text.to_owned())
    }

    /// The answer to a prompt in which `seen` was seen, or what it lacks of the one that has begun.
    pub fn write(
        &self,
        model: &Model,
        (seen, begun): (&str, Option<&str>),
        admission: (Admission, usize),
        wishes: &Wishes,
    ) -> Answer {
        let (Admission { cached_tokens, .. }, prompt_tokens) = admission;
        let mut head =
            format!("{OPENING}{seen}; {cached_tokens} of {prompt_tokens} prompt tokens{CLOSING}");
        if let Some((said, at)) = begun.and_then(|text| Some((text, text.find(CLOSING)?))) {
            head = said[..at + CLOSING.len()].to_owned();
        }
        let begun = begun.map(|text| model.encode(text, false).unwrap_or_default());
        let begun = begun.map_or(0, |tokens| tokens.len());
        let eos = model.eos_tokens().first().filter(|_| !wishes.ignore_eos);
        // A limit beyond what the context leaves is none.
        let limit = wishes.tokens_max;
        let limit = limit.filter(|limit| begun == 0 || *limit < wishes.context_tokens_left);
        let wanted = limit.unwrap_or(DEFAULT_TOKENS.saturating_sub(begun));
        let count = wanted.min(wishes.context_tokens_left).max(1);
        let ends = limit.is_none() && count == wanted.max(1);
        let text_tokens = if ends && eos.is_some() {
            count - 1
        } else {
            count
        };
        let head = model.encode(&head, false).unwrap_or_default();
        let whole = head.iter().chain(self.filler.iter().cycle());
        let mut tokens: Vec<u32> = whole.skip(begun).take(text_tokens).copied().collect();
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
