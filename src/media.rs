//! From an image part's URL to its bytes, digest and size.
//!
//! A `data:` URI carries its bytes; an `http(s)` URL is fetched, or revalidated when its bytes are
//! still held, once per request. What is hashed here is what the engine gets: it never sees a URL.

mod address;
mod cache;
mod data_uri;
mod fetch;
mod flight;
mod gate;
mod lru;
mod probe;
pub mod shm;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use url::Url;

use crate::config::media::{MediaConfig, Transfer};
use crate::id::MediaDigest;
use crate::media::cache::Cache;
use crate::media::fetch::{Fetcher, Outcome};
use crate::media::flight::Flights;
use crate::media::shm::Shm;
use crate::vision::ImageSize;

/// Why a policy cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("media.allow entry {entry:?} is no name, *.suffix, address or network")]
    AllowEntry { entry: String },
    #[error("media.{key} = {secs} is no number of seconds above 0")]
    Seconds { key: &'static str, secs: f64 },
    #[error("media.fetches_max = {fetches} is not 1 to {max}")]
    Fetches { fetches: usize, max: usize },
    #[error("http client for images has no TLS version")]
    Tls(#[from] rustls::Error),
    #[error("http client for images could not be made")]
    Client(#[from] reqwest::Error),
}

/// Why an image cannot be used. Every text may be shown to a client: none tells what a name
/// resolved to or what an answer said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    #[error("image URL is malformed")]
    MalformedUrl,
    #[error("image URL of {bytes} bytes is over {max}")]
    UrlTooLong { bytes: usize, max: usize },
    #[error("data URI is not of the form data:[type];base64,[data]")]
    MalformedDataUri,
    #[error("image URL's scheme is none of https, http and data")]
    SchemeNotAllowed,
    #[error("image URL carries a user or password")]
    UserNotAllowed,
    #[error(
        "image URL's port {port} may not be asked; the server's media.ports or media.allow would have to list it"
    )]
    PortNotAllowed { port: u16 },
    #[error("image URL's host may not be asked; the server's media.allow would have to list it")]
    HostNotAllowed,
    #[error("image URL redirects from https to http")]
    Downgrade,
    #[error("image URL redirects more than {max} times")]
    TooManyRedirects { max: usize },
    #[error("image URL redirects to no URL")]
    BadRedirect,
    #[error("image URL's host could not be reached")]
    Unreachable,
    #[error("image URL was answered with status {status}")]
    Status { status: u16 },
    #[error("image was sent with a content-encoding")]
    Encoded,
    #[error("image broke off after {read_bytes} bytes")]
    BrokenOff { read_bytes: usize },
    #[error("image did not arrive within {waited:?}")]
    TimedOut { waited: Duration },
    #[error("image is over {max} bytes")]
    TooManyBytes { max: usize },
    #[error("image of {width}x{height} pixels has over {max} pixels")]
    TooManyPixels { width: u32, height: u32, max: u64 },
    #[error("image of {width}x{height} pixels has a side over {max}")]
    SideTooLong { width: u32, height: u32, max: u32 },
    #[error("image of {width}x{height} pixels has a side over {max} times the other")]
    RatioTooLarge { width: u32, height: u32, max: u32 },
    #[error("image is empty")]
    Empty,
    #[error("image of {width}x{height} pixels shows nothing")]
    NoPixels { width: u32, height: u32 },
    #[error("image is not valid base64")]
    MalformedBase64,
    #[error("image is of no known format")]
    UnknownFormat,
    #[error("image is {format}; supported are PNG, JPEG, WebP, GIF and BMP")]
    UnsupportedFormat { format: &'static str },
    #[error("data URI's type is neither image/* nor application/octet-stream")]
    DeclaredType,
}

impl MediaError {
    /// Whether the image's server is at fault, and not its URL.
    pub fn is_fetch_failure(&self) -> bool {
        self.code() == "image_fetch_failed"
    }

    /// The machine-readable kind, for the `code` of an error answer.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedUrl | Self::UrlTooLong { .. } | Self::MalformedDataUri => "invalid_url",
            Self::SchemeNotAllowed
            | Self::UserNotAllowed
            | Self::PortNotAllowed { .. }
            | Self::HostNotAllowed
            | Self::Downgrade => "url_not_allowed",
            Self::TooManyRedirects { .. }
            | Self::BadRedirect
            | Self::Unreachable
            | Self::Status { .. }
            | Self::Encoded
            | Self::BrokenOff { .. }
            | Self::TimedOut { .. } => "image_fetch_failed",
            Self::TooManyBytes { .. }
            | Self::TooManyPixels { .. }
            | Self::SideTooLong { .. }
            | Self::RatioTooLarge { .. } => "image_too_large",
            Self::Empty | Self::NoPixels { .. } | Self::MalformedBase64 | Self::UnknownFormat => {
                "invalid_image"
            }
            Self::UnsupportedFormat { .. } | Self::DeclaredType => "unsupported_image",
        }
    }
}

/// An image that a request carries, ready to be expanded and dispatched.
#[derive(Clone, Debug)]
pub struct Image {
    pub digest: MediaDigest,
    /// `None` when the format is known but its header does not give a size.
    pub size: Option<ImageSize>,
    pub bytes: Bytes,
    /// The MIME type that the bytes' first bytes show, as `image/png`.
    pub mime: &'static str,
}

/// The identity of the encoded `bytes` for the tenant with `salt`. Two tenants never share one, so
/// that no tenant can learn what another one sent.
pub fn digest(salt: &str, bytes: &[u8]) -> MediaDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"kvlens/media/1");
    update_with_field(&mut hasher, salt);
    hasher.update(bytes);
    MediaDigest(hasher.finalize().into())
}

/// Length first, so that no two sequences of fields give the same bytes.
fn update_with_field(hasher: &mut blake3::Hasher, field: &str) {
    // A salt is tens of bytes; one of 4 GiB would not have been read.
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    hasher.update(&length.to_le_bytes());
    hasher.update(field.as_bytes());
}

/// Resolves a host name to addresses. Called once for every connection made.
pub type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

/// What the cache of fetched images did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Fetches answered "not modified", so that no image was sent.
    pub hits: u64,
    /// Fetches that brought an image.
    pub misses: u64,
    /// Bytes of images held now.
    pub bytes: usize,
}

/// Longest `http(s)` URL; servers refuse longer ones too.
const URL_BYTES_MAX: usize = 8 << 10;

/// Fetches, sizes and digests images, with a bounded cache.
#[derive(Clone, Debug)]
pub struct Media {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    policy: MediaConfig,
    fetcher: Fetcher,
    cache: Cache,
    flights: Arc<Flights>,
    shm: Option<Shm>,
}

impl Media {
    /// Images under `policy`, with names resolved as the host does.
    ///
    /// # Errors
    /// When the policy cannot be followed: an allow entry or a number makes no sense.
    pub fn new(policy: MediaConfig) -> Result<Self, PolicyError> {
        Self::with_lookup(policy, fetch::system_lookup())
    }

    /// Images under `policy`, with names resolved by `lookup`. What it answers is checked like any
    /// other resolver's answer.
    ///
    /// # Errors
    /// When the policy cannot be followed: an allow entry or a number makes no sense.
    pub fn with_lookup(policy: MediaConfig, lookup: Lookup) -> Result<Self, PolicyError> {
        let shared = Shared {
            fetcher: Fetcher::new(&policy, lookup)?,
            cache: Cache::new(policy.cache_bytes_max),
            flights: Arc::default(),
            shm: match policy.transfer {
                Transfer::Shm => Some(Shm::new(policy.shm_bytes_max)),
                Transfer::Inline | Transfer::Http => None,
            },
            policy,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The image at `url`: a `data:` URI, or an `http(s)` URL under the fetch policy. `salt` is
    /// the tenant's, and part of the digest.
    ///
    /// # Errors
    /// When the URL is malformed or refused, the fetch fails, a limit is passed or the bytes are no image.
    pub async fn load(&self, url: &str, salt: &str) -> Result<Image, MediaError> {
        if let Some(rest) = data_uri::strip_scheme(url) {
            // Inline images stay out of the cache: their bytes are here and hashed already, so it
            // would save nothing but a probe, and they would push out what was fetched.
            let bytes = data_uri::decode(rest, self.shared.policy.image_bytes_max)?;
            return self.shared.image(bytes, salt);
        }
        if url.len() > URL_BYTES_MAX {
            let (bytes, max) = (url.len(), URL_BYTES_MAX);
            return Err(MediaError::UrlTooLong { bytes, max });
        }
        let mut url = Url::parse(url).map_err(|_| MediaError::MalformedUrl)?;
        url.set_fragment(None);
        self.shared.fetcher.check(&url)?;
        let key = UrlKey::of(&url, salt);
        let (shared, salt) = (Arc::clone(&self.shared), salt.to_owned());
        self.shared
            .flights
            .join(key, move || async move { shared.fetch(url, &salt).await })
            .await
    }

    /// The images that lie in folders of engines; `None` where all go inside requests.
    pub fn shm(&self) -> Option<&Shm> {
        self.shared.shm.as_ref()
    }

    /// What the cache did and holds.
    pub fn cache_counts(&self) -> CacheCounts {
        self.shared.cache.counts()
    }
}

impl Shared {
    async fn fetch(&self, url: Url, salt: &str) -> Result<Image, MediaError> {
        let key = UrlKey::of(&url, salt);
        let held = self.cache.page(key);
        let known = held.as_ref().map(|(page, _)| page);
        match (self.fetcher.fetch(url, known).await?, held) {
            (Outcome::NotModified, Some((_, image))) => {
                self.cache.count_hit();
                Ok(image)
            }
            // Only an answer to a question with a validator is taken as "not modified".
            (Outcome::NotModified, None) => Err(MediaError::Status { status: 304 }),
            (Outcome::Sent { bytes, page }, _) => {
                let image = self.image(bytes, salt)?;
                self.cache.count_miss();
                if let Some(page) = page {
                    self.cache.insert(key, page, &image);
                }
                Ok(image)
            }
        }
    }

    fn image(&self, bytes: Bytes, salt: &str) -> Result<Image, MediaError> {
        // The header is judged first: it costs less than the digest.
        let (format, size) = probe::probe(&bytes)?;
        if let Some(size) = size {
            probe::check_size(size, &self.policy)?;
        }
        Ok(Image {
            digest: digest(salt, &bytes),
            size,
            bytes,
            mime: format.mime(),
        })
    }
}

/// A URL as one tenant asks it. Tenants never share a fetch or a cached answer, so that neither
/// its time nor its content tells one what another asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct UrlKey([u8; 32]);

impl UrlKey {
    fn of(url: &Url, salt: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        update_with_field(&mut hasher, salt);
        update_with_field(&mut hasher, url.as_str());
        Self(hasher.finalize().into())
    }
}
