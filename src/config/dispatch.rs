//! `[dispatch]`: how placed requests get to their workers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What carries requests to engines, and their answers back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[derive(clap::ValueEnum)]
pub enum RequestPlane {
    /// A connection to each engine, or to its gate.
    #[default]
    Http,
    /// NATS, over which an engine's gate is asked by its worker's name.
    Nats,
}

/// How placed requests get to their workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DispatchConfig {
    /// What carries requests: `http`, a connection to each engine or its gate, or `nats`, by which each
    /// engine's gate is asked; each engine then runs under `kvlens engine` with this key or `--nats`.
    /// Bodies over the servers' limit, and images with `media.transfer = "http"`, are fetched from
    /// `media.http_listen`.
    pub request_plane: RequestPlane,
}
