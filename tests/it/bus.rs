//! What goes between hosts over a real NATS server: feeds, bookings, placements, requests.

mod feeds;
pub(crate) mod gated;
mod parts;
mod placements;
mod request_plane;
mod requests;
pub(crate) mod server;
mod trust;
