//! What an engine's `/metrics` say of its load.

use std::collections::BTreeMap;

use crate::discovery::EngineLoad;
use crate::health::judge::Progress;

/// Most ranks that are read of one page, so that a strange one costs no memory.
const RANKS_MAX: usize = 1_024;

/// Tokens generated since the engine's start.
const GENERATED: &str = "vllm:generation_tokens_total";

/// Steps computed since then.
const STEPS: &str = "vllm:iteration_tokens_total_count";

/// The loads of an engine's ranks, rank 0 first; empty for a page that does not say.
pub fn parse(metrics: &str, capacity_blocks: Option<u64>) -> Vec<EngineLoad> {
    let mut ranks: BTreeMap<usize, EngineLoad> = BTreeMap::new();
    for line in metrics.lines() {
        let Some((name, rank, value)) = sample(line) else {
            continue;
        };
        if rank >= RANKS_MAX || [GENERATED, STEPS].contains(&name) {
            continue;
        }
        let load = ranks.entry(rank).or_default();
        match name {
            "vllm:num_requests_running" => load.running += value as u64,
            "vllm:num_requests_waiting" => load.waiting += value as u64,
            _ => load.used_blocks = capacity_blocks.map(|all| (value * all as f64).round() as u64),
        }
    }
    // Ranks with holes between them are none that can be told apart by position.
    match ranks.keys().copied().eq(0..ranks.len()) {
        true => ranks.into_values().collect(),
        false => Vec::new(),
    }
}

/// How far an engine is, over all its ranks; `None` for a page that does not say.
pub fn progress(metrics: &str) -> Option<Progress> {
    let mut progress = Progress::default();
    let mut is_told = false;
    for (name, _, value) in metrics.lines().filter_map(sample) {
        match name {
            "vllm:num_requests_running" => progress.running += value as u64,
            GENERATED => {
                progress.generated_tokens += value as u64;
                is_told = true;
            }
            // A long prompt is computed in steps that give no token yet.
            STEPS => progress.generated_tokens += value as u64,
            _ => {}
        }
    }
    is_told.then_some(progress)
}

/// The name, rank and value of a line that tells of load or progress.
fn sample(line: &str) -> Option<(&str, usize, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let tells = [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        GENERATED,
        STEPS,
    ];
    let value: f64 = value.parse().ok()?;
    if !tells.contains(&name) || !value.is_finite() || value < 0.0 {
        return None;
    }
    let rank = labels.split(',').find_map(|label| {
        let text = label.strip_prefix("engine=\"")?;
        text.split('"').next()?.parse().ok()
    });
    Some((name, rank.unwrap_or(0), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_that_of_all_ranks() {
        let page = "vllm:num_requests_running{engine=\"0\"} 3.0\n\
                    vllm:generation_tokens_total{engine=\"0\"} 100.0\n\
                    vllm:generation_tokens_total{engine=\"1\"} 20.0\n\
                    vllm:iteration_tokens_total_count{engine=\"1\"} 7.0\n";
        let all = Progress {
            running: 3,
            generated_tokens: 127,
        };
        assert_eq!(progress(page), Some(all));
        assert_eq!(progress("vllm:num_requests_running 3"), None);
        assert!(parse("vllm:generation_tokens_total 5", None).is_empty());
    }

    #[test]
    fn the_load_is_read_rank_by_rank() {
        let load = |running, waiting, used_blocks| EngineLoad {
            running,
            waiting,
            used_blocks,
        };
        for (metrics, loads) in [
            ("", vec![]),
            (
                "# TYPE vllm:num_requests_running gauge\n\
                 vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\n\
                 vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 1.0\n\
                 vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n",
                vec![load(3, 1, Some(25))],
            ),
            (
                "vllm:num_requests_running{engine=\"1\"} 2.0\nvllm:num_requests_running{engine=\"0\"} 1.0",
                vec![load(1, 0, None), load(2, 0, None)],
            ),
            ("vllm:num_requests_running 4", vec![load(4, 0, None)]),
            // Reasons why requests wait, as later releases tell them, are not the requests again.
            (
                "vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 2.0",
                vec![],
            ),
            ("vllm:num_requests_running{engine=\"7\"} 4", vec![]),
            ("vllm:num_requests_running{engine=\"0\"} NaN", vec![]),
            ("vllm:num_requests_running{engine=\"0\"} -1", vec![]),
        ] {
            assert_eq!(parse(metrics, Some(100)), loads, "{metrics}");
        }
    }
}
