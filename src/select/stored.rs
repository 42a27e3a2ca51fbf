//! What an engine has stored lately, in order, for as long as a request in flight may ask.

use std::collections::VecDeque;

use crate::block::{BlockMap, SequenceHash};

/// Most blocks that are remembered of a rank: half a MiB, and a minute of an engine that computes
/// 16,000 tokens a second in blocks of 16. Whoever is in flight for longer learns nothing.
const STORED_MAX: usize = 1 << 16;

/// A place in the order of what an engine stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// The blocks that one rank stored last, those removed again included.
#[derive(Debug, Default)]
pub struct StoredLog {
    hashes: VecDeque<SequenceHash>,
    /// Where the first of them stands.
    first: Mark,
}

impl StoredLog {
    /// Where the next block will stand.
    pub fn end(&self) -> Mark {
        Mark(self.first.0 + self.hashes.len() as u64)
    }

    /// Notes what was stored.
    pub fn note(&mut self, stored: &[SequenceHash]) {
        let last = &stored[stored.len().saturating_sub(STORED_MAX)..];
        let excess = (self.hashes.len() + last.len()).saturating_sub(STORED_MAX);
        self.hashes.drain(..excess);
        self.first.0 += (excess + stored.len() - last.len()) as u64;
        self.hashes.extend(last);
    }

    /// Forgets what nobody will ask for any more.
    pub fn forget_before(&mut self, mark: Mark) {
        let forgotten = mark.0.saturating_sub(self.first.0);
        let forgotten = self.hashes.len().min(forgotten as usize);
        self.hashes.drain(..forgotten);
        self.first.0 += forgotten as u64;
    }

    /// Whether a block was stored since; `None` where that is too long ago to say.
    pub fn has(&self, hash: SequenceHash, since: Mark) -> Option<bool> {
        Some(self.since(since)?.any(|stored| stored == hash))
    }

    /// Counts those of some blocks that were not stored since; none where that is too long ago to
    /// say.
    pub fn missing(&self, hashes: &[SequenceHash], since: Mark) -> usize {
        let Some(mut stored) = self.since(since) else {
            return 0;
        };
        let mut missing: BlockMap<()> = hashes.iter().map(|hash| (*hash, ())).collect();
        while !missing.is_empty()
            && let Some(hash) = stored.next()
        {
            missing.remove(&hash);
        }
        missing.len()
    }

    fn since(&self, mark: Mark) -> Option<impl Iterator<Item = SequenceHash>> {
        let from = mark.0.checked_sub(self.first.0)?;
        let from = self.hashes.len().min(from as usize);
        Some(self.hashes.range(from..).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(hashes: impl IntoIterator<Item = u64>) -> Vec<SequenceHash> {
        hashes.into_iter().map(SequenceHash).collect()
    }

    #[test]
    fn what_was_stored_since_a_mark_is_known_until_it_is_too_long_ago() {
        let mut log = StoredLog::default();
        let start = log.end();
        log.note(&names([1, 2]));
        let later = log.end();
        log.note(&names([3]));
        for (hash, since, has) in [
            (1, start, true),
            (1, later, false),
            (3, start, true),
            (3, later, true),
            (9, start, false),
        ] {
            assert_eq!(log.has(SequenceHash(hash), since), Some(has), "{hash}");
        }
        assert_eq!(log.missing(&names([9, 1, 3]), later), 2);
        log.forget_before(later);
        assert_eq!(log.has(SequenceHash(3), start), None);
        assert_eq!(log.missing(&names([9]), start), 0);
        assert_eq!(log.missing(&names([9, 3]), later), 1);
        log.note(&names(0..STORED_MAX as u64));
        assert_eq!(log.hashes.len(), STORED_MAX);
        assert_eq!(log.has(SequenceHash(3), later), None);
        let (before, last) = (log.end(), STORED_MAX as u64 + 9);
        log.note(&names(0..=last));
        assert_eq!(
            (log.hashes.len(), log.end().0),
            (STORED_MAX, before.0 + last + 1)
        );
        assert_eq!(
            log.has(SequenceHash(last), Mark(log.end().0 - 1)),
            Some(true)
        );
    }
}
