//! Which images a worker encoded lately: it may still have the encoder's output, though the text
//! before them differs and so none of their blocks is of use.

use std::collections::{BTreeMap, HashMap};

use crate::id::MediaDigest;

/// The images that one rank was sent last, as far as their tokens fit; the one sent longest ago
/// goes first, as in the engine's own cache of encoder outputs.
#[derive(Debug, Default)]
pub struct Affinity {
    /// The tokens and the last use of each.
    images: HashMap<MediaDigest, (u32, u64)>,
    by_use: BTreeMap<u64, MediaDigest>,
    uses: u64,
    tokens: u64,
}

impl Affinity {
    /// Notes that an image of so many tokens was sent, and forgets those that have no room among
    /// `tokens_max` any more.
    pub fn sent(&mut self, digest: MediaDigest, tokens: u32, tokens_max: u64) {
        if let Some((before, last)) = self.images.remove(&digest) {
            self.by_use.remove(&last);
            self.tokens -= u64::from(before);
        }
        self.uses += 1;
        self.images.insert(digest, (tokens, self.uses));
        self.by_use.insert(self.uses, digest);
        self.tokens += u64::from(tokens);
        while self.tokens > tokens_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            let gone = self.images.remove(&oldest);
            self.tokens -= gone.map_or(0, |(tokens, _)| u64::from(tokens));
        }
    }

    /// Whether the image is among those sent last.
    pub fn has(&self, digest: &MediaDigest) -> bool {
        self.images.contains_key(digest)
    }

    /// Forgets all: the engine is another process.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_sent_last_are_known_as_far_as_they_fit() {
        let digest = |number| MediaDigest([number; 32]);
        for (sent, tokens_max, known) in [
            (&[(1, 10), (2, 10)][..], 20, &[1, 2][..]),
            (&[(1, 10), (2, 10), (3, 10)], 20, &[2, 3]),
            (&[(1, 10), (2, 10), (1, 10), (3, 10)], 20, &[1, 3]), // 1 was sent again
            (&[(1, 10), (2, 30)], 20, &[]),                       // too large for any
            (&[(1, 10), (1, 15), (2, 5)], 20, &[1, 2]),           // counted once
            (&[(1, 10)], 0, &[]),
        ] {
            let mut affinity = Affinity::default();
            for (number, tokens) in sent {
                affinity.sent(digest(*number), *tokens, tokens_max);
            }
            let found: Vec<u8> = (0..9).filter(|n| affinity.has(&digest(*n))).collect();
            assert_eq!(found, known, "{sent:?}");
            assert_eq!(affinity.images.len(), affinity.by_use.len());
            affinity.clear();
            assert_eq!((affinity.tokens, affinity.has(&digest(1))), (0, false));
        }
    }
}
