//! From an image part's URL to its bytes, digest and size.

use bytes::Bytes;

use crate::id::MediaDigest;
use crate::vision::ImageSize;

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

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    #[error("image is empty")]
    Empty,
}

impl MediaError {
    pub fn code(&self) -> &'static str {
        "invalid_image"
    }
}

/// Fetches, sizes and digests images, with a bounded cache.
#[derive(Debug)]
pub struct Media {}

impl Media {
    /// The image at `url`: a `data:` URI, or an `http(s)` URL under the fetch policy. `salt` is
    /// the tenant's, and part of the digest.
    ///
    /// # Errors
    /// When the URL is malformed or refused, the fetch fails, a limit is passed or the bytes are no image.
    pub async fn load(&self, _url: &str, _salt: &str) -> Result<Image, MediaError> {
        unimplemented!()
    }
}
