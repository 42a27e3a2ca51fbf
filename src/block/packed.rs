//! Sequence hashes on the wire: eight bytes each in binary formats, numbers in those for people.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserializer, Serializer};

use crate::block::SequenceHash;

/// Bytes of one hash.
pub const HASH_BYTES: usize = size_of::<u64>();

/// Writes hashes; to be named in `#[serde(with = …)]`.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer>(hashes: &[SequenceHash], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return serializer.collect_seq(hashes);
    }
    let bytes: Vec<u8> = hashes
        .iter()
        .flat_map(|hash| hash.0.to_le_bytes())
        .collect();
    serializer.serialize_bytes(&bytes)
}

/// Reads hashes in either form.
///
/// # Errors
/// The deserializer's own, and for bytes that are no whole number of hashes.
pub fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SequenceHash>, D::Error> {
    match deserializer.is_human_readable() {
        true => deserializer.deserialize_seq(Hashes),
        false => deserializer.deserialize_any(Hashes),
    }
}

struct Hashes;

impl<'de> Visitor<'de> for Hashes {
    type Value = Vec<SequenceHash>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sequence hashes, as numbers or as eight bytes each")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
        match rest {
            [] => Ok(hashes
                .iter()
                .map(|hash| SequenceHash(u64::from_le_bytes(*hash)))
                .collect()),
            _ => Err(E::invalid_length(bytes.len(), &self)),
        }
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Self::Value, E> {
        self.visit_bytes(&bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Self::Value, A::Error> {
        let mut hashes = Vec::new();
        while let Some(number) = numbers.next_element()? {
            hashes.push(SequenceHash(number));
        }
        Ok(hashes)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct List {
        #[serde(with = "crate::block::packed")]
        hashes: Vec<SequenceHash>,
    }

    #[test]
    fn hashes_take_eight_bytes_in_binary_and_are_numbers_in_text() {
        let list = List {
            hashes: (0..100).map(|n| SequenceHash(u64::MAX - n)).collect(),
        };
        let mut binary = Vec::new();
        ciborium::into_writer(&list, &mut binary).unwrap();
        assert!(binary.len() < 8 * 100 + 16, "{}", binary.len());
        let read: List = ciborium::from_reader(&binary[..]).unwrap();
        assert_eq!(read, list);
        let text = r#"{"hashes":[1,18446744073709551615]}"#;
        let read: List = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);

        // A map of one entry, whose value has seven bytes.
        let odd = [b"\xa1\x66hashes\x47".as_slice(), &[0; 7]].concat();
        assert!(ciborium::from_reader::<List, _>(&odd[..]).is_err());
    }
}
