//! What goes between hosts over a real NATS server: feeds, bookings, placements.

mod feeds;
mod placements;
pub(crate) mod server;
mod trust;
