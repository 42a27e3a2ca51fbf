//! The public wire types: what clients send, what they are answered.

pub mod error;
