//! Messages on the bus: a version, then CBOR, in which hashes are bytes.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the messages' form, their first byte.
pub const BUS_VERSION: u8 = 1;

/// Most hashes of one message, so that with all else it stays within 16 KB: larger ones hold up
/// those behind them, and NATS loses them sooner.
pub const MESSAGE_HASHES_MAX: usize = 1_920;

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WireFault {
    #[error("an empty message")]
    Empty,
    #[error("a message of version {found}, and this program reads up to {known}")]
    Version { found: u8, known: u8 },
    #[error("a message of {bytes} bytes that is none of {what}: {reason}")]
    Form {
        what: &'static str,
        bytes: usize,
        reason: String,
    },
}

/// A message as it is sent.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    let mut bytes = vec![BUS_VERSION];
    // A type of ours always has such a form, and memory takes what is written.
    ciborium::into_writer(message, &mut bytes).ok();
    bytes.into()
}

/// Reads a message of a kind that errors name.
///
/// # Errors
/// When it is of an unknown version, or of another form.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, WireFault> {
    let Some((version, body)) = bytes.split_first() else {
        return Err(WireFault::Empty);
    };
    // The one before ours is read too, once there is one.
    if *version != BUS_VERSION && version.checked_add(1) != Some(BUS_VERSION) {
        return Err(WireFault::Version {
            found: *version,
            known: BUS_VERSION,
        });
    }
    ciborium::from_reader(body).map_err(|error| WireFault::Form {
        what,
        bytes: bytes.len(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_none_says_why() {
        let sent = encode(&(7_u32, "x"));
        assert_eq!(
            decode::<(u32, String)>("a pair", &sent).unwrap(),
            (7, "x".to_owned())
        );
        for (bytes, part) in [
            (&b""[..], "empty"),
            (b"\x09\x00", "version 9, and this program reads up to 1"),
            (b"\x01\xff\xff", "3 bytes that is none of a pair"),
            (&sent[..sent.len() - 1], "none of a pair"),
        ] {
            let error = decode::<(u32, String)>("a pair", bytes)
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
