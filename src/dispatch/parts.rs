//! What goes between a frontend and an engine's gate on the bus: requests, how their answers are
//! taken, and answers in numbered parts, because the bus loses some.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Largest piece of an answer in one message: larger ones hold up those behind them.
pub const CHUNK_BYTES_MAX: usize = 16 << 10;

/// Most parts of an answer that are on their way: 1 MB, which no server takes for a slow reader's.
pub const WINDOW_PARTS: u64 = 64;

/// After how many of them the other side is told that they have been taken.
pub const TAKEN_EVERY: u64 = WINDOW_PARTS / 4;

/// How often each side says that it is there, where it has nothing else to say.
pub const BEAT: Duration = Duration::from_secs(1);

/// A side that is silent for so long is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The name of a request on the bus: 128 random bits, so that nobody cancels another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestKey(u64, u64);

impl RequestKey {
    /// A name of its own.
    pub fn random() -> Self {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        Self(high, low)
    }
}

/// What an engine's gate is told. All of it goes over one subject, so that nothing overtakes its
/// request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Word {
    Asks(Box<Asked>),
    /// Up to which part answers have been taken; told again and again, for as long as they are wanted.
    Taken(Vec<(RequestKey, u64)>),
    /// The answer is not wanted any more.
    Cancels(RequestKey),
}

/// A request. Its answer goes to where the message says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub key: RequestKey,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, Bytes)>,
    pub body: Body,
}

/// A request's body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    Inside(Bytes),
    /// Lent by the frontend, for it is larger than a message.
    At {
        url: String,
        bytes: usize,
    },
}

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Of the gate, which tells two apart that answer for one worker.
    pub life: u64,
    /// Counts the parts from 1.
    pub number: u64,
    pub part: Part,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Part {
    Head {
        status: u16,
        headers: Vec<(String, Bytes)>,
    },
    Chunk(Bytes),
    /// The proper end.
    End,
    /// The end of an answer that broke off.
    Broken(String),
    /// The engine says nothing for now. It repeats the number of the last part.
    Beat,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::wire;

    #[test]
    fn a_chunk_is_sent_as_bytes() {
        let chunk = Bytes::from(vec![0xff; CHUNK_BYTES_MAX]);
        let reply = Reply {
            life: u64::MAX,
            number: u64::MAX,
            part: Part::Chunk(chunk),
        };
        let sent = wire::encode(&reply);
        assert!(sent.len() < CHUNK_BYTES_MAX + 64, "{}", sent.len());
        assert_eq!(wire::decode::<Reply>("a part", &sent).unwrap(), reply);
    }
}
