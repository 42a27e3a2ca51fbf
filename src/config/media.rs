//! `[media]`: whether images are taken, their limits, and what may be fetched.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an image goes to an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// Inside the request, as a data URI.
    #[default]
    Inline,
    /// As a file in a folder in memory, for engines on this host whose records name one; inside the
    /// request for others.
    Shm,
    /// Fetched by the engine from the frontend's private listener, `http_listen`: for engines on other
    /// hosts.
    Http,
}

/// Images: whether they are taken, their limits, and what may be fetched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MediaConfig {
    /// Whether requests may carry images.
    pub enabled: bool,
    /// Largest image in bytes, encoded, inline or fetched.
    #[schemars(range(min = 1))]
    pub image_bytes_max: usize,
    /// Most pixels of an image; engines refuse more as a decompression bomb.
    #[schemars(range(min = 1))]
    pub pixels_max: u64,
    /// Longest side of an image, in pixels.
    #[schemars(range(min = 1))]
    pub side_max: u32,
    /// Largest ratio of an image's long side to its short one.
    #[schemars(range(min = 1))]
    pub ratio_max: u32,
    /// Time to resolve a host, connect and greet, in seconds.
    #[schemars(range(min = 0.001))]
    pub connect_secs: f64,
    /// Time from asking, connecting included, to the head of an answer, in seconds; each redirect
    /// starts anew.
    #[schemars(range(min = 0.001))]
    pub first_byte_secs: f64,
    /// Time for a whole image, waiting for a turn and redirects included, in seconds.
    #[schemars(range(min = 0.001))]
    pub total_secs: f64,
    /// Most redirects followed; each is checked as the first URL was.
    #[schemars(range(max = 20))]
    pub redirects_max: usize,
    /// Ports that may be asked on hosts that `allow` does not name with a port.
    pub ports: Vec<u16>,
    /// Hosts that may be asked though they are not public: a name, `*.suffix`, an address, each with
    /// `:port` or without, or a network as `10.0.0.0/8`. A listed host is reached at its listed
    /// ports only, and where its name leads is not checked.
    pub allow: Vec<String>,
    /// Bytes of fetched images that are kept for the next request.
    pub cache_bytes_max: usize,
    /// Most fetches at once; one more waits, within its `total_secs`. Each holds up to
    /// `image_bytes_max` bytes.
    #[schemars(range(min = 1))]
    pub fetches_max: usize,
    /// How images go to engines: `inline`, `shm` for engines on this host that have a folder for them,
    /// or `http` for engines that fetch them from `http_listen`.
    pub transfer: Transfer,
    /// Most bytes of images in such folders; an image over it goes inline.
    #[schemars(range(min = 1))]
    pub shm_bytes_max: usize,
    /// Address and port of the private listener from which engines fetch images, each under a random
    /// token that is good while its request is in flight; port 0 takes a free one.
    pub http_listen: Option<SocketAddr>,
    /// Where engines reach that listener, as `http://10.0.0.5:8002`, or with `{port}` for the port
    /// that it has; unset, as `http_listen` says. vLLM's `--allowed-media-domains` must name the host.
    pub http_url: Option<String>,
    /// Most bytes that engines may fetch at once: images, where one over it goes inline, and with
    /// `dispatch.request_plane = "nats"` bodies over the servers' limit, where one over it is refused.
    #[schemars(range(min = 1))]
    pub http_bytes_max: usize,
}

impl MediaConfig {
    /// Values that are each legal but cannot hold together.
    pub(crate) fn contradictions(&self) -> [(bool, &'static str); 5] {
        [
            (
                self.image_bytes_max > self.cache_bytes_max,
                "media.image_bytes_max is above media.cache_bytes_max: the largest image would not fit",
            ),
            (
                self.connect_secs > self.total_secs || self.first_byte_secs > self.total_secs,
                "media.connect_secs or media.first_byte_secs is above media.total_secs",
            ),
            (
                self.transfer == Transfer::Http && self.http_listen.is_none(),
                "media.transfer is http and media.http_listen is unset: engines could fetch nothing",
            ),
            (
                self.http_url.is_none()
                    && self
                        .http_listen
                        .is_some_and(|address| address.ip().is_unspecified()),
                "media.http_listen is every address of this host and media.http_url is unset: engines \
                 would not know where to fetch",
            ),
            (
                self.http_url.as_deref().is_some_and(|url| !is_origin(url)),
                "media.http_url is not http://HOST:PORT, where PORT may be {port}",
            ),
        ]
    }

    /// Where engines reach the private listener that was bound to `bound`, as `http://10.0.0.5:8002`.
    pub fn http_origin(&self, bound: SocketAddr) -> String {
        match &self.http_url {
            Some(url) => url
                .trim_end_matches('/')
                .replace(PORT, &bound.port().to_string()),
            None => format!("http://{bound}"),
        }
    }
}

/// Stands for the port of the private listener.
const PORT: &str = "{port}";

/// Whether a URL is a scheme, a host and perhaps a port, and nothing else.
fn is_origin(url: &str) -> bool {
    let url = url.trim_end_matches('/').replace(PORT, "1");
    let authority = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    authority.is_some_and(|authority| {
        let parsed = authority.parse::<::http::uri::Authority>();
        parsed.is_ok_and(|parsed| !parsed.host().is_empty() && !authority.contains('@'))
    })
}

impl Default for MediaConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            image_bytes_max: 20 << 20,
            pixels_max: 178_956_970,
            side_max: 32_768,
            ratio_max: 200,
            connect_secs: 3.0,
            first_byte_secs: 5.0,
            total_secs: 10.0,
            redirects_max: 3,
            ports: vec![80, 443],
            allow: Vec::new(),
            cache_bytes_max: 256 << 20,
            fetches_max: 64,
            transfer: Transfer::Inline,
            shm_bytes_max: 1 << 30,
            http_listen: None,
            http_url: None,
            http_bytes_max: 1 << 30,
        }
    }
}
