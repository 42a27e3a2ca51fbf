//! Names and numbers that identify things, each its own type.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $invalid:ident) => {
        #[doc = concat!("Why a text is not a ", $what, " id.")]
        #[derive(Debug, thiserror::Error, PartialEq, Eq)]
        #[error("{} id {text:?} is not 1 to 63 of a-z, 0-9 and -", $what)]
        pub struct $invalid {
            text: String,
        }

        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Accepts `text` as a ", $what, " id.")]
            ///
            /// # Errors
            /// When it is empty, longer than 63 bytes or has another character.
            pub fn new(text: &str) -> Result<Self, $invalid> {
                let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                if (1..=63).contains(&text.len()) && text.bytes().all(legal) {
                    Ok(Self(text.into()))
                } else {
                    Err($invalid {
                        text: text.to_owned(),
                    })
                }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $invalid;
            fn try_from(text: String) -> Result<Self, $invalid> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a worker: 1 to 63 of `a-z`, `0-9` and `-`, so that it fits a DNS label, an etcd key
    /// and a NATS subject unescaped.
    WorkerId, "worker", InvalidWorkerId
}

name! {
    /// The name of a router, in a process of its own or inside a frontend; as a worker's.
    RouterId, "router", InvalidRouterId
}

impl RouterId {
    /// A name that no other router has, from random bits.
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("frontend-{bits:016x}").into())
    }
}

/// The number of a data-parallel rank inside one engine; 0 where an engine has only one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct DpRank(pub u32);

impl fmt::Display for DpRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of an engine process: a restart is another incarnation, and what the former one held
/// is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// The id of one request: echoed to the client, sent to the engine, written in every log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Takes a client's id when it is 1 to 128 of letters, digits and `-_.:`; `None` otherwise, so
    /// that nothing a client sends can break a log line or a header.
    pub fn from_client(text: &str) -> Option<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        ((1..=128).contains(&text.len()) && text.bytes().all(legal)).then(|| Self(text.into()))
    }

    /// An id of our own from 128 random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of one image: BLAKE3-256 over its encoded bytes, never over its URL. Its text form,
/// 64 lower-case hex digits, is the `uuid` the engine sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MediaDigest(pub [u8; 32]);

impl fmt::Display for MediaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MediaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_ids_are_dns_labels() {
        for good in ["a", "gpu-0", &"x".repeat(63)] {
            assert_eq!(WorkerId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "GPU", "a.b", "a/b", "é", &"x".repeat(64)] {
            assert!(WorkerId::new(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_clients_request_id_cannot_carry_line_breaks() {
        assert_eq!(
            RequestId::from_client("my-req.1").unwrap().as_str(),
            "my-req.1"
        );
        for bad in ["", "a b", "a\r\nx: y", &"x".repeat(129)] {
            assert_eq!(RequestId::from_client(bad), None);
        }
    }

    #[test]
    fn a_media_digest_prints_as_64_hex_digits() {
        assert_eq!(MediaDigest([0xab; 32]).to_string(), "ab".repeat(32));
    }
}
