//! The files of the model that the engine runs, as the agent serves them to frontends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::http::StatusCode;
use serde_json::json;

use crate::discovery::model_files::asked_digest;
use crate::http::reply::Reply;
use crate::model::Model;
use crate::model::archive::{Archive, ArchiveError};
use crate::model::named::Named;
use crate::openai::error::{ApiError, ErrorKind};

/// A model that was read, and the files that it was read from.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) model: Arc<Model>,
    pub(crate) archive: Archive,
}

impl From<Named> for Files {
    fn from(named: Named) -> Self {
        Self {
            model: Arc::new(named.model),
            archive: named.archive,
        }
    }
}

/// The files that are served now: those of the engine that is followed.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    archive: Mutex<Option<Archive>>,
}

impl Shelf {
    /// Puts the files of an engine in place of the former one's.
    pub(crate) fn put(&self, archive: Option<Archive>) {
        *self.lock() = archive;
    }

    /// Answers what the files are.
    pub(crate) fn list(&self) -> Result<Reply, ApiError> {
        let archive = self.archive()?;
        let listed = |error: ArchiveError| {
            // Packed by us: it has the form that we read.
            ApiError::new(
                500,
                ErrorKind::ServerError,
                "model_files",
                error.to_string(),
            )
        };
        let files = archive.files().map_err(listed)?;
        let entry = |(name, text): (&&str, &&str)| json!({"name": name, "bytes": text.len()});
        let files: Vec<_> = files.iter().map(entry).collect();
        let body = json!({"digest": archive.digest().to_string(), "files": files});
        Ok(Reply::json(StatusCode::OK, &body))
    }

    /// Answers the files of the digest in `query`, and no others.
    pub(crate) fn send(&self, query: &str) -> Result<Reply, ApiError> {
        let archive = self.archive()?;
        let digest = archive.digest();
        if asked_digest(query) != Some(digest) {
            let message = format!("the model's files here have digest {digest}");
            return Err(not_found("other_digest", message));
        }
        let body = archive.body();
        Ok(Reply::full(
            StatusCode::OK,
            "application/octet-stream",
            body,
        ))
    }

    fn archive(&self) -> Result<Archive, ApiError> {
        let archive = self.lock().clone();
        archive.ok_or_else(|| {
            let message = "the agent has no files of its engine's model; name them with --model";
            not_found("no_model_files", message.to_owned())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Archive>> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.archive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(code: &'static str, message: String) -> ApiError {
    ApiError::new(404, ErrorKind::InvalidRequestError, code, message)
}
