//! What is remembered of one GPU from one observation to the next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Most links that are remembered; GPUs have up to 36.
const LINKS_MAX: usize = 64;

/// Parts of a window's span in which what comes is counted as one.
const WINDOW_PARTS: u32 = 60;

/// Most XIDs of applications that are remembered, which is far above the number that counts.
const APPLICATION_XIDS_MAX: usize = 64;

/// What is remembered of one GPU.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) ecc_uncorrected: Growth,
    pub(super) ecc_lifetime_first: Option<u64>,
    pub(super) ecc_corrected: Growth,
    pub(super) ecc_corrected_rate: Window,
    pub(super) pcie_replays: Growth,
    pub(super) pcie_replay_rate: Window,
    pub(super) pcie_fatal: Growth,
    pub(super) pcie_nonfatal: Growth,
    pub(super) links: BTreeMap<u32, LinkPast>,
    pub(super) application_xids: VecDeque<(Duration, u64)>,
    /// When XID 94 came last.
    pub(super) contained_at: Option<Duration>,
    pub(super) holds: Holds,
    /// What the engine had generated at the last poll.
    pub(super) generated_tokens: Option<u64>,
    /// Observations in a row that the operating system refused.
    pub(super) blocked: u32,
    /// Calls in a row that did not return in time.
    pub(super) hangs: u32,
    /// How long the call that has not returned was last seen to hang.
    pub(super) hanging: Option<Duration>,
}

impl Past {
    /// Nothing was read for a while, so that nobody knows whether what held went on.
    pub(super) fn gap(&mut self) {
        self.holds = Holds::default();
    }

    /// What is remembered of a link; `None` for a link beyond all that GPUs have.
    pub(super) fn link(&mut self, number: u32) -> Option<&mut LinkPast> {
        if self.links.len() >= LINKS_MAX && !self.links.contains_key(&number) {
            return None;
        }
        Some(self.links.entry(number).or_default())
    }

    /// Remembers an application's XID, and forgets those that came before the window.
    pub(super) fn application_xid(&mut self, xid: u64, window: Duration, now: Duration) {
        let is_old = |(at, _): &(Duration, u64)| now.saturating_sub(*at) > window;
        let xids = &mut self.application_xids;
        xids.retain(|entry| !is_old(entry));
        if xids.len() >= APPLICATION_XIDS_MAX {
            xids.pop_front();
        }
        xids.push_back((now, xid));
    }
}

/// For how long conditions have held that only count after a while.
#[derive(Debug, Default)]
pub(super) struct Holds {
    pub(super) hw_slowdown: Hold,
    pub(super) sw_thermal: Hold,
    pub(super) hot: Hold,
    pub(super) at_work: Hold,
    pub(super) memory: Hold,
    pub(super) stuck: Hold,
}

/// What is remembered of one NVLink.
#[derive(Debug, Default)]
pub(super) struct LinkPast {
    pub(super) was_active: bool,
    pub(super) replays: Growth,
    pub(super) recoveries: Growth,
    pub(super) crc: Growth,
    pub(super) crc_rate: Window,
}

/// A counter. Its first value says nothing, as it counts from before the watch; and one that goes back
/// counts anew, as after the driver is loaded again.
#[derive(Debug, Default)]
pub(super) struct Growth {
    last: Option<u64>,
}

impl Growth {
    /// By how much it has grown.
    pub(super) fn by(&mut self, count: Option<u64>) -> u64 {
        let Some(count) = count else { return 0 };
        let last = self.last.replace(count);
        last.map_or(0, |last| count.saturating_sub(last))
    }
}

/// What was counted lately.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// When, and how much; no more than [`WINDOW_PARTS`] and one.
    parts: VecDeque<(Duration, u64)>,
}

impl Window {
    /// Counts `count` more, and says how much came within `span`.
    pub(super) fn count(&mut self, count: u64, span: Duration, now: Duration) -> u64 {
        let is_old = |at: Duration| now.saturating_sub(at) >= span;
        while self.parts.front().is_some_and(|&(at, _)| is_old(at)) {
            self.parts.pop_front();
        }
        let part = span / WINDOW_PARTS;
        match self.parts.back_mut() {
            _ if count == 0 => {}
            Some((at, sum)) if now.saturating_sub(*at) < part => *sum = sum.saturating_add(count),
            _ => self.parts.push_back((now, count)),
        }
        let counts = self.parts.iter().map(|(_, count)| *count);
        counts.fold(0, u64::saturating_add)
    }
}

/// Since when a condition has held without a gap.
#[derive(Debug, Default)]
pub(super) struct Hold {
    since: Option<Duration>,
}

impl Hold {
    /// Whether it has held for `time` now.
    pub(super) fn reaches(&mut self, time: Duration, is_true: bool, now: Duration) -> bool {
        if !is_true {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.saturating_sub(since) >= time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_keeps_few_parts_however_much_is_counted() {
        let span = Duration::from_secs(3600);
        let mut window = Window::default();
        let mut sum = 0;
        for secs in 0..20_000 {
            sum = window.count(1, span, Duration::from_secs(secs));
            assert!(window.parts.len() <= 61);
        }
        let most = span.as_secs();
        let least = most - most / u64::from(WINDOW_PARTS);
        assert!((least..=most).contains(&sum), "{sum} within the hour");
    }
}
