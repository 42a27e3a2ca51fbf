//! `[frontend]`: the listeners and the limits of what clients may send.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::retries::RetriesConfig;

/// A load balancer that asks `/ready` every second or two has noticed by then.
const SETTLE_SECS: u64 = 5;

/// Who chooses a frontend's workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[derive(clap::ValueEnum)]
pub enum RouterPlace {
    /// A router in the frontend's own process.
    #[default]
    Embedded,
    /// Routers in processes of their own, asked over NATS.
    Remote,
}

/// The listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FrontendConfig {
    /// Address that the public listener binds.
    pub host: IpAddr,
    /// Port of the public listener; 0 takes a free one.
    pub port: u16,
    /// Address that the admin listener (metrics, explain, workers) binds.
    pub admin_host: IpAddr,
    /// Port of the admin listener; 0 takes a free one, unset takes the one after the public port.
    pub admin_port: Option<u16>,
    /// File of the keys that requests must show, one `name:key` or `name:sha256:HASH` a line; a key's
    /// name is the tenant. Read again on SIGHUP. Unset, everybody may ask.
    pub key_file: Option<PathBuf>,
    /// Whether another process of the same user may listen on the same two ports: a new frontend, once
    /// it has workers, then takes over from one that still runs and is stopped after. Both must have it;
    /// without it a taken port is refused. Who connects in the very moment in which the old one closes
    /// is reset, unless the system's `net.ipv4.tcp_migrate_req` is 1.
    pub hand_over: bool,
    /// Time after a stop signal for which clients and load balancers are sent elsewhere while all are
    /// still answered, in seconds: `/ready` answers 503, and each answer closes its connection. Unset,
    /// 5, but at most half of `drain_secs`; with `up`, 0 unless `hand_over` is on.
    #[schemars(range(max = 3600))]
    pub settle_secs: Option<u64>,
    /// Time after that for requests in flight to finish, in seconds.
    #[schemars(range(max = 3600))]
    pub drain_secs: u64,
    /// Whether answers carry the headers that say which worker was chosen, and why.
    pub expose_routing: bool,
    /// Who chooses workers: a router inside this process, or routers elsewhere, asked over NATS.
    pub router: RouterPlace,
    /// Whether a stream whose engine dies is continued on another worker, where the request allows it.
    pub continue_streams: bool,
    /// How many requests may be placed again.
    pub retries: RetriesConfig,
    /// Limits of what clients may send and of what is held at once.
    pub limits: LimitsConfig,
}

impl Default for FrontendConfig {
    fn default() -> Self {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            host: loopback,
            port: 8000,
            admin_host: loopback,
            admin_port: None,
            key_file: None,
            hand_over: false,
            settle_secs: None,
            drain_secs: 30,
            expose_routing: false,
            router: RouterPlace::default(),
            continue_streams: true,
            retries: RetriesConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl FrontendConfig {
    /// Where the public listener binds.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// The admin listener's port; `None` when it is unset and no port follows the public one. A
    /// free public port (0) has a free admin port.
    pub fn admin_port(&self) -> Option<u16> {
        match (self.admin_port, self.port) {
            (Some(port), _) => Some(port),
            (None, 0) => Some(0),
            (None, port) => port.checked_add(1),
        }
    }

    /// Time after a stop signal for which all are still answered, where nothing is said otherwise.
    pub fn settle(&self) -> Duration {
        let secs = self
            .settle_secs
            .unwrap_or(SETTLE_SECS.min(self.drain_secs / 2));
        Duration::from_secs(secs)
    }

    /// Time for requests in flight to finish, once no others are taken.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_secs)
    }

    /// Where the admin listener binds.
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::new(self.admin_host, self.admin_port().unwrap_or(0))
    }
}

/// Limits of what clients may send, and of what is held at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Largest request body, in bytes; a larger one is answered 413.
    #[schemars(range(min = 1))]
    pub body_bytes_max: usize,
    /// Largest sum of request bodies held at once, in bytes; over it a request is answered 503.
    #[schemars(range(min = 1))]
    pub bodies_in_flight_bytes_max: usize,
    /// Largest sum of a request's headers, in bytes; over it 431.
    #[schemars(range(min = 8192))]
    pub header_bytes_max: usize,
    /// Time for a client to send its headers, in seconds.
    #[schemars(range(min = 1))]
    pub header_read_secs: u64,
    /// Time for a client to send its body, in seconds.
    #[schemars(range(min = 1))]
    pub body_read_secs: u64,
    /// Most connections open at once on a listener.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub connections_max: usize,
    /// Most images in one request.
    pub images_max: usize,
    /// Most messages in one request.
    #[schemars(range(min = 1))]
    pub messages_max: usize,
    /// Longest event of an engine's stream, in bytes; a longer one ends the stream with an error.
    #[schemars(range(min = 1024))]
    pub sse_event_bytes_max: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 << 20,
            bodies_in_flight_bytes_max: 512 << 20,
            header_bytes_max: 64 << 10,
            header_read_secs: 10,
            body_read_secs: 60,
            connections_max: 16_384,
            images_max: 16,
            messages_max: 4096,
            sse_event_bytes_max: 1 << 20,
        }
    }
}

impl LimitsConfig {
    /// Time for a client to send its headers.
    pub fn header_read(&self) -> Duration {
        Duration::from_secs(self.header_read_secs)
    }

    /// Time for a client to send its body.
    pub fn body_read(&self) -> Duration {
        Duration::from_secs(self.body_read_secs)
    }
}
