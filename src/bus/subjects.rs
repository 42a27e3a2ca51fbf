//! The subjects of the bus, each with what goes over it.

use crate::id::WorkerId;

/// All that an agent tells, in order and numbered.
pub fn kv(worker: &WorkerId) -> String {
    format!("kvlens.kv.{worker}")
}

/// The same without KV events, for those who place by other means.
pub fn record(worker: &WorkerId) -> String {
    format!("kvlens.record.{worker}")
}

/// Asked of an agent: all it knows now.
pub fn snapshot(worker: &WorkerId) -> String {
    format!("kvlens.snapshot.{worker}")
}

/// Asked of an engine's gate: a request, and how its answer is taken. Whoever else listens there hides
/// that no gate does: a request then waits for as long as a gate may be silent, and its engine is taken
/// to have broken off.
pub fn request(worker: &WorkerId) -> String {
    format!("kvlens.request.{worker}")
}

/// What a router has booked.
pub fn bookings(router: &str) -> String {
    format!("kvlens.bookings.{router}")
}

/// What every router has booked.
pub const ALL_BOOKINGS: &str = "kvlens.bookings.*";

/// Asked of a router: where a request goes.
pub fn place(router: &str) -> String {
    format!("kvlens.router.{router}.place")
}

/// Asked of a router: what every candidate would cost.
pub fn explain(router: &str) -> String {
    format!("kvlens.router.{router}.explain")
}

/// A router says that it is there.
pub fn alive(router: &str) -> String {
    format!("kvlens.router.{router}.alive")
}

/// Every router says so.
pub const ALL_ALIVE: &str = "kvlens.router.*.alive";
