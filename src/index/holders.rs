//! The set of slots that hold one block, in eight bytes: up to three slots in place, more as a list
//! of bitmaps elsewhere.

/// The small number of one (worker, rank) pair inside an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

impl Slot {
    /// The slot as an index into arrays.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its page: 64 slots share one.
    pub(super) fn page(self) -> u16 {
        self.0 / PAGE_SLOTS
    }

    /// The slot whose bit on a page is `bit`.
    pub fn on(page: u16, bit: u32) -> Self {
        Self(page * PAGE_SLOTS + bit as u16)
    }

    pub(super) fn bit(self) -> u64 {
        1 << (self.0 % PAGE_SLOTS)
    }
}

/// Slots of one bitmap.
const PAGE_SLOTS: u16 = 64;

/// Slots that fit an entry itself. Most blocks have one holder, the hot ones have many.
pub(super) const IN_PLACE: usize = 3;

/// The slots that hold one block: in the top byte how many of them are in place below it, or
/// 255 and below it the first node of a list in [`Bitmaps`](crate::index::bitmaps::Bitmaps).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders(u64);

/// Holders without their count, in six bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packed([u16; IN_PLACE]);

/// In place of a count: the slots are in a list.
const MANY: u64 = 0xff;
const COUNT_SHIFT: u32 = 56;

impl Holders {
    /// One holder.
    pub fn one(slot: Slot) -> Self {
        Self(1 << COUNT_SHIFT | u64::from(slot.0))
    }

    /// Apart, so that a bucket can keep counts together.
    pub fn pack(self) -> (Packed, u8) {
        let slots = Packed([0, 16, 32].map(|shift| (self.0 >> shift) as u16));
        (slots, (self.0 >> COUNT_SHIFT) as u8)
    }

    /// What was packed.
    pub fn unpack(Packed([first, second, third]): Packed, count: u8) -> Self {
        let slots = u64::from(first) | u64::from(second) << 16 | u64::from(third) << 32;
        Self(slots | u64::from(count) << COUNT_SHIFT)
    }

    /// Whether no slot holds the block.
    pub fn is_empty(self) -> bool {
        self.0 >> COUNT_SHIFT == 0
    }

    /// Puts one slot in the place of another; false where slots are not in place.
    pub fn replace(&mut self, old: Slot, new: Slot) -> bool {
        let in_place = self.node().is_none();
        if in_place {
            *self = self.without(old).with(new);
        }
        in_place
    }

    pub(super) fn many(node: u32) -> Self {
        Self(MANY << COUNT_SHIFT | u64::from(node))
    }

    /// The first node of a list; `None` where the slots are in place.
    pub(super) fn node(self) -> Option<u32> {
        (self.0 >> COUNT_SHIFT == MANY).then_some(self.0 as u32)
    }

    pub(super) fn count(self) -> usize {
        (self.0 >> COUNT_SHIFT) as usize
    }

    pub(super) fn in_place(self) -> impl Iterator<Item = Slot> {
        (0..self.count()).map(move |at| Slot((self.0 >> (16 * at)) as u16))
    }

    /// Adds a slot in place, where there is room.
    pub(super) fn with(self, slot: Slot) -> Self {
        let at = self.count();
        Self((self.0 + (1 << COUNT_SHIFT)) | u64::from(slot.0) << (16 * at))
    }

    pub(super) fn without(self, slot: Slot) -> Self {
        let others = self.in_place().filter(|held| *held != slot);
        others.fold(Self::default(), Self::with)
    }

    /// The slots of one page among those in place, as bits.
    pub(super) fn bits_in(self, page: u16) -> u64 {
        let here = self.in_place().filter(|slot| slot.page() == page);
        here.fold(0, |bits, slot| bits | slot.bit())
    }
}
