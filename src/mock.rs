//! `kvlens mock-engine`: an honest stand-in for `vllm serve` that needs no GPU.

pub mod free;
pub mod hash;
pub mod pool;
pub mod scheduler;
pub mod wire;
