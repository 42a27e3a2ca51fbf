//! The command line of `kvlens mock-engine`, close to that of `vllm serve`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::mock::hash::Lora;
use crate::mock::prompt::Fault;
use crate::mock::publisher::Plan;
use crate::mock::rank::Speeds;
use crate::mock::scheduler::Bounds;
use crate::mock::wire::{EventForm, HashForm};

/// Names the model inside the binary.
pub const DEMO: &str = "demo";

/// An option that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{option} is {value:?}, but {rule}")]
pub struct BadOption {
    pub option: &'static str,
    pub value: String,
    pub rule: String,
}

/// What a mock engine is started with.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder of the model's files, or "demo" for the one inside the binary.
    #[arg(long, default_value = DEMO)]
    pub model: String,
    /// Names the model answers to; its folder's if none is given.
    #[arg(long, num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen on; 0 lets the system choose.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Path of a unix socket to listen on instead.
    #[arg(long, value_name = "PATH")]
    pub uds: Option<PathBuf>,
    /// Tokens per KV-cache block.
    #[arg(long, default_value_t = 16)]
    pub block_size: u32,
    /// KV-cache blocks per rank, the null block included.
    #[arg(long, default_value_t = 4096)]
    pub num_gpu_blocks: u32,
    /// Blocks per rank that host memory keeps of those evicted from the KV cache.
    #[arg(long, default_value_t = 0)]
    pub host_blocks: usize,
    /// Engine ranks, each with its own cache and stream of events.
    #[arg(long, default_value_t = 1)]
    pub data_parallel_size: u32,
    /// Where KV events are published: tcp://host:port (a rank adds its number to the port; connected
    /// to, unless the host is * or the port 0) or ipc://path (a rank adds _dp and its number).
    /// Without it none are.
    #[arg(long)]
    pub kv_events_endpoint: Option<String>,
    /// Where past KV events are asked for.
    #[arg(long)]
    pub kv_events_replay: Option<String>,
    /// First frame of every published batch.
    #[arg(long, default_value = "")]
    pub kv_events_topic: String,
    /// Layout of events: maps (releases from 0.24) or arrays (0.22 and 0.23).
    #[arg(long, value_enum, default_value = "maps")]
    pub events: EventForm,
    /// Block hashes as numbers or as bytes.
    #[arg(long, value_enum, default_value = "int")]
    pub hashes: HashForm,
    /// Batches kept for a replay.
    #[arg(long, default_value_t = 10_000)]
    pub replay_buffer: usize,
    /// Prompt tokens a rank computes per second; cached ones cost nothing. 0 is infinitely fast.
    #[arg(long, default_value_t = 20_000.0)]
    pub prefill_tokens_per_second: f64,
    /// Answer tokens per second of each request. 0 is infinitely fast.
    #[arg(long, default_value_t = 200.0)]
    pub decode_tokens_per_second: f64,
    /// Most requests that run at once on a rank; others wait.
    #[arg(long, default_value_t = 256)]
    pub max_num_seqs: usize,
    /// Most tokens computed in one step; longer prompts are computed in chunks.
    #[arg(long, default_value_t = 8192)]
    pub max_num_batched_tokens: usize,
    /// Most tokens of a prompt and its answer; what the model and the cache allow if not given.
    #[arg(long)]
    pub max_model_len: Option<usize>,
    /// Name of a LoRA adapter to serve; may be repeated.
    #[arg(long)]
    pub lora: Vec<String>,
    /// Folder below which images may be read by file:// URL.
    #[arg(long, value_name = "FOLDER")]
    pub allowed_local_media_path: Option<PathBuf>,
    /// Hosts from which images may be fetched by http:// URL; none unless told, where vLLM takes all.
    #[arg(long, value_name = "HOST", num_args = 1..)]
    pub allowed_media_domains: Vec<String>,
    /// Also answers /reset_prefix_cache.
    #[arg(long)]
    pub dev: bool,
    /// Makes prompts wrongly, for tests of those who must notice it.
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
    /// A text of which the engine dies, before it answers a chat that holds it.
    #[arg(long, value_name = "TEXT")]
    pub deadly_text: Option<String>,
    /// Stops when standard input closes, so that none is left behind by a killed parent.
    #[arg(long)]
    pub exit_with_stdin: bool,
}

impl Options {
    /// Refuses values no engine could run with.
    ///
    /// # Errors
    /// Names the first unusable option.
    pub fn check(&self) -> Result<(), BadOption> {
        let at_least = |option, value: usize, least: usize| {
            if value >= least {
                return Ok(());
            }
            Err(bad(option, &value, format!("must be at least {least}")))
        };
        at_least("block-size", self.block_size as usize, 1)?;
        at_least("num-gpu-blocks", self.num_gpu_blocks as usize, 2)?;
        at_least("data-parallel-size", self.data_parallel_size as usize, 1)?;
        at_least("max-num-seqs", self.max_num_seqs, 1)?;
        at_least("max-num-batched-tokens", self.max_num_batched_tokens, 1)?;
        for (option, value) in [
            ("prefill-tokens-per-second", self.prefill_tokens_per_second),
            ("decode-tokens-per-second", self.decode_tokens_per_second),
        ] {
            // A step must end within the day, and its duration must be a number.
            if !(value == 0.0 || value.is_finite() && value >= 0.1) {
                return Err(bad(option, &value, "must be 0 or at least 0.1".into()));
            }
        }
        if let (Some(replay), None) = (&self.kv_events_replay, &self.kv_events_endpoint) {
            let rule = "needs --kv-events-endpoint".into();
            return Err(bad("kv-events-replay", replay, rule));
        }
        Ok(())
    }

    /// The longest prompt plus answer, given what the `model` takes.
    ///
    /// # Errors
    /// When the length asked for does not fit the cache: such a request could never run.
    pub fn context_tokens_max(&self, model: Option<u32>) -> Result<usize, BadOption> {
        let fits = (self.num_gpu_blocks as usize - 1) * self.block_size as usize;
        match self.max_model_len {
            None => Ok(model.map_or(fits, |tokens| fits.min(tokens as usize))),
            Some(asked) if (2..=fits).contains(&asked) => Ok(asked),
            Some(asked) => {
                let rule = format!("must be from 2 to the {fits} tokens that the KV cache holds");
                Err(bad("max-model-len", &asked, rule))
            }
        }
    }

    /// The names the base model answers to, at least one.
    pub fn names(&self) -> Vec<String> {
        if self.served_model_name.is_empty() {
            vec![self.model.clone()]
        } else {
            self.served_model_name.clone()
        }
    }

    /// The adapters, numbered as vLLM numbers them.
    pub fn loras(&self) -> Vec<Arc<Lora>> {
        let lora = |(id, name): (u32, &String)| {
            Arc::new(Lora {
                name: name.clone(),
                id,
            })
        };
        (1..).zip(&self.lora).map(lora).collect()
    }

    /// One rank's bounds.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            block_size: self.block_size as usize,
            blocks: self.num_gpu_blocks,
            host_blocks: self.host_blocks,
            running_max: self.max_num_seqs,
            batched_tokens_max: self.max_num_batched_tokens,
        }
    }

    /// How fast a rank computes.
    pub fn speeds(&self) -> Speeds {
        Speeds {
            prefill: self.prefill_tokens_per_second,
            decode: self.decode_tokens_per_second,
        }
    }

    /// Where events go; `None` when they are not published.
    pub fn publishing(&self) -> Option<Plan> {
        self.kv_events_endpoint.as_ref().map(|endpoint| Plan {
            endpoint: endpoint.clone(),
            replay: self.kv_events_replay.clone(),
            topic: self.kv_events_topic.clone(),
            buffered_batches_max: self.replay_buffer,
        })
    }
}

fn bad(option: &'static str, value: &impl ToString, rule: String) -> BadOption {
    BadOption {
        option,
        value: value.to_string(),
        rule,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn outcome(line: &str) -> Result<usize, String> {
        let words = std::iter::once("mock-engine").chain(line.split_whitespace());
        let options = Line::try_parse_from(words).unwrap().options;
        let checked = options
            .check()
            .and_then(|()| options.context_tokens_max(Some(2048)));
        checked.map_err(|bad| bad.to_string())
    }

    #[test]
    fn unusable_options_are_named() {
        let rows = [
            ("", Ok(2048)),
            ("--num-gpu-blocks 20", Ok(304)),
            ("--num-gpu-blocks 20 --max-model-len 256", Ok(256)),
            (
                "--num-gpu-blocks 20 --max-model-len 305",
                Err(
                    "--max-model-len is \"305\", but must be from 2 to the 304 tokens that the KV cache holds",
                ),
            ),
            (
                "--block-size 0",
                Err("--block-size is \"0\", but must be at least 1"),
            ),
            (
                "--num-gpu-blocks 1",
                Err("--num-gpu-blocks is \"1\", but must be at least 2"),
            ),
            (
                "--decode-tokens-per-second NaN",
                Err("--decode-tokens-per-second is \"NaN\", but must be 0 or at least 0.1"),
            ),
            (
                "--kv-events-replay tcp://127.0.0.1:1",
                Err("--kv-events-replay is \"tcp://127.0.0.1:1\", but needs --kv-events-endpoint"),
            ),
        ];
        for (line, expected) in rows {
            assert_eq!(outcome(line), expected.map_err(str::to_owned), "{line}");
        }
    }
}
