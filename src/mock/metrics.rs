//! The metrics of vLLM that a router reads, in Prometheus' text form.

use std::fmt::Write;

use ::http::StatusCode;

use crate::http::reply::Reply;
use crate::mock::rank::Figures;
use crate::mock::server::Server;

/// A name as exposed (counters end in `_total`), a kind and where the value comes from.
type Family = (&'static str, &'static str, fn(&Figures) -> f64);

const FAMILIES: [Family; 8] = [
    ("vllm:num_requests_running", "gauge", |f| f.running as f64),
    ("vllm:num_requests_waiting", "gauge", |f| f.waiting as f64),
    ("vllm:kv_cache_usage_perc", "gauge", |f| f.usage),
    ("vllm:prefix_cache_queries_total", "counter", |f| {
        f.totals.queried_tokens as f64
    }),
    ("vllm:prefix_cache_hits_total", "counter", |f| {
        f.totals.hit_tokens as f64
    }),
    ("vllm:prompt_tokens_total", "counter", |f| {
        f.totals.prompt_tokens as f64
    }),
    ("vllm:generation_tokens_total", "counter", |f| {
        f.totals.generated_tokens as f64
    }),
    ("vllm:num_preemptions_total", "counter", |f| {
        f.totals.preemptions as f64
    }),
];

/// Answers `/metrics`.
pub fn reply(server: &Server) -> Reply {
    Reply::text(StatusCode::OK, text(server))
}

fn text(server: &Server) -> String {
    let model = server.names.first().map_or("", String::as_str);
    let model = model.replace('\\', "\\\\").replace('"', "\\\"");
    let figures: Vec<_> = server.ranks.iter().map(|rank| rank.figures()).collect();
    let mut out = String::new();
    for (name, kind, value) in FAMILIES {
        line(&mut out, format_args!("# TYPE {name} {kind}"));
        for (rank, figures) in figures.iter().enumerate() {
            let labels = format_args!("engine=\"{rank}\",model_name=\"{model}\"");
            line(
                &mut out,
                format_args!("{name}{{{labels}}} {:?}", value(figures)),
            );
        }
    }
    images(server, &mut out, &model);
    cache_config(server, &mut out);
    out
}

fn images(server: &Server, out: &mut String, model: &str) {
    let (queries, hits) = server.images.queries_and_hits();
    for (what, value) in [("queries", queries), ("hits", hits)] {
        let name = format_args!("vllm:mm_cache_{what}_total");
        line(out, format_args!("# TYPE {name} counter"));
        let labels = format_args!("engine=\"0\",model_name=\"{model}\"");
        line(out, format_args!("{name}{{{labels}}} {value}.0"));
    }
}

fn cache_config(server: &Server, out: &mut String) {
    let (size, blocks) = (server.bounds.block_size, server.bounds.blocks);
    let tokens = size * (blocks as usize - 1);
    line(out, format_args!("# TYPE vllm:cache_config_info gauge"));
    for rank in 0..server.ranks.len() {
        let labels = format_args!(
            "block_size=\"{size}\",enable_prefix_caching=\"True\",engine=\"{rank}\",\
             kv_cache_size_tokens=\"{tokens}\",num_gpu_blocks=\"{blocks}\",\
             prefix_caching_hash_algo=\"sha256_cbor\""
        );
        line(out, format_args!("vllm:cache_config_info{{{labels}}} 1.0"));
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _ = writeln!(out, "{text}");
}
