//! `kvlens mock-engine`: an honest stand-in for `vllm serve` that needs no GPU.
//!
//! It renders, tokenises, sizes images, caches blocks, evicts and publishes as vLLM does, and only
//! makes up its words. It shares nothing with the code it is used to test but the model's files and
//! the HTTP server, so that a mistake cannot cancel itself out.

pub mod answer;
pub mod dialler;
pub mod endpoints;
pub mod fetch;
pub mod free;
pub mod generation;
pub mod hash;
pub mod host;
pub mod images;
pub mod metrics;
pub mod options;
pub mod pool;
pub mod prompt;
pub mod publisher;
pub mod rank;
pub mod refusal;
pub mod reply;
pub mod scheduler;
pub mod server;
pub mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::Limits;
use crate::http::listener::{Listener, bind, bind_unix};
use crate::http::serve::serve;
use crate::mock::dialler::Dialler;
use crate::mock::options::{BadOption, Options};
use crate::mock::publisher::{PublishError, Publisher, Replayer};
use crate::mock::rank::{Engine, Rank};
use crate::mock::scheduler::{Bounds, Scheduler};
use crate::mock::server::{Server, Setting};
use crate::mock::wire::Wire;
use crate::model::{Model, ModelError};

/// Why a mock engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum MockError {
    #[error(transparent)]
    Option(#[from] BadOption),
    #[error("cannot load model {model:?}")]
    Model { model: String, source: ModelError },
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error("cannot publish kv events")]
    Publish(#[from] PublishError),
}

/// A mock engine that listens but does not answer yet.
#[derive(Debug)]
pub struct MockEngine {
    listener: Listener,
    address: String,
    server: Arc<Server>,
    engines: Vec<Engine>,
    replayers: Vec<Replayer>,
    diallers: Vec<Dialler>,
    dev: bool,
}

/// Runs a mock engine until `stop`, then lets requests in flight finish.
///
/// # Errors
/// When an option is unusable, the model unreadable or an address taken.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), MockError> {
    if options.exit_with_stdin {
        stop_at_end_of_input(stop.clone());
    }
    let engine = MockEngine::bind(options).await?;
    tracing::info!(address = %engine.address, sources = %engine.server.sources, "mock engine listening");
    engine.serve(stop).await;
    Ok(())
}

impl MockEngine {
    /// Loads the model and takes all addresses.
    ///
    /// # Errors
    /// When an option is unusable, the model unreadable or an address taken.
    pub async fn bind(options: Options) -> Result<Self, MockError> {
        options.check()?;
        let model = load(&options.model)?;
        let context_tokens_max = options.context_tokens_max(model.context_tokens_max())?;
        let bounds = options.bounds();
        let (listener, address) = match &options.uds {
            Some(path) => listen_unix(path)?,
            None => listen(SocketAddr::new(options.host, options.port)).await?,
        };
        let mut started = Started::default();
        for rank in 0..options.data_parallel_size {
            started.rank(&options, bounds, rank).await?;
        }
        let setting = Setting {
            names: options.names(),
            loras: options.loras(),
            bounds,
            context_tokens_max,
            fault: options.fault,
            deadly_text: options.deadly_text.clone(),
            media_dir: local_media(&options)?,
            media_domains: options.allowed_media_domains.clone(),
        };
        let sources = Value::Object(started.sources);
        let server = Server::new(model, setting, started.ranks, sources);
        Ok(Self {
            listener,
            address,
            server: Arc::new(server),
            engines: started.engines,
            replayers: started.replayers,
            diallers: started.diallers,
            dev: options.dev,
        })
    }

    /// Where it listens, as `host:port`, the port the system chose included, or `unix:/path`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where rank `rank` publishes its events, and where it replays them.
    pub fn event_endpoints(&self, rank: u32) -> (Option<&str>, Option<&str>) {
        let source = &self.server.sources[rank.to_string()];
        (
            source["endpoint"].as_str(),
            source["replay_endpoint"].as_str(),
        )
    }

    /// Answers requests until `stop`, then lets those in flight finish.
    pub async fn serve(self, stop: CancellationToken) {
        let idle = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for engine in self.engines {
            tasks.spawn(engine.run(idle.child_token()));
        }
        for replayer in self.replayers {
            tasks.spawn(replayer.run(idle.child_token()));
        }
        for dialler in self.diallers {
            tasks.spawn(dialler.run(idle.child_token()));
        }
        let routes = endpoints::routes(&self.server, self.dev);
        serve(self.listener, routes, limits(), stop).await;
        // The ranks outlive the last request, which waits for them.
        idle.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

#[derive(Default)]
struct Started {
    ranks: Vec<Arc<Rank>>,
    engines: Vec<Engine>,
    replayers: Vec<Replayer>,
    diallers: Vec<Dialler>,
    sources: Map<String, Value>,
}

impl Started {
    async fn rank(
        &mut self,
        options: &Options,
        bounds: Bounds,
        rank: u32,
    ) -> Result<(), MockError> {
        let wire = Wire {
            events: options.events,
            hashes: options.hashes,
            block_size: bounds.block_size,
            rank,
        };
        let mut publisher = None;
        if let Some(plan) = options.publishing() {
            let bound = Publisher::bind(&plan, wire).await?;
            let replay = bound.replayer.as_ref().map(Replayer::endpoint);
            let source = json!({
                "endpoint": bound.publisher.endpoint(),
                "replay_endpoint": replay,
                "topic": plan.topic,
                "buffer_steps": plan.buffered_batches_max,
            });
            self.sources.insert(rank.to_string(), source);
            self.replayers.extend(bound.replayer);
            self.diallers.extend(bound.dialler);
            publisher = Some(bound.publisher);
        }
        let scheduler = Scheduler::new(bounds, publisher.is_some());
        let shared = Arc::new(Rank::default());
        let engine = Engine::new(Arc::clone(&shared), scheduler, options.speeds(), publisher);
        self.ranks.push(shared);
        self.engines.push(engine);
        Ok(())
    }
}

fn load(name: &str) -> Result<Model, MockError> {
    let loaded = if name == options::DEMO {
        Model::demo()
    } else {
        Model::load(name.as_ref())
    };
    loaded.map_err(|source| MockError::Model {
        model: name.to_owned(),
        source,
    })
}

/// The folder of images, links followed; it must be there when the engine starts, as vLLM's must.
fn local_media(options: &Options) -> Result<Option<PathBuf>, BadOption> {
    let Some(folder) = &options.allowed_local_media_path else {
        return Ok(None);
    };
    let found = folder.canonicalize().ok().filter(|path| path.is_dir());
    let bad = || BadOption {
        option: "allowed-local-media-path",
        value: folder.display().to_string(),
        rule: "must be a folder that is there".to_owned(),
    };
    found.ok_or_else(bad).map(Some)
}

async fn listen(address: SocketAddr) -> Result<(Listener, String), MockError> {
    let refused = |source| MockError::Listen {
        address: address.to_string(),
        source,
    };
    let listener = bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener.into(), bound.to_string()))
}

fn listen_unix(path: &Path) -> Result<(Listener, String), MockError> {
    let address = format!("unix:{}", path.display());
    match bind_unix(path) {
        Ok(listener) => Ok((listener.into(), address)),
        Err(source) => Err(MockError::Listen { address, source }),
    }
}

/// Generous bounds: the frontend in front has the strict ones.
fn limits() -> Limits {
    Limits {
        body_bytes_max: 256 << 20,
        bodies_in_flight_bytes_max: 2 << 30,
        header_bytes_max: 64 << 10,
        header_read: Duration::from_secs(30),
        body_read: Duration::from_secs(60),
        connections_max: 8192,
    }
}

/// Stops when the parent closes its end, however it dies.
fn stop_at_end_of_input(stop: CancellationToken) {
    // A thread of its own: a read of standard input cannot be cancelled, and the runtime would
    // wait for it on its way out.
    std::thread::spawn(move || {
        let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.cancel();
        tracing::info!(?ended, "standard input ended");
    });
}
