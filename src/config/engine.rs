//! `[engine]`: engines that run as our child processes.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::config::driver::DriverVersion;

/// Engines that run as our child processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Time for an engine to load its model and answer, in seconds; then it is restarted.
    #[schemars(range(min = 1))]
    pub ready_secs: u64,
    /// Time between two questions whether an engine is ready, in milliseconds.
    #[schemars(range(min = 1))]
    pub probe_millis: u64,
    /// Time between two questions whether a ready engine still answers, in milliseconds.
    #[schemars(range(min = 1))]
    pub watch_millis: u64,
    /// Time a ready engine has to answer such a question, in milliseconds.
    #[schemars(range(min = 1))]
    pub watch_deadline_millis: u64,
    /// Questions in a row that a ready engine may leave without a good answer; then it is restarted.
    /// One that says twice that it is not well (503) is restarted at once.
    #[schemars(range(min = 1))]
    pub watch_failures_max: u32,
    /// Wait before the first restart of an engine that ended, in milliseconds; doubled each time.
    #[schemars(range(min = 1))]
    pub backoff_first_millis: u64,
    /// Longest wait before a restart, in seconds.
    #[schemars(range(min = 1))]
    pub backoff_max_secs: u64,
    /// Time an engine must have been ready for the next wait to be the first again, in seconds.
    #[schemars(range(min = 1))]
    pub backoff_reset_secs: u64,
    /// Time for requests in flight at the gate of `kvlens engine` to finish before the engine is
    /// ended, in seconds.
    pub drain_secs: u64,
    /// Time an engine has to end after SIGTERM, in seconds; then its process group is killed.
    pub grace_secs: u64,
    /// Most lines of an engine's output kept to explain its end.
    #[schemars(range(min = 1, max = 10_000))]
    pub log_lines_max: usize,
    /// Longest line of an engine's output kept, in bytes; the rest of it is left out.
    #[schemars(range(min = 80, max = 65_536))]
    pub log_line_bytes_max: usize,
    /// Tokens of a KV-cache block; unset leaves it to the engine.
    #[schemars(range(min = 1))]
    pub block_size: Option<u32>,
    /// The oldest NVIDIA driver that vLLM, and whatever podman runs, is started with, as `580` or
    /// `580.65.06`; unset takes any. `workers.NAME.driver_min` goes before it.
    pub driver_min: Option<DriverVersion>,
    /// Folder below which a folder `kvlens-<uid>` is made for sockets and process ids; unset takes
    /// `$XDG_RUNTIME_DIR`, or `/tmp`.
    pub run_dir: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            ready_secs: 900,
            probe_millis: 200,
            watch_millis: 1000,
            watch_deadline_millis: 5000,
            watch_failures_max: 5,
            backoff_first_millis: 500,
            backoff_max_secs: 30,
            backoff_reset_secs: 60,
            drain_secs: 30,
            grace_secs: 10,
            log_lines_max: 200,
            log_line_bytes_max: 2048,
            block_size: None,
            driver_min: None,
            run_dir: None,
        }
    }
}

impl EngineConfig {
    /// Time for an engine to load its model and answer.
    pub fn ready(&self) -> Duration {
        Duration::from_secs(self.ready_secs)
    }

    /// Time between two questions whether an engine is ready.
    pub fn probe(&self) -> Duration {
        Duration::from_millis(self.probe_millis)
    }

    /// Time between two questions whether a ready engine still answers.
    pub fn watch(&self) -> Duration {
        Duration::from_millis(self.watch_millis)
    }

    /// Time a ready engine has to answer such a question.
    pub fn watch_deadline(&self) -> Duration {
        Duration::from_millis(self.watch_deadline_millis)
    }

    /// Wait before the first restart.
    pub fn backoff_first(&self) -> Duration {
        Duration::from_millis(self.backoff_first_millis)
    }

    /// Longest wait before a restart.
    pub fn backoff_max(&self) -> Duration {
        Duration::from_secs(self.backoff_max_secs)
    }

    /// Time an engine must have been ready for the next wait to be the first again.
    pub fn backoff_reset(&self) -> Duration {
        Duration::from_secs(self.backoff_reset_secs)
    }

    /// Time for requests in flight at the gate to finish.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_secs)
    }

    /// Tokens of a KV-cache block, where they are set.
    pub fn block_size(&self) -> Option<BlockSize> {
        self.block_size.and_then(BlockSize::new)
    }

    /// Time an engine has to end after SIGTERM.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_secs)
    }
}
