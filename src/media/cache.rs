//! Fetched images, kept while their servers say that they have not changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::id::MediaDigest;
use crate::media::lru::Lru;
use crate::media::{CacheCounts, Image, UrlKey};

/// What to ask a server with, to hear whether an image has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Validator {
    Etag(String),
    LastModified(String),
}

/// How a fetch that can be repeated ended: where, and with which validator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The URL after all redirects: a validator means nothing anywhere else.
    pub(crate) url: String,
    pub(crate) validator: Validator,
}

/// Longest validator and final URL kept, so that [`PAGES_MAX`] bounds bytes as well.
pub(crate) const PAGE_TEXT_BYTES_MAX: usize = 2048;

/// Most URLs remembered. With images of 64 KiB that is four times the default cache.
const PAGES_MAX: usize = 16_384;

/// Images by digest, and by URL what to ask whether they have changed; the least recently used go
/// first.
#[derive(Debug)]
pub(crate) struct Cache {
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    pages: Lru<UrlKey, (Page, MediaDigest)>,
    images: Lru<MediaDigest, Image>,
    hits: u64,
    misses: u64,
}

impl Cache {
    /// A cache of at most `bytes_max` bytes of images.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            held: Mutex::new(Held {
                pages: Lru::new(PAGES_MAX),
                images: Lru::new(bytes_max),
                hits: 0,
                misses: 0,
            }),
        }
    }

    /// How the last fetch of `key` ended and the image it brought, when both are still held.
    pub(crate) fn page(&self, key: UrlKey) -> Option<(Page, Image)> {
        let mut held = self.lock();
        let (page, digest) = held.pages.get(&key)?.clone();
        let image = held.images.get(&digest)?.clone();
        Some((page, image))
    }

    /// Keeps `image`, which `page` brought for `key`.
    pub(crate) fn insert(&self, key: UrlKey, page: Page, image: &Image) {
        let mut held = self.lock();
        held.pages.insert(key, (page, image.digest), 1);
        let weight = image.bytes.len();
        held.images.insert(image.digest, image.clone(), weight);
    }

    pub(crate) fn count_hit(&self) {
        self.lock().hits += 1;
    }

    pub(crate) fn count_miss(&self) {
        self.lock().misses += 1;
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        let held = self.lock();
        CacheCounts {
            hits: held.hits,
            misses: held.misses,
            bytes: held.images.weight(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // A cache that a panic left behind is at worst short of an entry.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn image(name: u8, length: usize) -> Image {
        Image {
            digest: MediaDigest([name; 32]),
            size: None,
            bytes: Bytes::from(vec![name; length]),
            mime: "image/png",
        }
    }

    fn page(name: u8) -> Page {
        Page {
            url: format!("http://a/{name}"),
            validator: Validator::Etag(name.to_string()),
        }
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let cache = Cache::new(10);
        let key = |name| UrlKey([name; 32]);
        for name in [1, 2] {
            cache.insert(key(name), page(name), &image(name, 4));
        }
        assert_eq!(cache.page(key(1)).unwrap().0, page(1));
        cache.insert(key(3), page(3), &image(3, 4));
        let held = |name| cache.page(key(name)).is_some();
        assert_eq!([1, 2, 3].map(held), [true, false, true]);
        assert_eq!(cache.counts().bytes, 8);

        cache.insert(key(4), page(4), &image(4, 11));
        assert_eq!([1, 3, 4].map(held), [true, true, false]);
        cache.insert(key(5), page(5), &image(5, 10));
        assert_eq!([1, 3, 5].map(held), [false, false, true]);
        cache.insert(key(5), page(5), &image(5, 3));
        assert_eq!(cache.counts().bytes, 3);
    }

    #[test]
    fn a_url_that_now_shows_another_image_forgets_the_first() {
        let cache = Cache::new(100);
        let key = UrlKey([0; 32]);
        cache.insert(key, page(1), &image(1, 4));
        cache.insert(key, page(2), &image(2, 5));
        let (held, shown) = cache.page(key).unwrap();
        assert_eq!((held, shown.digest), (page(2), image(2, 5).digest));
    }
}
