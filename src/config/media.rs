//! `[media]`: whether images are taken, their limits, and what may be fetched.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Images: whether they are taken, their limits, and what may be fetched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MediaConfig {
    /// Whether requests may carry images.
    pub enabled: bool,
    /// Largest image, encoded, in bytes.
    #[schemars(range(min = 1))]
    pub image_bytes_max: usize,
    /// Most pixels of an image.
    #[schemars(range(min = 1))]
    pub pixels_max: u64,
    /// Longest side of an image, in pixels.
    #[schemars(range(min = 1))]
    pub side_max: u32,
    /// Largest ratio of an image's long side to its short one.
    #[schemars(range(min = 1))]
    pub ratio_max: u32,
    /// Time to connect to an image's server, in seconds.
    #[schemars(range(min = 1))]
    pub connect_secs: u64,
    /// Time to the first byte of an image's body, in seconds.
    #[schemars(range(min = 1))]
    pub first_byte_secs: u64,
    /// Time for a whole fetch, redirects included, in seconds.
    #[schemars(range(min = 1))]
    pub total_secs: u64,
    /// Most redirects followed in one fetch.
    #[schemars(range(max = 20))]
    pub redirects_max: usize,
    /// Ports that may be fetched from.
    pub ports: Vec<u16>,
    /// Hosts and networks that may be fetched from although they are not public.
    pub allow: Vec<String>,
    /// Largest sum of image bytes kept for reuse, in bytes.
    pub cache_bytes_max: usize,
    /// Most fetches at once; one more waits.
    #[schemars(range(min = 1))]
    pub fetches_max: usize,
}

impl Default for MediaConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            image_bytes_max: 20 << 20,
            pixels_max: 178_956_970,
            side_max: 32_768,
            ratio_max: 200,
            connect_secs: 3,
            first_byte_secs: 5,
            total_secs: 10,
            redirects_max: 3,
            ports: vec![80, 443],
            allow: Vec::new(),
            cache_bytes_max: 256 << 20,
            fetches_max: 64,
        }
    }
}

impl MediaConfig {
    /// Time to connect to an image's server.
    pub fn connect(&self) -> Duration {
        Duration::from_secs(self.connect_secs)
    }

    /// Time to the first byte of an image's body.
    pub fn first_byte(&self) -> Duration {
        Duration::from_secs(self.first_byte_secs)
    }

    /// Time for a whole fetch.
    pub fn total(&self) -> Duration {
        Duration::from_secs(self.total_secs)
    }
}
