//! What goes between hosts over a real NATS server: feeds, bookings, placements.

mod feeds;
mod gated;
mod placements;
mod request_plane;
mod requests;
mod server;
mod trust;
