//! The open incidents of one GPU: how they come, change and go.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::health::incident::{Incident, Severity};
use crate::health::judge::finding::{Finding, Key};
use crate::health::limits::Limits;
use crate::health::signal::Signal;
use crate::health::xid::Class;

/// Most incidents that may be open at once: there are fewer codes than this that a driver is known to send,
/// and a driver that makes them up must not fill the memory.
const OPEN_MAX: usize = 256;

/// The open incidents of one GPU.
#[derive(Debug, Default)]
pub(super) struct Book {
    open: BTreeMap<Key, Entry>,
    /// When the next canary may be, after one that failed, and how long that was waited for.
    next_canary: Option<(Duration, Duration)>,
    /// Whether there is an engine that can be asked for a canary, and be restarted.
    pub(super) has_engine: bool,
    pub(super) wants_restart: bool,
}

/// An open incident.
#[derive(Debug)]
struct Entry {
    incident: Incident,
    last_seen: Duration,
    /// Polls in a row that have found it milder than it is held to be, or not at all.
    better_polls: u32,
    /// The worst that these polls found.
    rest: Option<Finding>,
    /// A canary has passed since it was last seen.
    is_proven: bool,
    was_restarted: bool,
}

impl Entry {
    fn new(finding: Finding, now: Duration) -> Self {
        Self {
            incident: finding.incident(now),
            last_seen: now,
            better_polls: 0,
            rest: None,
            is_proven: false,
            was_restarted: false,
        }
    }

    /// Takes in that it is as bad as `finding` says, at least.
    fn worsen(&mut self, finding: Finding, now: Duration) {
        self.last_seen = now;
        self.better_polls = 0;
        self.rest = None;
        self.is_proven = false;
        if finding.severity > self.incident.severity {
            self.change(finding);
        }
    }

    /// Takes in a poll that found it to be milder, or did not find it.
    fn better(&mut self, finding: Option<Finding>, now: Duration) {
        self.better_polls = self.better_polls.saturating_add(1);
        let Some(finding) = finding else { return };
        self.last_seen = now;
        let is_worst = self
            .rest
            .as_ref()
            .is_none_or(|rest| rest.severity < finding.severity);
        if is_worst {
            self.rest = Some(finding);
        }
    }

    fn change(&mut self, finding: Finding) {
        self.incident.severity = finding.severity;
        self.incident.text = finding.text;
        self.incident.action = finding.action.to_owned();
    }

    fn matters(&self) -> bool {
        self.incident.severity > Severity::Info
    }

    fn is_quiet(&self, limits: &Limits) -> bool {
        self.matters() && self.better_polls >= limits.clean_polls.max(1)
    }

    /// Whether only a canary tells if the engine has to be restarted: one program was hit, which may be it.
    fn asks_at_once(&self) -> bool {
        let is_contained = Class::of(self.incident.code) == Class::Contained;
        self.incident.signal == Signal::Xid && is_contained && self.matters() && !self.is_proven
    }

    /// Becomes what its last polls found of it; whether that is nothing.
    fn settle(&mut self) -> bool {
        self.better_polls = 0;
        match self.rest.take() {
            Some(rest) => {
                self.change(rest);
                false
            }
            None => true,
        }
    }
}

impl Book {
    pub(super) fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.open.values().map(|entry| &entry.incident)
    }

    /// Takes in something that was seen, by a poll or besides.
    pub(super) fn see(&mut self, finding: Finding, limits: &Limits, now: Duration) {
        let key = finding.key();
        let matters = finding.severity > Severity::Info;
        let has_come_back = match self.open.get_mut(&key) {
            Some(entry) => {
                let was_over = entry.is_quiet(limits) || entry.is_proven;
                entry.worsen(finding, now);
                was_over
            }
            None => {
                self.open(finding, now);
                matters
            }
        };
        if has_come_back {
            self.next_canary = None;
        }
        if matters && key.0 == Signal::Stuck {
            self.restart(key);
        }
    }

    /// Takes in all that a poll found.
    pub(super) fn poll(&mut self, found: Vec<Finding>, limits: &Limits, now: Duration) {
        let mut worst: BTreeMap<Key, Finding> = BTreeMap::new();
        for finding in found {
            let held = worst
                .entry(finding.key())
                .or_insert_with(|| finding.clone());
            if held.severity < finding.severity {
                *held = finding;
            }
        }
        for (key, entry) in &mut self.open {
            let is_milder = |found: &Finding| found.severity < entry.incident.severity;
            if worst.get(key).is_none_or(is_milder) {
                entry.better(worst.remove(key), now);
            }
        }
        for finding in worst.into_values() {
            self.see(finding, limits, now);
        }
        let has_engine = self.has_engine;
        self.settle(|entry| entry.is_quiet(limits) && (entry.is_proven || !has_engine));
    }

    /// Closes the incidents of a signal, which something else tells of from now on.
    pub(super) fn close(&mut self, signal: Signal) {
        self.open.retain(|key, _| key.0 != signal);
    }

    /// Takes in that the memory's error of just now hit one program alone.
    pub(super) fn soften_memory_error(&mut self, limits: &Limits, now: Duration) {
        let key = (Signal::EccUncorrected, 0);
        let is_configured = limits.severity(key.0, key.1).is_some();
        let Some(entry) = self.open.get_mut(&key).filter(|_| !is_configured) else {
            return;
        };
        let since = Duration::from_millis(entry.incident.since_millis);
        if now.saturating_sub(since) <= limits.contained {
            entry.incident.severity = Severity::Degraded;
        }
    }

    /// Closes incidents that are info alone and were last seen long ago.
    pub(super) fn forget(&mut self, limits: &Limits, now: Duration) {
        let is_old = |entry: &Entry| now.saturating_sub(entry.last_seen) >= limits.info_kept;
        self.open
            .retain(|_, entry| entry.matters() || !is_old(entry));
    }

    pub(super) fn wants_canary(&self, limits: &Limits, now: Duration) -> bool {
        let is_due = self.next_canary.is_none_or(|(at, _)| now >= at);
        let mut entries = self.open.values();
        let is_of_use = |entry: &Entry| entry.is_quiet(limits) || entry.asks_at_once();
        self.has_engine && is_due && entries.any(is_of_use)
    }

    pub(super) fn canary_passed(&mut self, limits: &Limits) {
        self.next_canary = None;
        for entry in self.open.values_mut() {
            entry.is_proven |= entry.asks_at_once();
        }
        self.settle(|entry| entry.is_quiet(limits));
    }

    pub(super) fn canary_failed(&mut self, limits: &Limits, now: Duration) {
        let wait = match self.next_canary {
            Some((_, waited)) => waited.saturating_mul(2).min(limits.canary_most),
            None => limits.canary_first,
        };
        self.next_canary = Some((now.saturating_add(wait), wait));
        let suspect = self.open.iter().find(|(_, entry)| entry.asks_at_once());
        if let Some((&key, _)) = suspect {
            self.restart(key);
        }
    }

    fn settle(&mut self, is_over: impl Fn(&Entry) -> bool) {
        self.open
            .retain(|_, entry| !is_over(entry) || !entry.settle());
    }

    /// Opens an incident. Where too many are open, the mildest makes room, so that the worst stays known.
    fn open(&mut self, finding: Finding, now: Duration) {
        if self.open.len() >= OPEN_MAX {
            let rank = |entry: &Entry| (entry.incident.severity, entry.last_seen);
            let mildest = self.open.iter().min_by_key(|(_, entry)| rank(entry));
            let room = mildest.filter(|(_, entry)| entry.incident.severity <= finding.severity);
            let Some((&key, _)) = room else { return };
            self.open.remove(&key);
        }
        self.open.insert(finding.key(), Entry::new(finding, now));
    }

    /// Wants the engine restarted, once for each incident.
    fn restart(&mut self, key: Key) {
        let Some(entry) = self.open.get_mut(&key).filter(|_| self.has_engine) else {
            return;
        };
        self.wants_restart |= !entry.was_restarted;
        entry.was_restarted = true;
    }
}
