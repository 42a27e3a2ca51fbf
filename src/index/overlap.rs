//! How much of a prompt each slot holds, found by looking at a few of its blocks.

use crate::block::SequenceHash;
use crate::index::bitmaps::Bitmaps;
use crate::index::holders::{Holders, Slot};
use crate::index::table::Key;
use crate::index::{Index, Overlap};

/// Blocks that one span is cut at, so that an eighth of it is left. More would each cost memory to
/// wait for; fewer, one more round of waiting.
const CUTS: usize = 7;

/// Blocks that are looked at in one round, unless there are more spans: the waits for memory overlap.
const LOOKS: usize = 64;

/// Slots of one page that hold as many leading blocks, as far as is known.
#[derive(Clone, Copy, Debug)]
struct Span {
    page: u16,
    /// The slots, as bits.
    bits: u64,
    /// They hold at least so many blocks.
    least: usize,
    /// They hold at most so many.
    most: usize,
}

/// A block that was looked at: where it is in the prompt, and who holds it.
type Seen = (usize, Holders);

impl Span {
    /// How many blocks it is cut at, `cuts_max` at most.
    fn cut_count(self, cuts_max: usize) -> usize {
        (self.most - self.least).min(cuts_max)
    }

    /// The blocks that it is cut at, evenly.
    fn cuts(self, cuts_max: usize) -> impl Iterator<Item = usize> {
        let (open, cuts) = (self.most - self.least, self.cut_count(cuts_max));
        (1..=cuts).map(move |at| self.least + open * at / (cuts + 1))
    }
}

/// A search for the ends of what slots hold.
#[derive(Debug, Default)]
struct Search {
    /// Those whose end is still looked for.
    open: Vec<Span>,
    found: Vec<Overlap>,
}

impl Search {
    /// Parts a span, given what was seen of the blocks it is cut at.
    fn part(&mut self, bitmaps: &Bitmaps, mut span: Span, seen: &[Seen]) {
        for (at, holders) in seen {
            let kept = span.bits & bitmaps.word(*holders, span.page);
            let ended = span.bits ^ kept;
            if ended != 0 {
                self.push(Span {
                    bits: ended,
                    most: *at,
                    ..span
                });
            }
            if kept == 0 {
                return;
            }
            (span.bits, span.least) = (kept, at + 1);
        }
        self.push(span);
    }

    fn push(&mut self, span: Span) {
        if span.least < span.most {
            return self.open.push(span);
        }
        let mut bits = span.bits;
        self.found.reserve(bits.count_ones() as usize);
        while bits != 0 {
            self.found.push(Overlap {
                slot: Slot::on(span.page, bits.trailing_zeros()),
                blocks: span.least as u32,
            });
            bits &= bits - 1;
        }
    }
}

impl Index {
    /// For every slot that holds the first block: how many leading blocks it holds.
    ///
    /// Agents tell of a block only while its engine holds all before it, see
    /// [`Closed`](crate::ledger::closed::Closed). So a slot that holds a block is taken to hold all
    /// before it, and the end of what it holds is searched for: where all end alike, a prompt of
    /// 8,192 blocks takes some thirty looks.
    ///
    /// Where the index misses a block in between, for want of memory or because an event was lost on
    /// the way, the answer may depend on which blocks were looked at. It ends with one that the slot
    /// was seen to hold, and so is never too much; where the search went past what is missing, it is
    /// nearer to the truth than if it had ended there.
    pub fn overlap(&self, hashes: &[SequenceHash]) -> Vec<Overlap> {
        let mut search = Search::default();
        if hashes.is_empty() {
            return search.found;
        }
        let whole = Span {
            page: 0,
            bits: 0,
            least: 1,
            most: hashes.len(),
        };
        // The first block alone would tell of most prompts that nobody holds any, but others would
        // wait for memory once more.
        let seen = self.look(hashes, std::iter::once(0).chain(whole.cuts(CUTS)));
        self.bitmaps.pages(seen[0].1, |page, bits| {
            let span = Span {
                page,
                bits,
                ..whole
            };
            search.part(&self.bitmaps, span, &seen[1..]);
        });
        while !search.open.is_empty() {
            self.narrow(hashes, &mut search);
        }
        search.found
    }

    /// Looks at blocks of every open span, and parts it where holders end.
    fn narrow(&self, hashes: &[SequenceHash], search: &mut Search) {
        let mut spans = std::mem::take(&mut search.open);
        spans.sort_by_key(|span| span.least);
        // Spans of several pages that begin alike also end alike.
        let alike = || spans.chunk_by(|one, next| one.least == next.least);
        let cuts_max = (LOOKS / alike().count()).clamp(1, CUTS);
        let cuts = alike().flat_map(|spans| spans[0].cuts(cuts_max));
        let seen = self.look(hashes, cuts);
        let mut seen = seen.as_slice();
        for spans in alike() {
            let (here, others) = seen.split_at(spans[0].cut_count(cuts_max));
            for span in spans {
                search.part(&self.bitmaps, *span, here);
            }
            seen = others;
        }
    }

    /// Looks at several blocks.
    fn look(&self, hashes: &[SequenceHash], looks: impl Iterator<Item = usize>) -> Vec<Seen> {
        let keys: Vec<_> = looks.map(|at| (at, Key::of(hashes[at]))).collect();
        for (_, key) in &keys {
            self.tables[key.table()].touch(*key);
        }
        let seen = keys.into_iter().map(|(at, key)| (at, self.holders(key)));
        let seen: Vec<_> = seen.collect();
        self.bitmaps.touch(seen.iter().map(|(_, holders)| *holders));
        seen
    }
}
