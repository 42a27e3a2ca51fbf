//! What a ledger met that it could not take at face value, counted.

/// One kind of thing an operator may want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alarm {
    /// A block whose extra keys are not understood, or a descendant of such a block.
    Unhashable,
    /// A block whose parent is not known; it waits unpublished.
    UnknownParent,
    /// A waiting block that was forgotten because too many wait.
    WaitingDropped,
    /// An event whose token count is not block size times hashes.
    BadShape,
    /// An event of a medium that is not known, or of another cache group.
    OtherTier,
    /// A block in a slower tier than the GPU whose name was not known when it came: left out.
    UnnamedLower,
    /// A block in a slower tier than the GPU for which there was no room: left out.
    LowerFull,
    /// A removal of a block that the ledger does not hold.
    RemovedUnknown,
    /// A second engine hash for one sequence hash; the older was dropped.
    Twin,
    /// An engine hash that came again with another content; the older was dropped.
    Renamed,
    /// More copies than the engine has blocks: events were lost, everything was dropped.
    OverCapacity,
    /// An event with another block size than the one known.
    BlockSizeChanged,
    /// A batch that could not be read.
    Unreadable,
}

impl Alarm {
    /// Every kind, in order.
    pub const ALL: [Self; 13] = [
        Self::Unhashable,
        Self::UnknownParent,
        Self::WaitingDropped,
        Self::BadShape,
        Self::OtherTier,
        Self::UnnamedLower,
        Self::LowerFull,
        Self::RemovedUnknown,
        Self::Twin,
        Self::Renamed,
        Self::OverCapacity,
        Self::BlockSizeChanged,
        Self::Unreadable,
    ];

    /// Whether it shows something wrong rather than something left out on purpose.
    pub fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::Unhashable | Self::OtherTier | Self::UnnamedLower | Self::LowerFull
        )
    }
}

/// How often each alarm was met since the ledger began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Alarm::ALL.len()]);

impl Counts {
    /// How often `alarm` was met.
    pub fn of(&self, alarm: Alarm) -> u64 {
        self.0[alarm as usize]
    }

    /// Counts `alarm` once more.
    pub fn add(&mut self, alarm: Alarm) {
        self.add_many(alarm, 1);
    }

    /// Counts `alarm` so many times more.
    pub fn add_many(&mut self, alarm: Alarm, times: u64) {
        self.0[alarm as usize] += times;
    }

    /// The alarms met since `earlier`, with how often.
    pub fn since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = (Alarm, u64)> + 'a {
        let risen = |alarm: Alarm| (alarm, self.of(alarm) - earlier.of(alarm));
        Alarm::ALL.into_iter().map(risen).filter(|(_, by)| *by > 0)
    }
}
