//! `[media]`: whether images are taken, their limits, and what may be fetched.

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
    /// How images go to engines: `inline`, or `shm` for engines on this host that have a folder for
    /// them.
    pub transfer: Transfer,
    /// Most bytes of images in such folders; an image over it goes inline.
    #[schemars(range(min = 1))]
    pub shm_bytes_max: usize,
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
        }
    }
}
