//! kvlens serves vision-language models and sends each request to the engine that already holds
//! the KV-cache blocks of its prompt, the blocks of its images included.

// pure: values in, values out; no I/O, clock, tasks, logs
pub mod block;
pub mod health;
pub mod id;
pub mod index;
pub mod ledger;
pub mod openai;
pub mod prompt;
pub mod select;
pub mod vision;
// effects: one outside system each
pub mod config;
pub mod discovery;
pub mod dispatch;
pub mod events;
pub mod gpu;
pub mod http;
pub mod lifecycle;
pub mod media;
pub mod model;
pub mod telemetry;
// roles and commands: the loops
pub mod cli;
pub mod commands;
pub mod engine;
pub mod frontend;
pub mod mock;
pub mod router;
pub mod up;
pub mod worker;
