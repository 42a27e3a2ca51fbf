//! How a placed request's images go to its worker: by files or by our private listener where both
//! sides can, else inside it.

use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::{JoinError, spawn_blocking};
use tracing::debug;

use crate::dispatch::request::EngineBody;
use crate::frontend::Frontend;
use crate::frontend::lending::Lending;
use crate::http::lent::{self, LendError};
use crate::media::Image;
use crate::media::shm::{self, Shm, ShmError};
use crate::router::Placement;
use crate::telemetry::labels::{Transfer, TransferLabels};
use crate::telemetry::metrics::Metrics;

/// A body as one worker gets it, and the images that it names: they are to stay until the request
/// has ended there.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    pub(crate) body: Bytes,
    pub(crate) named: Vec<Lent>,
    way: Way,
}

/// How images go to one worker.
#[derive(Clone, Debug, Default)]
enum Way {
    #[default]
    Inline,
    /// By files in a folder.
    Folder(Shm, Arc<str>),
    /// Fetched from us.
    Http(Arc<Lending>),
}

/// An image that an engine may read while this is held.
#[derive(Debug)]
pub(crate) enum Lent {
    File(shm::Lent),
    Http(lent::Lent),
}

impl Lent {
    fn url(&self) -> &str {
        match self {
            Self::File(lent) => lent.url(),
            Self::Http(lent) => lent.url(),
        }
    }
}

impl Parcel {
    /// Whether an engine's refusal is about the images that the body names: that it may read none,
    /// none there, or not these.
    pub(crate) fn is_unread(&self, status: u16, refusal: &[u8]) -> bool {
        if self.named.is_empty() {
            return false;
        }
        match &self.way {
            Way::Inline => false,
            Way::Folder(_, dir) => speaks_of_files(refusal, Some(dir)),
            Way::Http(lending) => {
                // One that waited in vain may have no words for it; one that got some of them fails
                // for another reason.
                let in_vain = |lent: &Lent| matches!(lent, Lent::Http(lent) if !lent.was_fetched());
                speaks_of_fetching(refusal, lending.loans.base())
                    || status >= 500 && self.named.iter().all(in_vain)
            }
        }
    }
}

impl Frontend {
    /// Whether images may go to some worker in another way than inside a request.
    pub(crate) fn may_name_images(&self) -> bool {
        let has_folders = self
            .media
            .as_ref()
            .is_some_and(|media| media.shm().is_some());
        has_folders || self.lending.is_some()
    }

    /// Finishes a body for a placement.
    pub(crate) async fn parcel(&self, body: &Arc<EngineBody>, placement: &Placement) -> Parcel {
        let report_session = placement.report_session.clone();
        if body.images().is_empty() {
            let body = body.finish(&[], report_session.as_deref());
            return Parcel {
                body,
                ..Parcel::default()
            };
        }
        let way = self.way(placement);
        let (body, metrics) = (body.clone(), self.metrics.clone());
        // Writing files, or encoding as much, takes as long as others would feel.
        let finished = spawn_blocking(move || {
            let lend = |image| lend(&way, image, &metrics);
            let lent: Vec<Option<Lent>> = body.images().iter().map(lend).collect();
            let urls: Vec<_> = lent
                .iter()
                .map(|lent| lent.as_ref().map(Lent::url))
                .collect();
            let body = body.finish(&urls, report_session.as_deref());
            let named = lent.into_iter().flatten().collect();
            Parcel { body, named, way }
        });
        settled(finished.await)
    }

    /// The same with every image inside, for an engine that could not read those that a parcel names:
    /// the next requests will not name any either, for a while.
    pub(crate) async fn inline_parcel(
        &self,
        body: &Arc<EngineBody>,
        placement: &Placement,
        (unread, reason): (&Parcel, &str),
    ) -> Parcel {
        let images = body.images().len() as u64;
        match &unread.way {
            Way::Inline => {}
            Way::Folder(shm, dir) => {
                shm.pause(dir, reason);
                counted(&self.metrics, Transfer::ShmUnread, images);
            }
            Way::Http(lending) => {
                lending.pause(&placement.worker, reason);
                counted(&self.metrics, Transfer::HttpUnread, images);
            }
        }
        let (body, report_session) = (body.clone(), placement.report_session.clone());
        let finished = spawn_blocking(move || Parcel {
            body: body.finish(&[], report_session.as_deref()),
            ..Parcel::default()
        });
        settled(finished.await)
    }

    /// How images may go to a placement's worker. By a folder only on this host, for elsewhere its
    /// path is another folder's.
    fn way(&self, placement: &Placement) -> Way {
        let folder = || {
            let shm = self.media.as_ref()?.shm()?;
            let dir = placement.media_dir.clone()?;
            let is_told = !self.client.is_over_bus();
            (is_told && is_on_this_host(&placement.address)).then(|| Way::Folder(shm.clone(), dir))
        };
        let http = || {
            let lending = self.lending.as_ref()?;
            let is_open = lending.is_open_to(&placement.worker);
            is_open.then(|| Way::Http(lending.clone()))
        };
        folder().or_else(http).unwrap_or_default()
    }
}

/// A panic there is the request's own, as it is here; else only the process's end leaves nothing to
/// send.
fn settled(finished: Result<Parcel, JoinError>) -> Parcel {
    finished.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => Parcel::default(),
    })
}

fn lend(way: &Way, image: &Image, metrics: &Metrics) -> Option<Lent> {
    let (lent, label) = match way {
        Way::Inline => (None, Transfer::Inline),
        Way::Folder(shm, dir) => match shm.lend(dir, image) {
            Ok(lent) => (Some(Lent::File(lent)), Transfer::Shm),
            Err(error) => {
                debug!(%error, "image goes inline");
                match error {
                    ShmError::Full { .. } => (None, Transfer::ShmFull),
                    _ => (None, Transfer::ShmUnusable),
                }
            }
        },
        Way::Http(lending) => match lending.loans.lend(image.bytes.clone(), image.mime) {
            Ok(lent) => (Some(Lent::Http(lent)), Transfer::Http),
            Err(error) => {
                debug!(%error, "image goes inline");
                match error {
                    LendError::Full { .. } | LendError::TooMany { .. } => {
                        (None, Transfer::HttpFull)
                    }
                    LendError::NoRandom(_) => (None, Transfer::Inline),
                }
            }
        },
    };
    counted(metrics, label, 1);
    lent
}

fn counted(metrics: &Metrics, way: Transfer, images: u64) {
    let labels = TransferLabels { way };
    metrics
        .media_transfers
        .get_or_create(&labels)
        .inc_by(images);
}

fn is_on_this_host(address: &str) -> bool {
    let local = ["unix:", "http://127.", "http://localhost:", "http://[::1]:"];
    local.iter().any(|start| address.starts_with(start))
}

/// Whether an engine's refusal speaks of the files: that it may read none, none there, or not this.
fn speaks_of_files(body: &[u8], dir: Option<&str>) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let words = [
        "allowed-local-media-path",
        "allowed_local_media_path",
        "local files",
    ];
    let dir = dir.map(str::to_lowercase);
    words.iter().any(|word| text.contains(word)) || dir.is_some_and(|dir| text.contains(&dir))
}

/// Whether an engine's refusal speaks of fetching from where we lend: that it may not, or could not.
fn speaks_of_fetching(body: &[u8], base: &str) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let words = [
        "allowed domains",
        "allowed-media-domains",
        "allowed_media_domains",
    ];
    // As `host:port/media/`: of a connection that fails the host and port are told, of an answer all.
    let place = base.split_once("://").map_or(base, |(_, place)| place);
    let authority = place.split('/').next().unwrap_or_default();
    let authority = authority.to_lowercase();
    words.iter().any(|word| text.contains(word)) || text.contains(&authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_says_of_files_is_heard() {
        let dir = Some("/dev/shm/Images");
        for (text, heard) in [
            (
                "Cannot load local files without `--allowed-local-media-path`.",
                true,
            ),
            (
                "[Errno 13] Permission denied: '/dev/shm/Images/1.0/ab.png'",
                true,
            ),
            ("The decoder prompt cannot be empty", false),
            ("cannot identify image file", false),
        ] {
            assert_eq!(speaks_of_files(text.as_bytes(), dir), heard, "{text}");
        }
        assert!(!speaks_of_files(b"[Errno 2] No such file: '/a'", None));
    }

    #[test]
    fn what_an_engine_says_of_fetching_is_heard() {
        for (text, heard) in [
            (
                "The URL must be from one of the allowed domains: ['a']. Input URL domain: b",
                true,
            ),
            (
                "Cannot connect to host Frontend-1:8002 ssl:default [Connect call failed]",
                true,
            ),
            (
                "404, message='Not Found', url='http://frontend-1:8002/media/00ff'",
                true,
            ),
            ("cannot identify image file", false),
            ("Cannot connect to host frontend-1:443", false),
        ] {
            let base = "http://frontend-1:8002/media/";
            assert_eq!(speaks_of_fetching(text.as_bytes(), base), heard, "{text}");
        }
    }

    #[test]
    fn only_this_hosts_engines_share_its_files() {
        for (address, here) in [
            ("unix:/run/engine/http.sock", true),
            ("http://127.0.0.1:8100", true),
            ("http://[::1]:8100", true),
            ("http://10.0.0.5:8100", false),
            ("http://localhost.example:80", false),
        ] {
            assert_eq!(is_on_this_host(address), here, "{address}");
        }
    }
}
