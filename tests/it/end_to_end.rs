//! `kvlens up` as its users meet it: the built program, its mock engines, HTTP.

mod bad_images;
mod bad_requests;
pub(crate) mod client;
mod continuations;
mod crowd;
mod deaths;
mod departures;
mod explains;
mod files;
mod lent;
mod offloads;
mod overlap;
mod parity;
mod paths;
pub(crate) mod pictures;
mod planes;
mod prediction;
mod queue;
mod resets;
mod signals;
pub(crate) mod stack;
mod tenants;
mod wishes;
