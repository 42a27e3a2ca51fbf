//! Our block hashes equal those of another implementation of the same rules, on prompts a real
//! vLLM expanded.

use kvlens::block::{BlockSize, SequenceHash, root, sequence_hashes};
use kvlens::prompt::{ExpandedPrompt, MediaSpan};
use serde::Deserialize;

/// One row of `tests/golden/hash/vectors.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Vector {
    /// `folder/scenario/step` of the recorded request.
    pub(crate) from: String,
    model: String,
    lora: String,
    salt: String,
    block_size: u32,
    root: String,
    tokens: Vec<u32>,
    spans: Vec<(u32, u32, String)>,
    hashes: Vec<String>,
}

impl Vector {
    pub(crate) fn all() -> Vec<Self> {
        let text = include_str!("../golden/hash/vectors.json");
        serde_json::from_str(text).expect("rows of vectors")
    }

    pub(crate) fn prompt(&self) -> ExpandedPrompt {
        let span = |(start, token_count, id): &(u32, u32, String)| MediaSpan {
            start: *start,
            token_count: *token_count,
            id: id.as_str().into(),
        };
        ExpandedPrompt {
            tokens: self.tokens.clone(),
            spans: self.spans.iter().map(span).collect(),
        }
    }

    pub(crate) fn hashes(&self) -> Vec<SequenceHash> {
        self.hashes.iter().map(|hash| hex(hash)).collect()
    }
}

fn hex(text: &str) -> SequenceHash {
    SequenceHash(u64::from_str_radix(text, 16).expect("16 hex digits"))
}

#[test]
fn every_vector_is_met_to_the_byte() {
    let vectors = Vector::all();
    assert_eq!(vectors.len(), 20);
    for vector in vectors {
        let root = root(&vector.model, &vector.lora, &vector.salt);
        assert_eq!(root, hex(&vector.root), "root of {}", vector.from);
        let size = BlockSize::new(vector.block_size).unwrap();
        let hashes = sequence_hashes(root, &vector.prompt(), size);
        assert_eq!(hashes, vector.hashes(), "{}", vector.from);
    }
}
