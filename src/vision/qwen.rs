//! Qwen2-VL, Qwen2.5-VL, Qwen3-VL.

/// Placeholder.
#[derive(Clone, Debug)]
pub struct Qwen {}
