//! An engine's stream of server-sent events: split into whole events, each told for what it is.

use bytes::{Bytes, BytesMut};
use memchr::{memchr_iter, memmem};
use serde::Deserialize;

/// The token counts an engine reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    #[serde(default)]
    pub prompt_tokens: u32,
    #[serde(default)]
    pub completion_tokens: u32,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct PromptTokensDetails {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl Usage {
    /// Prompt tokens the engine found in its cache; `None` where it does not say.
    pub fn cached_tokens(self) -> Option<u32> {
        self.prompt_tokens_details
            .and_then(|details| details.cached_tokens)
    }
}

/// What an event of an engine's stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A piece of the answer.
    Piece,
    /// The chunk with the token counts.
    Usage(Usage),
    /// An error inside the stream.
    Error,
    /// `[DONE]`.
    Done,
    /// A comment or an empty event.
    Other,
}

/// An event that is longer than any we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of over {bytes_max} bytes in an engine's stream")]
pub struct EventTooLong {
    bytes_max: usize,
}

/// Cuts a byte stream into events at their blank lines, wherever the network cut it.
#[derive(Debug)]
pub struct Splitter {
    bytes_max: usize,
    pending: BytesMut,
    /// Bytes of `pending` known to hold no event's end.
    searched: usize,
}

impl Splitter {
    /// A splitter of events of at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            pending: BytesMut::new(),
            searched: 0,
        }
    }

    /// Takes in what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole event, its blank line included; `None` until more arrives.
    ///
    /// # Errors
    /// When an event grows over the limit.
    pub fn next_event(&mut self) -> Result<Option<Bytes>, EventTooLong> {
        // An end cut in two begins up to three bytes before what is new.
        let from = self.searched.saturating_sub(3);
        if let Some(end) = event_end(&self.pending[from..]) {
            self.searched = 0;
            return Ok(Some(self.pending.split_to(from + end).freeze()));
        }
        self.searched = self.pending.len();
        match self.pending.len() > self.bytes_max {
            true => Err(EventTooLong {
                bytes_max: self.bytes_max,
            }),
            false => Ok(None),
        }
    }
}

/// Where the first event ends, past its blank line (`\n\n` or `\r\n\r\n`).
fn event_end(bytes: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', bytes).find_map(|at| match &bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Tells what an event is. Only the rare ones are parsed; a piece of the answer costs two searches.
pub fn classify(event: &[u8]) -> EventKind {
    let Some(payload) = event.trim_ascii_start().strip_prefix(b"data:") else {
        return EventKind::Other;
    };
    let payload = payload.trim_ascii();
    if payload == b"[DONE]" {
        return EventKind::Done;
    }
    if payload.starts_with(b"{\"error\"") {
        return EventKind::Error;
    }
    let has = |wanted: &[u8]| memmem::find(payload, wanted).is_some();
    if has(b"\"usage\":") && !has(b"\"usage\":null") {
        #[derive(Deserialize)]
        struct Chunk {
            usage: Option<Usage>,
            #[serde(default)]
            choices: Vec<serde::de::IgnoredAny>,
        }
        if let Ok(Chunk {
            usage: Some(usage),
            choices,
        }) = serde_json::from_slice(payload)
            && choices.is_empty()
        {
            return EventKind::Usage(usage);
        }
    }
    EventKind::Piece
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b": hello\n\ndata: {\"choices\":[{}]}\n\ndata: {\"choices\":[],\"usage\":\
        {\"prompt_tokens\":9,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\
        \r\n\r\ndata: [DONE]\n\n";

    #[test]
    fn events_come_whole_wherever_the_network_cuts() {
        for cut in 0..STREAM.len() {
            let mut splitter = Splitter::new(1_000);
            let mut events = Vec::new();
            for part in [&STREAM[..cut], &STREAM[cut..]] {
                splitter.push(part);
                while let Some(event) = splitter.next_event().unwrap() {
                    events.push(event);
                }
            }
            assert_eq!(events.concat(), STREAM);
            let kinds: Vec<_> = events.iter().map(|event| classify(event)).collect();
            let usage = match kinds[2] {
                EventKind::Usage(usage) => usage,
                other => panic!("{other:?}"),
            };
            assert_eq!((usage.prompt_tokens, usage.cached_tokens()), (9, Some(8)));
            assert_eq!(kinds[..2], [EventKind::Other, EventKind::Piece]);
            assert_eq!(kinds[3], EventKind::Done);
        }
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut splitter = Splitter::new(1_000);
        splitter.push(&[b'x'; 1_001]);
        assert_eq!(
            splitter.next_event(),
            Err(EventTooLong { bytes_max: 1_000 })
        );
    }

    #[test]
    fn errors_and_text_about_usage_are_told_apart() {
        for (event, kind) in [
            (
                &b"data: {\"error\":{\"message\":\"x\"}}\n\n"[..],
                EventKind::Error,
            ),
            (
                b"data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":1\"}}]}\n\n",
                EventKind::Piece,
            ),
            (
                b"data: {\"choices\":[{}],\"usage\":null}\n\n",
                EventKind::Piece,
            ),
            (b"\n\n", EventKind::Other),
        ] {
            assert_eq!(classify(event), kind, "{}", String::from_utf8_lossy(event));
        }
    }
}
