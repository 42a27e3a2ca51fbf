//! What metrics are told apart by: sets of few, fixed values, never a URL or a client's text.

use std::fmt::Write;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::health::Verdict;
use crate::ledger::counts::Alarm;
use crate::select::RouterMode;

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
                encoder.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }
    };
}

label! {
    /// What a request asked for.
    Endpoint {
        ChatCompletions = "chat_completions",
        Completions = "completions",
        Embeddings = "embeddings",
        Models = "models",
    }
}

label! {
    /// What an engine said of its cache.
    KvEventKind {
        Stored = "stored",
        Removed = "removed",
        Cleared = "cleared",
    }
}

label! {
    /// How an image was come by, or why not.
    MediaOutcome {
        /// It came inside the request.
        Inline = "inline",
        Fetched = "fetched",
        /// The fetch policy or a limit forbids it.
        Refused = "refused",
        /// Its server failed or was too slow.
        Failed = "failed",
    }
}

label! {
    /// What connects hosts.
    Plane {
        Etcd = "etcd",
        Nats = "nats",
    }
}

label! {
    /// What showed that an engine's prompts are not ours.
    ParityCheck {
        /// The prompts it was asked for when it came up.
        Registration = "registration",
        /// The blocks it stores.
        Operation = "operation",
    }
}

label! {
    /// How an image went to an engine.
    Transfer {
        /// Inside the request: nothing else is asked for, or nothing else goes to the worker.
        Inline = "inline",
        Shm = "shm",
        /// Inside the request, because files in use left no room.
        ShmFull = "shm_full",
        /// Inside the request, because the folder cannot be used.
        ShmUnusable = "shm_unusable",
        /// Inside the request once again, because the engine could not read the file.
        ShmUnread = "shm_unread",
        /// Fetched by the engine.
        Http = "http",
        /// Inside the request, because images in flight left no room.
        HttpFull = "http_full",
        /// Inside the request once again, because the engine could not fetch it.
        HttpUnread = "http_unread",
    }
}

label! {
    /// What became of a stream that its engine broke off.
    Continuation {
        /// Another worker went on with it.
        Continued = "continued",
        /// All of it had come but its end.
        Ended = "ended",
        /// The request, or the configuration, does not allow it.
        NotAllowed = "not_allowed",
        /// The prompt with the answer so far cannot be made to the token.
        Inexact = "inexact",
        /// No other worker took it.
        NoWorker = "no_worker",
    }
}

label! {
    /// Whether an engine gave the token that it was asked for.
    Canary {
        Passed = "passed",
        Failed = "failed",
    }
}

label! {
    /// Whether a ledger names all that its engine holds.
    Ledger {
        Complete = "complete",
        Partial = "partial",
    }
}

label! {
    /// Why a request was not let into the queue, or sent away from it.
    QueueRefusal {
        /// As many requests wait as may.
        Requests = "requests",
        /// As many prompt tokens wait as may.
        Tokens = "tokens",
        /// As much of its tenant waits as may while others could need what is free.
        Tenant = "tenant",
        /// It waited as long as one may.
        Expired = "expired",
        /// The workers it waited for can take no request any more.
        NoWorker = "no_worker",
    }
}

label! {
    /// Why a worker's record cannot be used.
    BadRecord {
        /// Its key names no worker.
        Key = "key",
        TooLarge = "too_large",
        /// It is no JSON, or another value than a record.
        NotARecord = "not_a_record",
        /// It is of a version that we cannot read.
        Version = "version",
        /// It is of another worker than its key.
        OtherWorker = "other_worker",
        /// An address in it is none.
        Address = "address",
    }
}

impl EncodeLabelValue for RouterMode {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Kv => "kv",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::PowerOfTwo => "power-of-two",
            Self::LeastLoaded => "least-loaded",
            Self::DeviceAwareWeighted => "device-aware-weighted",
            Self::Direct => "direct",
        })
    }
}

impl EncodeLabelValue for Verdict {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Unknown => "unknown",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Failed => "failed",
        })
    }
}

impl EncodeLabelValue for Alarm {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Unhashable => "unhashable",
            Self::UnknownParent => "unknown_parent",
            Self::WaitingDropped => "waiting_dropped",
            Self::BadShape => "bad_shape",
            Self::OtherTier => "other_tier",
            Self::UnnamedLower => "unnamed_lower",
            Self::LowerFull => "lower_full",
            Self::RemovedUnknown => "removed_unknown",
            Self::Twin => "twin",
            Self::Renamed => "renamed",
            Self::OverCapacity => "over_capacity",
            Self::BlockSizeChanged => "block_size_changed",
            Self::Unreadable => "unreadable",
        })
    }
}

/// What a ledger met.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AlarmLabels {
    pub alarm: Alarm,
}

/// A finished request: what it asked for and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub endpoint: Endpoint,
    /// The HTTP status; the program sends some twenty of them.
    pub status: u32,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndpointLabels {
    pub endpoint: Endpoint,
}

/// A way of choosing a worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModeLabels {
    pub mode: RouterMode,
}

/// A kind of KV event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KvEventLabels {
    pub kind: KvEventKind,
}

/// A verdict on workers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerdictLabels {
    pub verdict: Verdict,
}

/// What connects hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PlaneLabels {
    pub plane: Plane,
}

/// What showed a difference in prompts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ParityLabels {
    pub check: ParityCheck,
}

/// How an image was come by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MediaLabels {
    pub outcome: MediaOutcome,
}

/// How an image went to an engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransferLabels {
    pub way: Transfer,
}

/// What became of a stream that its engine broke off.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ContinuationLabels {
    pub outcome: Continuation,
}

/// Whether an engine gave the token that it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CanaryLabels {
    pub outcome: Canary,
}

/// What a worker's ledger is worth.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LedgerLabels {
    pub ledger: Ledger,
}

/// What became of a request that was to wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabels {
    pub reason: QueueRefusal,
}

/// Why a worker's record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BadRecordLabels {
    pub kind: BadRecord,
}
