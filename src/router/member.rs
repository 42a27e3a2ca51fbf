//! One worker as the router knows it: its record and what is booked on each of its ranks.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::config::circuit::CircuitConfig;
use crate::discovery::{Parity, ParityScope, WorkerRecord};
use crate::health::Verdict;
use crate::router::circuit::Circuit;
use crate::router::confirm::{Confirm, MISSED_MAX, PATIENCE};
use crate::router::rank_state::RankState;
use crate::router::state::Chosen;
use crate::select::load::Load;

/// A worker and what is booked on it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) record: WorkerRecord,
    // The record's own, shared with every placement.
    address: Arc<str>,
    media_dir: Option<Arc<str>>,
    report_session: Option<Arc<str>>,
    /// At least one.
    pub(crate) ranks: Vec<RankState>,
    /// What its engine stores, held against what it says that it computed.
    pub(crate) confirm: Confirm,
    /// Whether it is tried, after it has failed.
    pub(crate) circuit: Circuit,
    /// Neither its agent nor its engine is heard.
    pub(crate) is_silent: bool,
    /// Cancelled when the worker is taken out or its engine is away.
    pub(crate) gone: CancellationToken,
}

impl Member {
    pub(crate) fn new(record: WorkerRecord, circuit: CircuitConfig) -> Self {
        let ranks = record.ranks.max(1) as usize;
        Self {
            address: record.address.as_str().into(),
            media_dir: record.media_dir.as_deref().map(Arc::from),
            report_session: record.ledger.report_session.as_deref().map(Arc::from),
            ranks: std::iter::repeat_with(RankState::default)
                .take(ranks)
                .collect(),
            record,
            confirm: Confirm::default(),
            circuit: Circuit::new(circuit),
            is_silent: false,
            gone: CancellationToken::new(),
        }
    }

    /// Takes in a newer record. Ranks that are gone stay until their bookings are freed. One that
    /// says the engine is away ends what is in flight there.
    pub(crate) fn update(&mut self, record: WorkerRecord) {
        let ranks = self.ranks.len().max(record.ranks as usize);
        self.ranks.resize_with(ranks, RankState::default);
        if !record.verdict.keeps_requests() {
            self.gone.cancel();
        }
        if self.gone.is_cancelled() && record.verdict.keeps_requests() {
            self.gone = CancellationToken::new();
        }
        if self.record.incarnation != record.incarnation {
            // What was missed of the former process, or failed there, says nothing of this one.
            self.confirm = Confirm::default();
            self.ranks.iter_mut().for_each(RankState::begin_again);
            self.circuit.renew();
        }
        if self.record.engine_readings != record.engine_readings {
            for (number, rank) in self.ranks.iter_mut().enumerate() {
                rank.observe(record.engine_load.get(number).copied());
            }
        }
        self.address = record.address.as_str().into();
        self.media_dir = record.media_dir.as_deref().map(Arc::from);
        self.report_session = record.ledger.report_session.as_deref().map(Arc::from);
        self.record = record;
    }

    /// Puts into a placement what only the worker's record says.
    pub(crate) fn describe(&self, chosen: &mut Chosen) {
        chosen.ranks = self.record.ranks;
        chosen.address = self.address.clone();
        chosen.media_dir = self.media_dir.clone();
        chosen.report_session = self.report_session.clone();
        chosen.parity_failed = self.parity_failed();
        chosen.gone = self.gone.clone();
    }

    /// Which prompts the engine makes otherwise than we do, as its agent found or its events show.
    pub(crate) fn parity_failed(&self) -> Option<ParityScope> {
        let found = match self.record.parity {
            Parity::Failed { scope, .. } => Some(scope),
            Parity::Unchecked | Parity::Exact => None,
        };
        match (found, self.confirm.failed()) {
            (Some(ParityScope::Text), _) | (_, Some(ParityScope::Text)) => Some(ParityScope::Text),
            (found, shown) => found.or(shown),
        }
    }

    /// The record as operators see it: with the parity that the router goes by.
    pub(crate) fn shown(&self) -> WorkerRecord {
        let mut record = self.record.clone();
        let found = match record.parity {
            Parity::Failed { scope, .. } => Some(scope),
            Parity::Unchecked | Parity::Exact => None,
        };
        if let Some(scope) = self.parity_failed().filter(|scope| found != Some(*scope)) {
            let reason = format!(
                "{MISSED_MAX} blocks in a row that the engine said it computed were not stored \
                 under our names within {PATIENCE:?}"
            );
            record.parity = Parity::Failed { scope, reason };
        }
        record
    }

    /// Why no request goes there now; `None` where one may.
    pub(crate) fn not_eligible(&self, now: Instant) -> Option<&'static str> {
        match self.record.verdict {
            Verdict::Unknown | Verdict::Healthy | Verdict::Degraded => {
                let silence = "neither its agent nor its engine is heard";
                let barrier = self.circuit.passage(now).barrier();
                barrier.or(self.is_silent.then_some(silence))
            }
            Verdict::Starting => Some("its engine is starting"),
            Verdict::Draining => Some("it finishes what it has"),
            Verdict::Failed => Some("it has failed, see its cause in the list of workers"),
        }
    }

    /// Whether nothing but silence speaks against it.
    pub(crate) fn is_only_silent(&self, now: Instant) -> bool {
        let is_open = self.circuit.passage(now).barrier().is_none();
        self.is_silent && is_open && self.record.verdict.takes_requests()
    }

    /// The load of each rank.
    pub(crate) fn loads(&self) -> Vec<Load> {
        self.ranks.iter().map(RankState::load).collect()
    }
}
