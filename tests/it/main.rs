//! Tests of the library as its users see it, and of the house rules.

mod agent;
mod cli;
mod codec;
mod config;
mod end_to_end;
mod engine;
mod hash_vectors;
mod http;
mod index_laws;
mod layers;
mod ledger;
mod media_fetch;
mod mock_client;
mod mock_engine;
mod mock_events;
mod mock_recording;
mod mock_scheduler;
mod mock_vllm;
mod model;
mod normalise;
mod openai_requests;
mod recording;
mod router;
mod source;
mod template;
mod tokenizer;
