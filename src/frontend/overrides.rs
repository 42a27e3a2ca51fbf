//! Headers by which a client chooses where its request goes, where the operator lets it.

use ::http::HeaderMap;
use clap::ValueEnum;

use crate::frontend::Frontend;
use crate::id::{DpRank, WorkerId};
use crate::openai::error::{ApiError, ErrorKind};
use crate::router::footprint::Wish;
use crate::select::RouterMode;

/// The way of choosing.
pub(crate) const MODE: &str = "x-kvlens-router-mode";
/// The only worker that may be chosen.
pub(crate) const WORKER: &str = "x-kvlens-worker";
/// The only data-parallel rank that may be chosen.
pub(crate) const RANK: &str = "x-kvlens-rank";

/// A name is echoed, so that a typo shows, but never at a length that a log or a terminal minds.
const NAME_SHOWN_CHARS: usize = 64;

impl Frontend {
    /// What a request's headers wish of its placement.
    ///
    /// # Errors
    /// 403 for any such header where the operator has not let clients choose: whoever pins a request
    /// would take an answer from elsewhere for one of the worker that was named. 400 and 404 for what
    /// is no mode, worker or rank.
    pub(crate) fn wish(&self, headers: &HeaderMap) -> Result<Wish, ApiError> {
        let given = |name: &'static str| headers.get(name).map(|value| (name, value));
        let first = [MODE, WORKER, RANK].into_iter().find_map(given);
        if let (Some((name, _)), false) = (first, self.allow_overrides) {
            let message =
                format!("{name} is not accepted; router.allow_overrides lets clients choose");
            let kind = ErrorKind::InvalidRequestError;
            return Err(ApiError {
                param: Some(name.to_owned()),
                ..ApiError::new(403, kind, "overrides_not_allowed", message)
            });
        }
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or(""));
        Ok(Wish {
            excluded: Vec::new(),
            mode: text(MODE).map(mode).transpose()?,
            worker: text(WORKER).map(worker).transpose()?,
            rank: text(RANK).map(rank).transpose()?,
        })
    }
}

fn mode(text: &str) -> Result<RouterMode, ApiError> {
    RouterMode::from_str(text, false).map_err(|_| {
        let modes = RouterMode::value_variants().iter();
        let names = modes.filter_map(|mode| Some(mode.to_possible_value()?.get_name().to_owned()));
        let names: Vec<_> = names.collect();
        let message = format!("{MODE} must be one of {}", names.join(", "));
        ApiError::invalid("invalid_value", MODE, message)
    })
}

/// What cannot be a worker's name is the name of none.
fn worker(text: &str) -> Result<WorkerId, ApiError> {
    WorkerId::new(text).map_err(|_| {
        let shown: String = text.chars().take(NAME_SHOWN_CHARS).collect();
        let message = format!("no worker {shown:?} serves the model");
        ApiError {
            status: 404,
            ..ApiError::invalid("worker_not_found", WORKER, message)
        }
    })
}

fn rank(text: &str) -> Result<DpRank, ApiError> {
    text.parse().map(DpRank).map_err(|_| {
        let message = format!("{RANK} must be a number");
        ApiError::invalid("invalid_value", RANK, message)
    })
}
