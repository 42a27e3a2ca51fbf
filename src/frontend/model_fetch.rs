//! Fetches the files of models from the agents that serve them, for frontends that have none of
//! their own. Nothing of a body is believed before its digest is the one that the record names.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::discovery::model_files::files_of;
use crate::dispatch::{DispatchError, EngineAnswer, EngineClient};
use crate::frontend::models::{Awaited, Models};
use crate::model::archive::{ARCHIVE_BYTES_MAX, Archive, ArchiveError, ModelDigest};
use crate::model::{Model, ModelError};
use crate::router::Router;
use crate::router::rules::{Rules, Sought};

/// How often is looked whether files are wanted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Most models at once: each has tens of megabytes of tokenizer in memory.
const MODELS_MAX: usize = 32;

/// Most models that are fetched at once, so that a slow agent holds up its own alone; their bodies
/// may take 1 GiB of memory.
const FETCHING_MAX: usize = 4;

/// Waits between attempts: doubled from the first up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Longest wait for an answer's head, and between two pieces of it.
const SILENCE_MAX: Duration = Duration::from_secs(8);

/// Longest time for all of it: the largest body at 4 MB/s.
const WHOLE_MAX: Duration = Duration::from_secs(64);

/// Most of a refusal's text that is shown.
const SHOWN_BYTES_MAX: usize = 300;

/// Why an agent's files are not used.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{MODELS_MAX} models are served already")]
    Full,
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error("it answered {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error("its answer is over {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("it said nothing for {waited:?}")]
    Silent { waited: Duration },
    #[error("its answer was not whole after {waited:?}")]
    Late { waited: Duration },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Reading(#[from] JoinError),
}

/// Keeps a frontend's models to what its workers have.
pub(crate) struct Fetcher {
    pub(crate) models: Arc<Models>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) router: Arc<Router>,
    /// Shows the key that agents ask for.
    pub(crate) client: EngineClient,
    /// For a person: whom the frontend hears.
    pub(crate) agents: String,
}

/// Attempts in vain at one model's files.
#[derive(Debug)]
struct Attempts {
    digest: ModelDigest,
    count: usize,
    wait: Duration,
    next: Instant,
    /// The same bytes would be of no more use.
    is_final: bool,
}

impl Attempts {
    /// One more, after those before.
    fn after(before: Option<&Self>, digest: ModelDigest, is_final: bool) -> Self {
        let wait = before.map_or(RETRY_FIRST, |tried| (tried.wait * 2).min(RETRY_LAST));
        Self {
            digest,
            count: before.map_or(0, |tried| tried.count) + 1,
            wait,
            next: Instant::now() + wait,
            is_final,
        }
    }

    fn is_due(&self) -> bool {
        !self.is_final && Instant::now() >= self.next
    }
}

/// An attempt that ended.
struct Fetched {
    sought: Sought,
    agent: String,
    outcome: Result<Model, FetchError>,
}

impl Fetcher {
    /// Fetches what is wanted, for ever.
    pub(crate) async fn run(self) -> Infallible {
        let mut attempts: HashMap<String, Attempts> = HashMap::new();
        let mut awaited = Awaited::default();
        let mut fetching = FuturesUnordered::new();
        // One attempt of each model at once.
        let mut busy = HashSet::new();
        loop {
            let all = self.rules.sought(|| self.router.workers());
            // What nobody has any more is not waited for.
            let is_sought = |model: &String| all.iter().any(|sought| sought.model == *model);
            attempts.retain(|model, _| is_sought(model));
            awaited.models.retain(|model, _| is_sought(model));
            for sought in all {
                if busy.len() == FETCHING_MAX {
                    break;
                }
                let tried = attempts.get(&sought.model);
                let tried = tried.filter(|tried| tried.digest == sought.digest);
                if tried.is_none_or(Attempts::is_due) && busy.insert(sought.model.clone()) {
                    let count = tried.map_or(0, |tried| tried.count);
                    fetching.push(self.attempt(sought, count));
                }
            }
            awaited.any = (self.models.count() == 0).then(|| {
                let agents = &self.agents;
                format!("no model's files are here yet; this frontend waits for {agents}")
            });
            self.models.wait_for(awaited.clone());
            tokio::select! {
                Some(fetched) = fetching.next() => {
                    let model = fetched.sought.model.clone();
                    busy.remove(&model);
                    match self.take(fetched, &mut attempts) {
                        Ok(()) => drop(awaited.models.remove(&model)),
                        Err(cause) => drop(awaited.models.insert(model, cause)),
                    }
                }
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Fetches one model's files, after so many attempts in vain.
    async fn attempt(&self, sought: Sought, count: usize) -> Fetched {
        // Another one each time: one that hangs holds up nobody whose files another has.
        let agent = sought.agents[count % sought.agents.len()].clone();
        let outcome = match self.has_room(&sought.model) {
            true => self.fetch(&agent, sought.digest).await,
            false => Err(FetchError::Full),
        };
        Fetched {
            sought,
            agent,
            outcome,
        }
    }

    /// Takes in how an attempt ended; what the model waits for where its files could not be had.
    fn take(
        &self,
        fetched: Fetched,
        attempts: &mut HashMap<String, Attempts>,
    ) -> Result<(), String> {
        let Fetched {
            sought: Sought { model, digest, .. },
            agent,
            outcome,
        } = fetched;
        // Others may have filled the room meanwhile.
        let outcome = outcome.and_then(|loaded| match self.has_room(&model) {
            true => Ok(loaded),
            false => Err(FetchError::Full),
        });
        let error = match outcome {
            Ok(loaded) => {
                // First, so that who is placed by the new files finds them.
                self.models.put(&model, Arc::new(loaded));
                self.rules.use_files(&model, digest);
                attempts.remove(&model);
                let digest = digest.short();
                info!(model, digest, agent, "model's files fetched");
                return Ok(());
            }
            Err(error) => error,
        };
        let before = attempts.get(&model).filter(|tried| tried.digest == digest);
        let tried = Attempts::after(before, digest, matches!(error, FetchError::Model(_)));
        let error = match error {
            FetchError::Full => format!("yet: {error}"),
            error => format!("from {agent}: {error}"),
        };
        if tried.count == 1 || tried.is_final {
            let digest = digest.short();
            warn!(model, digest, error, "model's files cannot be fetched");
        }
        let digest = digest.short();
        let cause = format!("the files {digest} of model {model:?} cannot be had {error}");
        self.rules.lack_files(&model, &cause);
        attempts.insert(model, tried);
        Err(cause)
    }

    /// Whether one model more may be held; those that no worker has any more make room.
    fn has_room(&self, model: &str) -> bool {
        if self.models.get(model).is_none() && self.models.count() >= MODELS_MAX {
            for unseen in self.rules.drop_unseen() {
                self.models.remove(&unseen);
            }
        }
        self.models.get(model).is_some() || self.models.count() < MODELS_MAX
    }

    async fn fetch(&self, agent: &str, digest: ModelDigest) -> Result<Model, FetchError> {
        let body = timeout(WHOLE_MAX, self.body(agent, digest)).await;
        let body = body.map_err(|_| FetchError::Late { waited: WHOLE_MAX })??;
        // Hashing and reading a large tokenizer takes a second.
        let reading = spawn_blocking(move || {
            let archive = Archive::receive(body, digest)?;
            Ok::<_, FetchError>(Model::unpack(&archive)?)
        });
        reading.await?
    }

    async fn body(&self, agent: &str, digest: ModelDigest) -> Result<Bytes, FetchError> {
        let path = files_of(digest);
        let mut answer = self.client.open(agent, &path, SILENCE_MAX).await?;
        let bytes_max = match answer.status {
            StatusCode::OK => ARCHIVE_BYTES_MAX,
            _ => SHOWN_BYTES_MAX,
        };
        let body = pieces(&mut answer, bytes_max).await;
        match (answer.status, body) {
            (StatusCode::OK, body) => body,
            (status, body) => Err(FetchError::Status {
                status,
                text: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
            }),
        }
    }
}

/// An answer's body, which may have `bytes_max` bytes.
async fn pieces(answer: &mut EngineAnswer, bytes_max: usize) -> Result<Bytes, FetchError> {
    let mut body = BytesMut::new();
    let silent = |_| FetchError::Silent {
        waited: SILENCE_MAX,
    };
    while let Some(piece) = timeout(SILENCE_MAX, answer.chunk()).await.map_err(silent)? {
        let piece = piece?;
        if body.len() + piece.len() > bytes_max {
            return Err(FetchError::TooLarge { bytes_max });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}
