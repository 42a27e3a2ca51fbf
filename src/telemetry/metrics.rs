//! Every metric of the program, in one list.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::ledger::counts::Alarm;
use crate::telemetry::gpu_labels::{
    GpuLabels, GpuSeverityLabels, GpuSignalLabels, GpuVerdictLabels,
};
use crate::telemetry::labels::{
    AlarmLabels, BadRecord, BadRecordLabels, CanaryLabels, ContinuationLabels, EndpointLabels,
    KvEventLabels, LedgerLabels, MediaLabels, ModeLabels, ParityCheck, ParityLabels, PlaneLabels,
    QueueLabels, QueueRefusal, RequestLabels, TransferLabels, VerdictLabels,
};

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A histogram for each endpoint.
pub type EndpointHistograms = Family<EndpointLabels, Histogram, fn() -> Histogram>;

macro_rules! metrics {
    ($($field:ident: $type:ty = $make:expr, $name:literal, $help:literal;)+) => {
        /// Every metric of the program; a field's documentation is the metric's own.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $type,)+
        }

        /// Each metric's name and meaning, for the documentation.
        pub const LIST: &[(&str, &str)] = &[$((concat!("kvlens_", $name), $help)),+];

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("kvlens");
                $(
                    let $field: $type = $make;
                    // The registry ends the help text with a full stop of its own.
                    registry.register($name, $help.trim_end_matches('.'), $field.clone());
                )+
                let metrics = Self { registry, $($field,)+ };
                metrics.start_alarms();
                metrics
            }
        }
    };
}

metrics! {
    requests: Family<RequestLabels, Counter> = Family::default(),
        "requests", "Requests answered, by endpoint and HTTP status.";
    unauthorised: Counter = Counter::default(),
        "unauthorised", "Requests refused because they showed none of our keys.";
    request_duration: EndpointHistograms = Family::new_with_constructor(long_seconds),
        "request_duration_seconds", "Time from a request's last byte in to its answer's last byte out.";
    time_to_first_token: Histogram = short_seconds(),
        "time_to_first_token_seconds", "Time from a request's last byte in to its first token out.";
    inter_token_latency: Histogram = short_seconds(),
        "inter_token_latency_seconds", "Time between two pieces of an answer's stream.";
    in_flight_requests: Gauge = Gauge::default(),
        "in_flight_requests", "Requests being answered now.";
    prompt_tokens: Counter = Counter::default(),
        "prompt_tokens", "Tokens of all prompts, images expanded.";
    output_tokens: Counter = Counter::default(),
        "output_tokens", "Tokens of all answers, as the engines count them.";
    prompt_blocks: Counter = Counter::default(),
        "prompt_blocks", "Full blocks of all placed prompts.";
    overlap_blocks: Counter = Counter::default(),
        "overlap_blocks", "Blocks of placed prompts that the chosen worker held already.";
    overlap_predicted_tokens: Counter = Counter::default(),
        "overlap_predicted_tokens", "Prompt tokens that the router expected the engine to find in its cache.";
    overlap_cached_tokens: Counter = Counter::default(),
        "overlap_cached_tokens", "Prompt tokens that the engine says it found in its cache.";
    overlap_difference: Histogram = signed_tokens(),
        "overlap_difference_tokens", "Prompt tokens that the engine says it found in its cache beyond those predicted, by request; below 0 where it found fewer.";
    overlap_disproved_blocks: Family<LedgerLabels, Counter> = Family::default(),
        "overlap_disproved_blocks", "Blocks that the index said a worker held and its engine did not find, by whether its ledger was complete.";
    prompt_length_mismatch: Counter = Counter::default(),
        "prompt_length_mismatch", "Answers whose engine counts another number of prompt tokens than we do.";
    parity_failures: Family<ParityLabels, Counter> = Family::default(),
        "parity_failures", "Times that an engine was found to make other prompts than we do, by what showed it.";
    placements: Family<ModeLabels, Counter> = Family::default(),
        "placements", "Requests placed on a worker, by the way of choosing.";
    no_worker: Counter = Counter::default(),
        "no_worker", "Requests that no worker could take.";
    circuit_openings: Counter = Counter::default(),
        "circuit_openings", "Times that a worker was given no requests for a while because it had failed.";
    queue_depth: Gauge = Gauge::default(),
        "queue_depth", "Requests that wait for a worker to have room.";
    queue_tokens: Gauge = Gauge::default(),
        "queue_tokens", "Prompt tokens of the requests that wait.";
    queue_wait: Histogram = long_seconds(),
        "queue_wait_seconds", "Time that requests waited before they were placed; those placed at once are not counted.";
    queue_refusals: Family<QueueLabels, Counter> = Family::default(),
        "queue_refusals", "Requests that were not let into the queue or were sent away from it, by reason.";
    retries: Counter = Counter::default(),
        "retries", "Requests placed again because their engine failed before the first byte.";
    retries_refused: Counter = Counter::default(),
        "retries_refused", "Requests not placed again because no retry was left.";
    deadly_requests: Counter = Counter::default(),
        "deadly_requests", "Requests under which a second engine died, and which are refused for a while.";
    deadly_refused: Counter = Counter::default(),
        "deadly_refused", "Requests refused because engines have died of the same one.";
    stream_continuations: Family<ContinuationLabels, Counter> = Family::default(),
        "stream_continuations", "Streams that an engine broke off after their first byte, by whether another worker went on with them.";
    stream_failures: Counter = Counter::default(),
        "stream_failures", "Streams that ended with an error after their first byte.";
    unknown_fields: Counter = Counter::default(),
        "unknown_fields", "Fields of requests that nobody knows.";
    text_only: Counter = Counter::default(),
        "text_only", "Requests routed on their text before the first image, because an image's expansion is unknown or the engine's is another.";
    kv_events: Family<KvEventLabels, Counter> = Family::default(),
        "kv_events", "KV events read from engines, by kind.";
    kv_event_gaps: Counter = Counter::default(),
        "kv_event_gaps", "Times that events were found missing from an engine's sequence.";
    feed_breaks: Counter = Counter::default(),
        "feed_breaks", "Times that the feed of a known worker's agent broke off.";
    feed_gaps: Counter = Counter::default(),
        "feed_gaps", "Times that lines of an agent's feed were lost on their way, and its snapshot was asked for.";
    plane_up: Family<PlaneLabels, Gauge> = Family::default(),
        "plane_up", "Whether what connects hosts does what this process asks of it, 1 or 0; without an entry it asks nothing of it.";
    router_fallbacks: Counter = Counter::default(),
        "router_fallbacks", "Requests whose workers took turns because no router answered.";
    bad_messages: Counter = Counter::default(),
        "bad_messages", "Messages on the bus that cannot be read.";
    other_routers: Gauge = Gauge::default(),
        "other_routers", "Other routers whose bookings are known here.";
    ledger_alarms: Family<AlarmLabels, Counter> = Family::default(),
        "ledger_alarms", "What ledgers met that cannot be taken at face value, by kind.";
    approximate_workers: Gauge = Gauge::default(),
        "approximate_workers", "Workers whose caches are assumed from what they were sent, because their events do not tell.";
    partial_ledgers: Gauge = Gauge::default(),
        "partial_ledgers", "Workers whose blocks are not all known, so that more may be cached there than is expected.";
    index_blocks: Gauge = Gauge::default(),
        "index_blocks", "Blocks in the index, summed over workers and tiers.";
    index_bytes: Gauge = Gauge::default(),
        "index_bytes", "Memory that the index takes, at most router.index_bytes_max.";
    index_evicted_blocks: Counter = Counter::default(),
        "index_evicted_blocks", "Blocks of workers that the index gave up to make room for newer ones.";
    index_left_out_blocks: Counter = Counter::default(),
        "index_left_out_blocks", "Blocks that workers stored and the index had no room for.";
    bad_records: Family<BadRecordLabels, Counter> = Family::default(),
        "bad_records", "Records of workers read from etcd that cannot be used, by what is wrong with them.";
    membership_alarms: Counter = Counter::default(),
        "membership_alarms", "Times that more than half of the workers, and at least two, vanished from etcd within one lease, deregistered ones counted too; those that were not are kept.";
    taken_worker_ids: Counter = Counter::default(),
        "taken_worker_ids", "Times that an agent found the id of its worker taken by another agent.";
    workers: Family<VerdictLabels, Gauge> = Family::default(),
        "workers", "Workers known, by verdict.";
    engine_restarts: Counter = Counter::default(),
        "engine_restarts", "Times that an engine ended and was started again.";
    gpu_verdict: Family<GpuVerdictLabels, Gauge> = Family::default(),
        "gpu_verdict", "Whether a GPU's verdict is this one, 1 or 0.";
    gpu_incidents: Family<GpuSeverityLabels, Gauge> = Family::default(),
        "gpu_incidents", "What is wrong with a GPU now, by how much it matters.";
    gpu_incidents_opened: Family<GpuSignalLabels, Counter> = Family::default(),
        "gpu_incidents_opened", "Times that something was found wrong with a GPU, by signal.";
    gpu_xids: Family<GpuLabels, Counter> = Family::default(),
        "gpu_xids", "XIDs that the driver told of a GPU.";
    gpu_temperature: Family<GpuLabels, Gauge> = Family::default(),
        "gpu_temperature_celsius", "Temperature of a GPU.";
    gpu_memory_temperature: Family<GpuLabels, Gauge> = Family::default(),
        "gpu_memory_temperature_celsius", "Temperature of a GPU's memory.";
    gpu_power: Family<GpuLabels, Gauge<f64, AtomicU64>> = Family::default(),
        "gpu_power_watts", "Power that a GPU takes.";
    gpu_utilization: Family<GpuLabels, Gauge<f64, AtomicU64>> = Family::default(),
        "gpu_utilization_ratio", "Share of the time in which a GPU computed.";
    gpu_memory_used: Family<GpuLabels, Gauge> = Family::default(),
        "gpu_memory_used_bytes", "Memory of a GPU that is not free.";
    gpu_canaries: Family<CanaryLabels, Counter> = Family::default(),
        "gpu_canaries", "Tokens that engines were asked for to prove their GPUs well, by whether they came.";
    gpu_engine_restarts: Counter = Counter::default(),
        "gpu_engine_restarts", "Times that an engine was told to restart for its GPU's sake.";
    media: Family<MediaLabels, Counter> = Family::default(),
        "media_fetches", "Images asked for, by how they were come by.";
    media_cache_hits: Counter = Counter::default(),
        "media_cache_hits", "Image fetches answered \"not modified\", so that the bytes held serve again.";
    media_cache: Gauge = Gauge::default(),
        "media_cache_bytes", "Bytes of fetched images that are held.";
    media_transfers: Family<TransferLabels, Counter> = Family::default(),
        "media_transfers", "Images sent to engines, by the way they went, where media.transfer is not inline.";
    panics: Counter = Counter::default(),
        "panics", "Requests answered 500 because their code panicked.";
}

impl Metrics {
    /// Shows every alarm from the start: an alert on an increase would miss the first of a series
    /// that begins with it.
    fn start_alarms(&self) {
        for alarm in Alarm::ALL {
            drop(self.ledger_alarms.get_or_create(&AlarmLabels { alarm }));
        }
        for check in [ParityCheck::Registration, ParityCheck::Operation] {
            drop(self.parity_failures.get_or_create(&ParityLabels { check }));
        }
        use BadRecord::{Address, Key, NotARecord, OtherWorker, TooLarge, Version};
        for kind in [Key, TooLarge, NotARecord, Version, OtherWorker, Address] {
            drop(self.bad_records.get_or_create(&BadRecordLabels { kind }));
        }
        use QueueRefusal::{Expired, NoWorker, Requests, Tenant, Tokens};
        for reason in [Requests, Tokens, Tenant, Expired, NoWorker] {
            drop(self.queue_refusals.get_or_create(&QueueLabels { reason }));
        }
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail; should a metric's own encoding, what came before it is
        // still worth more than nothing.
        if let Err(error) = text::encode(&mut out, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        without_signed_sum(out)
    }
}

/// OpenMetrics allows no sum of a histogram with buckets below 0, for it would not only grow, and
/// strict readers refuse the whole page; the encoder writes one all the same.
fn without_signed_sum(mut page: String) -> String {
    const SUM: &str = "\nkvlens_overlap_difference_tokens_sum ";
    if let Some(at) = page.find(SUM) {
        let line = page[at + 1..].find('\n');
        let end = line.map_or(page.len(), |length| at + 1 + length);
        page.replace_range(at..end, "");
    }
    page
}

/// From 4,096 tokens too few to as many too many; 0 stands alone.
fn signed_tokens() -> Histogram {
    Histogram::new([
        -4096.0, -1024.0, -256.0, -64.0, -16.0, -1.0, 0.0, 16.0, 64.0, 256.0, 1024.0, 4096.0,
    ])
}

/// 1 ms to 16 s, for what a token waits for.
fn short_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// 5 ms to 11 minutes, for whole requests.
fn long_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 18))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::select::RouterMode;
    use crate::telemetry::labels::Endpoint;

    #[test]
    fn names_are_told_apart_and_say_their_unit() {
        let names: BTreeSet<_> = LIST.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), LIST.len());
        for (name, help) in LIST {
            assert!(help.ends_with('.') && help.len() > 15, "{name}: {help}");
            assert!(
                !name.ends_with("_total"),
                "{name}: counters get _total when written"
            );
        }
        let text = Metrics::default().encode();
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for (name, kind) in kinds.filter_map(|line| line.split_once(' ')) {
            assert!(names.contains(&name), "{name}");
            let is_histogram = kind == "histogram";
            assert!(is_histogram || !name.ends_with("_seconds"), "{name}");
            let units = ["_seconds", "_tokens"];
            let has_unit = units.iter().any(|unit| name.ends_with(unit));
            assert!(!is_histogram || has_unit, "{name}");
        }
        assert!(!text.contains(".."), "{text}");
    }

    #[test]
    fn counts_appear_under_their_labels() {
        let metrics = Metrics::default();
        let endpoint = Endpoint::ChatCompletions;
        let labels = RequestLabels {
            endpoint,
            status: 200,
        };
        metrics.requests.get_or_create(&labels).inc();
        let mode = RouterMode::RoundRobin;
        metrics.placements.get_or_create(&ModeLabels { mode }).inc();
        metrics
            .request_duration
            .get_or_create(&EndpointLabels { endpoint })
            .observe(0.2);
        metrics.overlap_blocks.inc_by(3);
        for tokens in [-32.0, 0.0, 0.0, 48.0] {
            metrics.overlap_difference.observe(tokens);
        }
        let text = metrics.encode();
        for line in [
            "kvlens_requests_total{endpoint=\"chat_completions\",status=\"200\"} 1",
            "kvlens_placements_total{mode=\"round-robin\"} 1",
            "kvlens_request_duration_seconds_count{endpoint=\"chat_completions\"} 1",
            "kvlens_overlap_blocks_total 3",
            "kvlens_parity_failures_total{check=\"registration\"} 0",
            "kvlens_queue_refusals_total{reason=\"expired\"} 0",
            "kvlens_overlap_difference_tokens_count 4",
            "kvlens_overlap_difference_tokens_bucket{le=\"-16.0\"} 1",
            "kvlens_overlap_difference_tokens_bucket{le=\"-1.0\"} 1",
            "kvlens_overlap_difference_tokens_bucket{le=\"0.0\"} 3",
            "kvlens_overlap_difference_tokens_bucket{le=\"16.0\"} 3",
            "kvlens_overlap_difference_tokens_bucket{le=\"+Inf\"} 4",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("difference_tokens_sum"), "{text}");
    }
}
