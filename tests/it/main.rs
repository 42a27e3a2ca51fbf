//! Tests of the library as its users see it, and of the house rules.

mod cli;
mod config;
mod engine;
mod layers;
