//! kvlens serves vision-language models and sends each request to the engine that already holds
//! the KV-cache blocks of its prompt, the blocks of its images included.
//!
//! A module imports only modules above it:
//!
//! | module | what is inside |
//! |---|---|
//! | `id` | names and numbers that identify things |
//! | `openai` | the public wire types |
//! | `vision` | how many tokens an image becomes, one file per model family |
//! | `prompt` | a prompt with its images expanded |
//! | `block` | block sizes, sequence hashes, hashing an expanded prompt |
//! | `ledger` | what one engine holds, under the engine's names and ours |
//! | `index` | which worker holds which blocks |
//! | `health` | whether a worker may be used, as a verdict |
//! | `select` | which worker is cheapest for a request |
//! | `config` | the configuration, from defaults to flags |
//! | `telemetry` | logs and the list of metrics |
//! | `lifecycle` | a process's beginning and end |
//! | `http` | HTTP servers |
//! | `model` | a model's folder, read once |
//! | `media` | from an image's URL to its bytes, digest and size |
//! | `events` | KV events, read from engines |
//! | `gpu` | the GPUs of this host |
//! | `discovery` | membership: workers' records, and changes to their set |
//! | `dispatch` | requests to engines, and their streams back |
//! | `router` | answers placements; owns index, load and queue |
//! | `frontend` | answers clients |
//! | `worker` | the agent beside one engine |
//! | `engine` | runs engines as child processes |
//! | `mock` | a stand-in for an engine, without a GPU |
//! | `up` | everything on one box |
//! | `commands` | commands that answer and end |
//! | `cli` | the command line |

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
