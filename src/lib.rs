//! kvlens serves vision-language models and sends each request to the engine that already holds
//! the KV-cache blocks of its prompt, the blocks of its images included.
//!
//! # A request, in order
//!
//! HTTP JSON → [`openai::chat::ChatRequest`] (each field rendered, passed, refused or dropped) → chat
//! template → text → token ids as the engine makes them → images: bytes → digest and size → expansion
//! → [`prompt::ExpandedPrompt`] → [`router::footprint::Footprint`] (sequence hashes and counts, nothing else) →
//! [`router::Router::admit`] → [`router::Placement`] with its booking → the engine's body, our digests
//! as its `uuid`s → stream → first token frees the prefill share, the end or the client's going away
//! the rest. [`frontend`] tells this story; nothing flows back but the answer.
//!
//! # An event, in order
//!
//! engine → [`events`] (ZeroMQ frames, replayed where some are missing) → [`ledger`] (the engine's
//! names become sequence hashes, copies are counted, each tier apart; a block of the GPU is told of only
//! with all before it) → [`index::KvEvent`] → [`router`] → [`index::Index`]. What leaves the agent has
//! no tokens, salts or parents. An agent in a process of its own tells routers by its feed, over HTTP or
//! on the bus: [`worker::feed`] → [`discovery::feed`] → [`router::feed`]. With a cluster key, names are
//! sealed as they leave.
//!
//! # A rack
//!
//! Agents register in etcd ([`discovery::etcd`]), and [`router::members`] follows whoever is there. On the
//! bus each line of a feed is numbered ([`discovery::broadcast`]): a gap asks for a snapshot, a heartbeat
//! shows a lost tail. Every router tells what it books ([`router::sharing`]), and all that is live each
//! second. A frontend has a router of its own, or asks one elsewhere ([`router::remote`]), whose choice it
//! books as if it were its own; with none that answers, workers take turns.
//!
//! # A sick GPU
//!
//! NVML → one thread for each GPU ([`gpu::watch`]), seen from outside when a call does not return →
//! [`health::reading::Observation`] → [`health::judge::Judge`], by the table of [`health`] →
//! [`worker::gpus`], which asks the engine for a token before a GPU counts as well again → the worker's
//! record, and its verdict: the worse of its engine's and its GPUs' → [`router`], which places nothing
//! where nothing should run. The router never asks a GPU.
//!
//! # The cost of a candidate
//!
//! [`select::cost::cost`] and NVIDIA Dynamo 1.6's, the reference's, lower is better; both are argmin with
//! ties spread by chance at temperature 0, and a softmax over costs scaled to 0..1 above:
//!
//! | term | Dynamo, in blocks | kvlens, in tokens |
//! |---|---|---|
//! | to compute | uncached − spared | 2 × overlap weight × (uncached − spared + evicted) |
//! | queued there | active prefill, same weight | active prefill, weight 1 |
//! | held | active blocks and this prompt's new ones | the same / 20 |
//! | factor | e^−tanh(Σ preferred taints) | the same, × 2 where degraded |
//!
//! Tokens, because workers of two block sizes compare only so. What must be computed weighs double: it
//! also keeps back those behind it and takes room in a second cache. What is held weighs little: it
//! slows a step by its memory's bandwidth, where a token to compute is work. *Evicted* is what a prompt
//! that is new everywhere pushes out of a cache, as far as that is young, so that whoever holds a
//! common lead is not sent every new prompt. *Spared* are shares of what follows the overlap in slower
//! tiers, 0.75 of a block in the host's memory and 0.25 of one on disk (the rest is the time that loading
//! takes, and is booked), and with us of an image that was encoded lately.
//!
//! # The map
//!
//! A module imports only modules above it.
//!
//! | module | what is inside |
//! |---|---|
//! | `id` | names and numbers that identify things |
//! | `openai` | the public wire types: what clients send, checked and sorted, and the errors they get |
//! | `vision` | how many tokens an image becomes, one file per model family |
//! | `prompt` | messages to text by the chat template, and a prompt with its images expanded |
//! | `block` | block sizes, sequence hashes, hashing an expanded prompt |
//! | `ledger` | what one engine holds, under the engine's names and ours |
//! | `index` | which worker holds which blocks, and how much of a prompt each holds |
//! | `health` | whether a worker may be used, as a verdict, and what is wrong with a GPU |
//! | `select` | the cost model: which worker is cheapest for a request; the queue: whose turn it is |
//! | `config` | the configuration, from defaults to flags |
//! | `telemetry` | logs, to standard error or the journal, what errors say in them, and the list of metrics |
//! | `lifecycle` | a process's beginning and end, word to systemd and its sockets, and the folders of its own |
//! | `http` | HTTP servers: limits, routes, whole requests in, answers or streams out; bytes lent to engines |
//! | `bus` | NATS between hosts: messages, questions and their answers |
//! | `model` | a model's folder, read once, and the demo model |
//! | `media` | from an image's URL to its bytes, digest and size, and to a file for engines |
//! | `events` | KV events, read from engines |
//! | `gpu` | the GPUs of this host: found, read through NVML, watched |
//! | `discovery` | membership: workers' records, and changes to their set |
//! | `dispatch` | requests to engines and agents, over HTTP or the bus, and their streams back |
//! | `router` | answers placements; the one owner of index, load and the set of workers |
//! | `frontend` | answers clients, from HTTP in to stream out |
//! | `worker` | the agent beside one engine: follows its events and health, and feeds routers |
//! | `engine` | runs engines as child processes, and the gate and control socket of one |
//! | `mock` | a stand-in for vLLM that needs no GPU |
//! | `up` | everything on one box, in one process |
//! | `commands` | commands that answer and end: the doctor, and the units of a host among them |
//! | `cli` | the command line |
//!
//! Around the crate: `systemd/` has the units' texts, from which `kvlens units` and the NixOS module alike
//! make those of a host; `nix/` the flake's bodies and all pins; `tests/` what proves each on real parts.
//!
//! # What always holds
//!
//! - `id` to `select` are pure: values in, values out; no I/O, clock, tasks or logs.
//! - One outside crate, one room: servers in `http`, NATS in `bus`, etcd in `discovery/etcd.rs`, clients of engines in `dispatch`, fetching in
//!   `media`, ZeroMQ in `events/zmq.rs` and `mock`, NVML in `gpu/nvml`, systemd in `lifecycle`.
//! - An image's identity is BLAKE3 of its encoded bytes and its tenant: never its URL, nothing a client
//!   supplied, and what was hashed is what the engine gets.
//! - Tenants share no cache: a tenant's name is part of its prompts' salt and of its images' identity.
//! - Only the router's state changes index, load or queue, behind one short synchronous lock, never
//!   across an await; answers never pass through it.
//! - etcd and NATS may be away: nothing ends, and what is known serves on. Absence is a suspicion: a worker
//!   gets nothing while its engine refuses or nobody there is heard, and is forgotten once it is
//!   deregistered, named no more, or has been silent for `discovery.stale_after_secs`.
//! - What a request holds is given back by `Drop`; every task has a parent; every queue, cache, body
//!   and loop has a limit.
//! - `mock` shares only `openai`, `vision`, `model` and `http` with the rest, so that a mistake in
//!   hashing or events cannot cancel itself out.
//! - `frontend` and `worker` never import each other.
//!
//! `tests/it/layers.rs` checks the map, the rooms and the purity.

// pure: values in, values out
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
pub mod bus;
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
