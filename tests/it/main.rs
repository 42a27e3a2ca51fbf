//! Tests of the library as its users see it, and of the house rules.

mod config;
mod mock_client;
mod mock_engine;
mod mock_events;
mod mock_recording;
mod mock_scheduler;
mod mock_vllm;
