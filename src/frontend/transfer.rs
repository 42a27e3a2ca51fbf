//! How a placed request's images go to its worker: by files where both sides can, else inside it.

use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::{JoinError, spawn_blocking};
use tracing::debug;

use crate::dispatch::request::EngineBody;
use crate::frontend::Frontend;
use crate::media::Image;
use crate::media::shm::{Lent, Shm, ShmError};
use crate::router::Placement;
use crate::telemetry::labels::{Transfer, TransferLabels};
use crate::telemetry::metrics::Metrics;

/// A body as one worker gets it, and the files that it names: they are to stay until the request
/// has ended there.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    pub(crate) body: Bytes,
    pub(crate) files: Vec<Lent>,
}

impl Frontend {
    /// Finishes a body for a placement.
    pub(crate) async fn parcel(&self, body: &Arc<EngineBody>, placement: &Placement) -> Parcel {
        let report_session = placement.report_session.clone();
        if body.images().is_empty() {
            let body = body.finish(&[], report_session.as_deref());
            return Parcel {
                body,
                files: Vec::new(),
            };
        }
        let folder = self.folder(placement);
        let (body, metrics) = (body.clone(), self.metrics.clone());
        // Writing files, or encoding as much, takes as long as others would feel.
        let finished = spawn_blocking(move || {
            let lend = |image| {
                let folder = folder.as_ref().map(|(shm, dir)| (shm, dir));
                lend(folder, image, &metrics)
            };
            let lent: Vec<Option<Lent>> = body.images().iter().map(lend).collect();
            let urls: Vec<_> = lent
                .iter()
                .map(|lent| lent.as_ref().map(Lent::url))
                .collect();
            let body = body.finish(&urls, report_session.as_deref());
            let files = lent.into_iter().flatten().collect();
            Parcel { body, files }
        });
        settled(finished.await)
    }

    /// The same with every image inside, for an engine that could not read its files: the next
    /// requests will not name any either, for a while.
    pub(crate) async fn inline_parcel(
        &self,
        body: &Arc<EngineBody>,
        placement: &Placement,
        reason: &str,
    ) -> Parcel {
        if let Some((shm, dir)) = self.folder(placement) {
            shm.pause(&dir, reason);
        }
        let images = body.images().len() as u64;
        counted(&self.metrics, Transfer::ShmUnread, images);
        let (body, report_session) = (body.clone(), placement.report_session.clone());
        let finished = spawn_blocking(move || Parcel {
            body: body.finish(&[], report_session.as_deref()),
            files: Vec::new(),
        });
        settled(finished.await)
    }

    /// The folder through which images may go to a placement's worker: one on this host alone, for
    /// elsewhere its path is another folder's.
    fn folder(&self, placement: &Placement) -> Option<(Shm, Arc<str>)> {
        let shm = self.media.as_ref()?.shm()?;
        let dir = placement.media_dir.clone()?;
        is_on_this_host(&placement.address).then(|| (shm.clone(), dir))
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

fn lend(folder: Option<(&Shm, &Arc<str>)>, image: &Image, metrics: &Metrics) -> Option<Lent> {
    let (lent, way) = match folder.map(|(shm, dir)| shm.lend(dir, image)) {
        None => (None, Transfer::Inline),
        Some(Ok(lent)) => (Some(lent), Transfer::Shm),
        Some(Err(error)) => {
            debug!(%error, "image goes inline");
            match error {
                ShmError::Full { .. } => (None, Transfer::ShmFull),
                _ => (None, Transfer::ShmUnusable),
            }
        }
    };
    counted(metrics, way, 1);
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
pub(crate) fn speaks_of_files(body: &[u8], dir: Option<&str>) -> bool {
    let text = String::from_utf8_lossy(body).to_lowercase();
    let words = [
        "allowed-local-media-path",
        "allowed_local_media_path",
        "local files",
    ];
    let dir = dir.map(str::to_lowercase);
    words.iter().any(|word| text.contains(word)) || dir.is_some_and(|dir| text.contains(&dir))
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
