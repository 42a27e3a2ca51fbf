//! The frontend: what a client's request goes through from HTTP in to stream out.

pub mod admin;
mod answer;
pub mod chat;
mod continuation;
pub mod error;
pub mod flags;
mod held;
pub mod lending;
pub mod listeners;
mod live;
mod model_fetch;
pub mod models;
pub mod observe;
mod overrides;
pub mod pages;
pub mod planes;
pub mod prompt;
pub mod recovery;
pub mod relay;
pub mod role;
mod standing;
mod stream;
pub mod tenants;
pub mod text;
mod transcript;
mod transfer;
mod tries;

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::block::HashKey;
use crate::config::Config;
use crate::config::media::Transfer;
use crate::discovery::gpus::GPUS_PATH;
use crate::discovery::plane::Planes;
use crate::dispatch::EngineClient;
use crate::frontend::lending::Lending;
use crate::frontend::models::Models;
use crate::frontend::planes::Routing;
use crate::frontend::recovery::Recovery;
use crate::frontend::relay::Outgoing;
use crate::frontend::tenants::Tenants;
use crate::http::keys::unauthorised;
use crate::http::lent::Loans;
use crate::http::reply::{Reply, internal_error};
use crate::http::{Answer, Call, Routes};
use crate::media::{Media, PolicyError};
use crate::model::Model;
use crate::openai::error::ApiError;
use crate::openai::request::RequestLimits;
use crate::router::footprint::{Footprint, Wish};
use crate::router::remote::Remote;
use crate::router::view::{ModelView, WorkerView};
use crate::router::{Placement, RouteError, Router};
use crate::telemetry::labels::Endpoint;
use crate::telemetry::metrics::Metrics;

/// Bodies over this size are prepared on a thread of their own: decoding or tokenising as much takes
/// milliseconds, which whoever shares the thread would feel.
const LARGE_BODY_BYTES: usize = 2 << 20;

/// A frontend and all it asks: one per process, shared by its requests.
#[derive(Debug)]
pub struct Frontend {
    pub limits: RequestLimits,
    /// Longest event of an engine's stream, in bytes.
    pub sse_event_bytes_max: usize,
    /// Answers say which worker was chosen, and why.
    pub expose_routing: bool,
    /// Clients may choose worker, rank and mode by headers.
    pub allow_overrides: bool,
    pub recovery: Recovery,
    pub router: Arc<Router>,
    /// Routers that choose in its place; `None` where it chooses itself.
    pub remote: Option<Arc<Remote>>,
    /// How etcd and NATS are.
    pub planes: Planes,
    /// What renders and tokenises prompts.
    pub models: Arc<Models>,
    /// What the names of their blocks are sealed with.
    pub hash_key: Option<HashKey>,
    /// `None` where images are not accepted.
    pub media: Option<Media>,
    /// Images that engines fetch; `None` where they go another way.
    pub lending: Option<Arc<Lending>>,
    pub client: EngineClient,
    pub metrics: Arc<Metrics>,
    pub tenants: Arc<Tenants>,
    /// Cancelled once the public listener takes connections.
    pub listening: CancellationToken,
    /// Cancelled once clients are sent to other frontends.
    pub settling: CancellationToken,
}

/// A model that a request asked for: what the router knows of it and what renders its prompts.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) view: ModelView,
    pub(crate) model: Arc<Model>,
    pub(crate) hash_key: Option<HashKey>,
}

impl Asked {
    /// The longest prompt and answer together, in tokens: as the engines say, else as the model's
    /// files do.
    pub(crate) fn context_tokens_max(&self) -> Option<u32> {
        self.view
            .context_tokens_max
            .or(self.model.context_tokens_max())
    }
}

impl Frontend {
    /// A frontend that serves `models`, the names of whose blocks a key may seal, placed by `routing`;
    /// `loans` are there for engines to fetch.
    ///
    /// # Errors
    /// When the policy for fetching images cannot be used.
    pub fn new(
        config: &Config,
        (models, hash_key): (Arc<Models>, Option<HashKey>),
        routing: impl Into<Routing>,
        (client, metrics, tenants): (EngineClient, Arc<Metrics>, Tenants),
        loans: Option<Loans>,
    ) -> Result<Arc<Self>, PolicyError> {
        let Routing {
            local,
            remote,
            planes,
        } = routing.into();
        let media = config.media.enabled;
        let media = media.then(|| Media::new(config.media.clone()));
        let lends = config.media.enabled && config.media.transfer == Transfer::Http;
        let lending = loans.filter(|_| lends).map(Lending::new);
        Ok(Arc::new(Self {
            limits: RequestLimits {
                messages_max: config.frontend.limits.messages_max,
                images_max: config.frontend.limits.images_max,
                unknown_fields: config.openai.unknown_fields,
            },
            sse_event_bytes_max: config.frontend.limits.sse_event_bytes_max,
            expose_routing: config.frontend.expose_routing,
            allow_overrides: config.router.allow_overrides,
            recovery: Recovery::new(&config.frontend),
            router: local,
            remote,
            planes,
            models,
            hash_key,
            media: media.transpose()?,
            lending: lending.map(Arc::new),
            client,
            metrics,
            tenants: Arc::new(tenants),
            listening: CancellationToken::new(),
            settling: CancellationToken::new(),
        }))
    }

    /// Whether a worker takes requests.
    pub(crate) fn has_workers(&self) -> bool {
        let workers = self.router.workers();
        let takes = |view: &WorkerView| view.record.verdict.takes_requests();
        workers.iter().any(takes)
    }

    /// Places a request, after a wait for room where it must; see [`Router::admit`].
    pub(crate) async fn admit(
        &self,
        footprint: &Footprint,
        wish: &Wish,
    ) -> Result<Placement, RouteError> {
        match &self.remote {
            Some(remote) => remote.admit(footprint, wish).await,
            None => self.router.admit(footprint, wish).await,
        }
    }

    /// Places a request at once; see [`Router::place`].
    pub(crate) async fn place(
        &self,
        footprint: &Footprint,
        wish: &Wish,
    ) -> Result<Placement, RouteError> {
        match &self.remote {
            Some(remote) => remote.place(footprint, wish).await,
            None => self.router.place(footprint, wish),
        }
    }

    /// Places a request again, apart from hosts on which it was tried and that are not heard; `None` where
    /// there are none, or nobody elsewhere takes it at once.
    pub(crate) async fn place_apart(
        &self,
        footprint: &Footprint,
        wish: &Wish,
    ) -> Option<Placement> {
        let near = self.router.neighbours(&wish.excluded);
        if near.is_empty() || wish.worker.is_some() {
            return None;
        }
        let mut apart = wish.clone();
        apart.excluded.extend(near);
        self.place(footprint, &apart).await.ok()
    }

    /// The routes of the public listener. Where keys are asked for, all but the health pages need
    /// one, and who shows none is refused before the body is read.
    pub fn routes(self: &Arc<Self>) -> Routes {
        let frontend = self.clone();
        Routes::default()
            .guarded(move |path, headers| {
                let is_open = !path.starts_with("/v1/") || frontend.tenants.of(headers).is_ok();
                (!is_open).then(|| {
                    frontend.metrics.unauthorised.inc();
                    unauthorised()
                })
            })
            .post(
                "/v1/chat/completions",
                self.observed(Endpoint::ChatCompletions, Self::chat),
            )
            .post(
                "/v1/completions",
                self.observed(Endpoint::Completions, Self::completion),
            )
            .post(
                "/v1/embeddings",
                self.observed(Endpoint::Embeddings, Self::embeddings),
            )
            .get(
                "/v1/models",
                self.observed(Endpoint::Models, Self::list_models),
            )
            .get("/live", self.plain(Self::live))
            .get("/ready", self.plain(Self::ready))
            .get("/health", self.plain(Self::ready))
    }

    /// The routes of the admin listener.
    pub fn admin_routes(self: &Arc<Self>) -> Routes {
        Routes::default()
            .get("/metrics", self.plain(Self::metrics_page))
            .get("/kvlens/v1/workers", self.plain(Self::list_workers))
            .get(GPUS_PATH, self.plain(Self::list_gpus))
            .post("/kvlens/v1/explain", self.plain(Self::explain))
            .get("/live", self.plain(Self::live))
    }

    /// A route whose answers are counted and timed under `endpoint`.
    fn observed<F, A>(
        self: &Arc<Self>,
        endpoint: Endpoint,
        handler: F,
    ) -> impl Fn(Call) -> Answer + Send + Sync + 'static
    where
        F: Fn(Arc<Self>, Call) -> A + Copy + Send + Sync + 'static,
        A: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        let frontend = self.clone();
        move |call| {
            let answer = handler(frontend.clone(), call);
            Box::pin(observe::observed(
                frontend.metrics.clone(),
                endpoint,
                answer,
            ))
        }
    }

    /// A route that is not counted.
    fn plain<F, A>(self: &Arc<Self>, handler: F) -> impl Fn(Call) -> Answer + Send + Sync + 'static
    where
        F: Fn(Arc<Self>, Call) -> A + Copy + Send + Sync + 'static,
        A: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        let frontend = self.clone();
        move |call| {
            let answer = handler(frontend.clone(), call);
            Box::pin(async move { answer.await.unwrap_or_else(Reply::from) })
        }
    }

    /// Makes a call ready to be placed; a large body on a thread of its own, so that tokenising it
    /// does not hold up the streams of others.
    pub(crate) async fn prepared<F, A>(
        self: &Arc<Self>,
        call: Call,
        prepare: F,
    ) -> Result<Outgoing, ApiError>
    where
        F: FnOnce(Arc<Self>, Call) -> A + Send + 'static,
        A: Future<Output = Result<Outgoing, ApiError>>,
    {
        let frontend = self.clone();
        if call.body.len() <= LARGE_BODY_BYTES {
            return prepare(frontend, call).await;
        }
        let runtime = Handle::current();
        let prepared = spawn_blocking(move || runtime.block_on(prepare(frontend, call))).await;
        // A panic there is the request's own, as it is here.
        prepared.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(internal_error()),
        })
    }

    /// What `name` stands for.
    ///
    /// # Errors
    /// 404 for a name nobody serves; 503 for one of ours whose workers are all away, or whose files
    /// are not here yet.
    pub(crate) fn asked(&self, name: &str) -> Result<Asked, ApiError> {
        let Some(view) = self.router.model(name) else {
            return Err(match self.models.get(name) {
                Some(_) => error::no_worker(name),
                None => self.no_model(name),
            });
        };
        match self.models.get(&view.base) {
            Some(model) => Ok(Asked {
                model,
                view,
                hash_key: self.hash_key,
            }),
            None => Err(self.no_model(&view.base)),
        }
    }

    fn no_model(&self, name: &str) -> ApiError {
        match self.models.awaited(name) {
            Some(cause) => error::unavailable("no_model_files", cause),
            None => error::unknown_model(name),
        }
    }
}
