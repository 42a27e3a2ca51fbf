//! `kvlens up` as its users meet it: the built program, its mock engines, HTTP.

mod client;
mod overlap;
mod pictures;
mod stack;
