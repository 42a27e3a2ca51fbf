//! The public wire types: what clients send, checked and sorted, and the errors they are answered.

pub mod chat;
pub mod completion;
pub mod embeddings;
pub mod error;
pub mod fields;
mod inline;
pub mod nvext;
pub mod request;
mod tools;
