//! What goes between hosts over a real NATS server: feeds, bookings, placements.

mod feeds;
mod placements;
mod server;
mod trust;
