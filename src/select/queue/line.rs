//! The line of one model: its tenants take turns, and each tenant's requests go by their places.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::select::queue::Ticket;

/// Tokens that a tenant may have computed in one turn: the batch budget that vLLM gives itself on
/// large GPUs, so that a turn is about one step of an engine. Less would only take more turns to
/// serve a long prompt, more would let one tenant hold an engine for several steps.
pub const QUANTUM_TOKENS: u64 = 8_192;

/// One in so many requests of a tenant is its oldest, whatever the policy says: rare enough that the
/// policy still decides, often enough that the last of a long line gets through. An oldest one that
/// is stuck when this is due goes first as soon as it can be placed; meanwhile one in so many is the
/// oldest that can.
pub const OLDEST_EVERY: u32 = 8;

/// Most requests of one tenant that are passed over because they cannot be placed now. They are
/// few, for only those that may not go everywhere can be stuck while others are not, and each
/// costs a look at the workers under the router's lock.
pub const LOOK_AHEAD: usize = 16;

/// Where a request stands among its tenant's; lower goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) is_first_try: bool,
    pub(crate) strict_priority: Reverse<u32>,
    pub(crate) score: i64,
    /// No two requests have the same.
    pub(crate) tie: i64,
    /// What it costs its tenant, at least 1.
    pub(crate) charge_tokens: u64,
}

/// The tenants with waiting requests for one model, in the order of their turns.
#[derive(Debug, Default)]
pub(crate) struct Line {
    tenants: VecDeque<Tenant>,
}

/// The waiting requests of one tenant; never empty.
#[derive(Debug)]
struct Tenant {
    name: Arc<str>,
    by_place: BTreeMap<Place, Ticket>,
    by_age: BTreeMap<Ticket, Place>,
    /// What it may still spend, while its turn lasts and over from the last one.
    credit_tokens: u64,
    is_in_turn: bool,
    /// Requests taken out for placing since the oldest one was.
    younger: u32,
}

impl Line {
    pub(crate) fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    pub(crate) fn push(&mut self, tenant: &Arc<str>, ticket: Ticket, place: Place) {
        let at = self.position(tenant).unwrap_or_else(|| {
            self.tenants.push_back(Tenant::new(tenant.clone()));
            self.tenants.len() - 1
        });
        self.tenants[at].push(ticket, place);
    }

    pub(crate) fn remove(&mut self, tenant: &str, ticket: Ticket, place: &Place) {
        if let Some(at) = self.position(tenant) {
            self.tenants[at].remove(ticket, place);
            self.leave_if_empty(at);
        }
    }

    /// Takes out the next request that `fits`. Each tenant that cannot pay yet goes to the back with
    /// a quantum more, so this ends after as many steps as there are tenants and quanta in the
    /// waiting tokens.
    pub(crate) fn pop(&mut self, mut fits: impl FnMut(Ticket) -> bool) -> Option<Ticket> {
        let mut at = 0;
        while let Some(tenant) = self.tenants.get_mut(at) {
            let Some((ticket, place)) = tenant.candidate(&mut fits) else {
                at += 1; // It keeps its turn, or one that is mostly stuck would never be served.
                continue;
            };
            if tenant.pays(place.charge_tokens) {
                tenant.take(ticket, &place);
                self.leave_if_empty(at);
                return Some(ticket);
            }
            let waits = self.tenants.remove(at);
            self.tenants.extend(waits);
        }
        None
    }

    fn position(&self, tenant: &str) -> Option<usize> {
        self.tenants.iter().position(|t| *t.name == *tenant)
    }

    /// A tenant that has nothing left loses its credit: who does not ask saves nothing up.
    fn leave_if_empty(&mut self, at: usize) {
        if self.tenants[at].by_age.is_empty() {
            self.tenants.remove(at);
        }
    }
}

impl Tenant {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            by_place: BTreeMap::new(),
            by_age: BTreeMap::new(),
            credit_tokens: 0,
            is_in_turn: false,
            younger: 0,
        }
    }

    fn push(&mut self, ticket: Ticket, place: Place) {
        self.by_place.insert(place, ticket);
        self.by_age.insert(ticket, place);
    }

    fn remove(&mut self, ticket: Ticket, place: &Place) {
        self.by_place.remove(place);
        self.by_age.remove(&ticket);
    }

    /// Takes out a request that is placed.
    fn take(&mut self, ticket: Ticket, place: &Place) {
        let is_oldest = self.by_age.keys().next() == Some(&ticket);
        self.younger = match is_oldest {
            true => 0,
            false => self.younger.wrapping_add(1),
        };
        self.remove(ticket, place);
    }

    /// The first request that fits, by place or, now and then, by age.
    fn candidate(&self, mut fits: impl FnMut(Ticket) -> bool) -> Option<(Ticket, Place)> {
        let is_oldests_turn = self.younger % OLDEST_EVERY == OLDEST_EVERY - 1;
        let oldest = match (self.younger >= OLDEST_EVERY, is_oldests_turn) {
            (_, true) => LOOK_AHEAD,
            (true, false) => 1,
            (false, false) => 0,
        };
        let mut by_age = self.by_age.iter().take(oldest);
        if let Some((ticket, place)) = by_age.find(|(ticket, _)| fits(**ticket)) {
            return Some((*ticket, *place));
        }
        let mut by_place = self.by_place.iter().take(LOOK_AHEAD);
        let found = by_place.find(|(_, ticket)| fits(**ticket));
        found.map(|(place, ticket)| (*ticket, *place))
    }

    /// Whether its credit, with what its turn brings, pays for a request; where not, its turn ends.
    fn pays(&mut self, charge_tokens: u64) -> bool {
        if !self.is_in_turn {
            self.credit_tokens += QUANTUM_TOKENS;
        }
        self.is_in_turn = charge_tokens <= self.credit_tokens;
        if self.is_in_turn {
            self.credit_tokens -= charge_tokens;
        }
        self.is_in_turn
    }
}
