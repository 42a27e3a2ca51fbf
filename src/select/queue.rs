//! Who waits for a place, how much may wait, and whose turn it is.
//!
//! Requests of one model stand in one line, and a line serves its tenants by deficit round robin: a
//! turn brings a tenant [`QUANTUM_TOKENS`](line::QUANTUM_TOKENS) to spend, and each of its requests
//! costs the prompt tokens that were not cached anywhere when it came. So no tenant gets more of the
//! engines' prefill by sending more, or longer, requests. Inside a tenant the policy decides, with
//! retries and then strict priorities before all else; a client's priority can move it among its own
//! tenant's requests, never ahead of another tenant's share.
//!
//! Nothing starves. While tenants A and B both have requests that could be placed, B is served at
//! most 2 × (quantum + largest request) tokens more than A, whatever either sends. Every
//! [`OLDEST_EVERY`](line::OLDEST_EVERY)th request of a tenant is its oldest, whatever the policy
//! says: one that finds `n` others of its tenant is served among the next
//! `OLDEST_EVERY × (n + 1)` of them.
//!
//! Nor can a tenant fill the queue: see [`Queue::room_for`].
//!
//! A request that cannot be placed although others could, because its worker is busy, does not hold
//! up its line: up to [`LOOK_AHEAD`](line::LOOK_AHEAD) of them are passed over in each tenant, and a
//! tenant none of whose requests can be placed keeps its turn until one can.

pub mod line;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::select::queue::line::{Line, Place};

/// In which order the waiting requests of one tenant go.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum QueuePolicy {
    /// First come, first served; a priority counts as seconds come earlier.
    Fcfs,
    /// The one with the fewest uncached tokens for its priority: the least mean time to the first
    /// token, and those that wait behind one more often find that it has filled a cache for them.
    #[default]
    Wspt,
    /// Last come, first served; a priority counts as seconds come later.
    Lcfs,
}

/// How much may wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    pub requests_max: usize,
    /// Prompt tokens of all that wait.
    pub tokens_max: u64,
    pub wait_max: Duration,
}

/// Names one waiting request; who came later has the higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What the queue knows of a waiting request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub model: Arc<str>,
    pub tenant: Arc<str>,
    /// Of the whole prompt.
    pub tokens: u32,
    /// Those of them that no worker it may go to had cached when it came.
    pub uncached_tokens: u32,
    /// Seconds of head start.
    pub priority: u32,
    pub strict_priority: u32,
    /// It was placed before, and its engine failed it: it has waited already.
    pub is_retry: bool,
    /// Since any fixed start.
    pub arrived: Duration,
}

/// Why a request may not wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum QueueFull {
    #[error("{requests_max} requests wait already, as many as may")]
    Requests { requests_max: usize },
    #[error(
        "{waiting_tokens} prompt tokens wait already, and with {tokens} more they would be above \
         {tokens_max}"
    )]
    Tokens {
        waiting_tokens: u64,
        tokens: u32,
        tokens_max: u64,
    },
    #[error(
        "{requests} requests of this key wait already, with {waiting_tokens} prompt tokens; others \
         may need what is free"
    )]
    Tenant {
        requests: usize,
        waiting_tokens: u64,
    },
}

/// What one tenant has waiting.
#[derive(Clone, Copy, Debug, Default)]
struct Stand {
    requests: usize,
    tokens: u64,
}

/// The waiting requests of all models.
#[derive(Debug)]
pub struct Queue {
    policy: QueuePolicy,
    limits: QueueLimits,
    /// None is empty.
    lines: BTreeMap<Arc<str>, Line>,
    /// In the order in which they came, which is also that of their deadlines.
    entries: BTreeMap<Ticket, Entry>,
    /// None has nothing waiting.
    tenants: BTreeMap<Arc<str>, Stand>,
    tokens: u64,
    next_ticket: u64,
}

impl Queue {
    /// A queue in which nobody waits.
    pub fn new(policy: QueuePolicy, limits: QueueLimits) -> Self {
        Self {
            policy,
            limits,
            lines: BTreeMap::new(),
            entries: BTreeMap::new(),
            tenants: BTreeMap::new(),
            tokens: 0,
            next_ticket: 0,
        }
    }

    /// Counts the waiting requests.
    pub fn requests(&self) -> usize {
        self.entries.len()
    }

    /// Counts the prompt tokens of all waiting requests.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Whether requests for this model wait.
    pub fn has_waiting(&self, model: &str) -> bool {
        self.lines.contains_key(model)
    }

    /// The models that requests wait for.
    pub fn models(&self) -> Vec<Arc<str>> {
        self.lines.keys().cloned().collect()
    }

    /// Whether one more request of so many tokens may wait. Takes the same few steps however many
    /// wait, so that refusing stays cheap when most is refused.
    ///
    /// A tenant with a name may have no more waiting than is free, so that however much it sends there
    /// is room for others (dynamic thresholds: Choudhury and Hahne, 1998). One alone gets half of the
    /// queue, two a third each.
    ///
    /// # Errors
    /// When a limit would be passed.
    pub fn room_for(&self, tenant: &str, tokens: u32) -> Result<(), QueueFull> {
        let QueueLimits {
            requests_max,
            tokens_max,
            ..
        } = self.limits;
        if self.entries.len() >= requests_max {
            return Err(QueueFull::Requests { requests_max });
        }
        if self.tokens + u64::from(tokens) > tokens_max {
            return Err(QueueFull::Tokens {
                waiting_tokens: self.tokens,
                tokens,
                tokens_max,
            });
        }
        let Some(stand) = self.tenants.get(tenant).filter(|_| !tenant.is_empty()) else {
            return Ok(());
        };
        let free_requests = requests_max - self.entries.len();
        let free_tokens = tokens_max - self.tokens;
        if stand.requests >= free_requests || stand.tokens + u64::from(tokens) > free_tokens {
            return Err(QueueFull::Tenant {
                requests: stand.requests,
                waiting_tokens: stand.tokens,
            });
        }
        Ok(())
    }

    /// A ticket for one that has come.
    pub fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    /// Takes a request in, with a ticket of its own.
    ///
    /// # Errors
    /// When a limit would be passed.
    pub fn push(&mut self, ticket: Ticket, entry: Entry) -> Result<(), QueueFull> {
        self.room_for(&entry.tenant, entry.tokens)?;
        let stand = self.tenants.entry(entry.tenant.clone()).or_default();
        stand.requests += 1;
        stand.tokens += u64::from(entry.tokens);
        self.tokens += u64::from(entry.tokens);
        let place = self.place(&entry, ticket);
        let line = self.lines.entry(entry.model.clone()).or_default();
        line.push(&entry.tenant, ticket, place);
        self.entries.insert(ticket, entry);
        Ok(())
    }

    /// Takes out the next request of a model that `fits`, of those who are to be asked.
    pub fn pop(&mut self, model: &str, fits: impl FnMut(Ticket) -> bool) -> Option<Ticket> {
        let ticket = self.lines.get_mut(model)?.pop(fits)?;
        self.forget(ticket);
        Some(ticket)
    }

    /// Takes a request out, whatever its turn; false when it did not wait any more.
    pub fn remove(&mut self, ticket: Ticket) -> bool {
        let Some(entry) = self.entries.get(&ticket) else {
            return false;
        };
        let place = self.place(entry, ticket);
        if let Some(line) = self.lines.get_mut(&entry.model) {
            line.remove(&entry.tenant, ticket, &place);
        }
        self.forget(ticket);
        true
    }

    /// The order in which requests would leave a queue without limits, were they alone in it and all
    /// of them fit.
    pub fn order(&self, entries: impl Iterator<Item = (Ticket, Entry)>) -> Vec<Ticket> {
        let limits = QueueLimits {
            requests_max: usize::MAX,
            tokens_max: u64::MAX,
            wait_max: Duration::MAX,
        };
        let mut alone = Self::new(self.policy, limits);
        for (ticket, entry) in entries {
            // Without limits there is room for each.
            alone.push(ticket, entry).ok();
        }
        let models = alone.models();
        let pop = || models.iter().find_map(|model| alone.pop(model, |_| true));
        std::iter::from_fn(pop).collect()
    }

    /// Whether a request has waited as long as one may.
    pub fn has_expired(&self, now: Duration) -> bool {
        let first = self.entries.first_key_value();
        first.is_some_and(|(_, entry)| entry.arrived + self.limits.wait_max <= now)
    }

    /// Takes out those that have waited as long as one may.
    pub fn expire(&mut self, now: Duration) -> Vec<Ticket> {
        let mut expired = Vec::new();
        while self.has_expired(now) {
            let first = self.entries.keys().next().copied();
            expired.extend(first.filter(|ticket| self.remove(*ticket)));
        }
        expired
    }

    /// Clears what is counted of a request that has left its line.
    fn forget(&mut self, ticket: Ticket) {
        let Some(entry) = self.entries.remove(&ticket) else {
            return;
        };
        self.tokens -= u64::from(entry.tokens);
        if let Some(stand) = self.tenants.get_mut(&entry.tenant) {
            stand.requests -= 1;
            stand.tokens -= u64::from(entry.tokens);
            if stand.requests == 0 {
                self.tenants.remove(&entry.tenant);
            }
        }
        if self.lines.get(&entry.model).is_some_and(Line::is_empty) {
            self.lines.remove(&entry.model);
        }
    }

    fn place(&self, entry: &Entry, ticket: Ticket) -> Place {
        let arrived_micros = i64::try_from(entry.arrived.as_micros()).unwrap_or(i64::MAX / 2);
        let head_start_micros = i64::from(entry.priority) * 1_000_000;
        let number = ticket.0.cast_signed();
        let charge_tokens = entry.uncached_tokens.max(1);
        let (score, tie) = match self.policy {
            QueuePolicy::Fcfs => (arrived_micros - head_start_micros, number),
            QueuePolicy::Lcfs => (-(arrived_micros + head_start_micros), -number),
            // Whole numbers, so that the order is the same everywhere; 20 bits keep apart what
            // priorities up to a million make of one token.
            QueuePolicy::Wspt => {
                let weight = 1 + i64::from(entry.priority);
                ((i64::from(charge_tokens) << 20) / weight, number)
            }
        };
        Place {
            is_first_try: !entry.is_retry,
            strict_priority: Reverse(entry.strict_priority),
            score,
            tie,
            charge_tokens: u64::from(charge_tokens),
        }
    }
}

#[cfg(test)]
mod tests;
