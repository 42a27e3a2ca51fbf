//! `kvlens doctor`: what is wrong with this host and those it meets, and the next step for each.
//!
//! It only asks: nothing is put into etcd, no request is placed, no model is loaded by an engine. All
//! is asked at once and waited for no longer than some seconds, so that a host that hangs is a line
//! and not a wait.

mod clock;
mod etcd;
pub mod finding;
mod gpu;
mod keys;
mod limits;
mod model;
mod nats;
mod page;
mod verdicts;
mod workers;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueHint;
use tokio::runtime;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::bus::Bus;
use crate::commands::check_config::{self, CheckError};
use crate::commands::doctor::clock::Skew;
use crate::commands::doctor::finding::{Check, Finding};
use crate::commands::doctor::model::OurModel;
use crate::commands::doctor::verdicts::Ours;
use crate::commands::doctor::workers::{Answer, Asked, Candidate, Ways};
use crate::config::dispatch::RequestPlane;
use crate::config::frontend::RouterPlace;
use crate::config::units::CONFIG_FILE;
use crate::config::{Config, Sources, Values};
use crate::discovery::flags::PlaneFlags;
use crate::discovery::hash_key::hash_key;
use crate::dispatch::EngineClient;
use crate::http::keys::first_key;
use crate::lifecycle::tasks::Tasks;
use crate::router::rules::Rules;
use crate::telemetry::causes::told;

/// Longest waits. Workers are asked once etcd has named them, and an engine that nobody registered
/// once its agent has: the three are one after the other, 5 s in all.
#[cfg(feature = "etcd")]
const ETCD_MAX: Duration = Duration::from_secs(2);
const AGENT_MAX: Duration = Duration::from_millis(1_500);
const ENGINE_MAX: Duration = Duration::from_millis(1_500);
/// For a NATS server, the second in which routers are heard included.
const NATS_MAX: Duration = Duration::from_secs(4);
/// For what only this host does: a model's files are read whole, and a driver may hang.
const LOCAL_MAX: Duration = Duration::from_secs(5);

/// Checks this host, etcd, NATS, agents and engines: what is wrong, and the next step.
///
/// Where no file, flag or variable says what to look at, and units are installed, it is what their
/// configuration says.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    planes: PlaneFlags,
    /// Who chooses the workers of frontends here: a router in each, or routers elsewhere, asked over NATS
    #[arg(long)]
    router: Option<RouterPlace>,
    /// What carries requests to engines: connections to each, or NATS
    #[arg(long)]
    request_plane: Option<RequestPlane>,
    /// Folder or name of the model that frontends here serve
    #[arg(long, value_hint = ValueHint::AnyPath)]
    model: Option<String>,
    /// Listener of a worker's agent, as http://127.0.0.1:8200; may be repeated
    #[arg(long, value_name = "URL")]
    worker_url: Vec<String>,
    /// File whose first bearer key is shown to the agents and to their engines' gates
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    worker_key_file: Option<PathBuf>,
    /// Print a JSON array of findings instead of lines
    #[arg(long)]
    json: bool,
}

/// What was found, and what is printed of it.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    pub findings: Vec<Finding>,
    pub text: String,
}

impl Args {
    fn flags(&self) -> Values {
        let workers = (!self.worker_url.is_empty()).then_some(&self.worker_url);
        self.planes
            .values(Values::default())
            .set_given("frontend.router", self.router)
            .set_given("dispatch.request_plane", self.request_plane)
            .set_given("discovery.workers", workers)
            .set_given("discovery.key_file", self.worker_key_file.as_ref())
    }
}

/// Checks all that the configuration names.
///
/// # Errors
/// When this process cannot even begin.
pub fn run(args: &Args, sources: Sources) -> io::Result<Diagnosis> {
    let sources = Sources {
        flags: args.flags(),
        ..sources
    };
    let sources = or_installed(sources, Path::new(CONFIG_FILE));
    let findings = match check_config::load(&sources) {
        Err(error) => unusable(&sources, &error),
        Ok(config) => {
            let mut findings = vec![usable(&sources)];
            let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
            let examined = runtime.block_on(examine(&config, args.model.as_deref()));
            findings.extend(examined);
            // A thread that hangs in a driver is not waited for.
            runtime.shutdown_background();
            findings
        }
    };
    let text = match args.json {
        true => finding::json(&findings),
        false => finding::page(&findings),
    };
    Ok(Diagnosis { findings, text })
}

/// All findings but those of the configuration's own text, in the order in which they are shown.
pub async fn examine(config: &Config, model: Option<&str>) -> Vec<Finding> {
    let (limits, gpu, model, nats, found) = tokio::join!(
        local((Check::Limits, "limits"), {
            let config = config.clone();
            move || (limits::check(&config), ())
        }),
        local((Check::Gpu, "NVIDIA driver"), {
            let config = config.gpu.clone();
            move || (gpu::check(&config), ())
        }),
        model_files(model),
        nats::check(config),
        meet(config),
    );
    let ours = Ours {
        model: model.1,
        hash_key: found.hash_key,
        key_file: finding::key_file(config.discovery.key_file.as_deref()),
        asks_over_bus: asks_over_bus(config),
    };
    let mut skews = found.skews;
    skews.extend(found.asked.iter().flat_map(skews_of));
    let workers = found.asked.iter();
    let workers: Vec<_> = workers
        .flat_map(|asked| verdicts::judge(asked, &ours))
        .collect();
    [
        found.keys,
        limits.0,
        clock::check(&skews),
        gpu.0,
        model.0,
        verdicts::compare(&found.asked),
        found.etcd,
        nats,
        found.listing,
        workers,
    ]
    .concat()
}

/// What files of ours say of whom to ask, and how.
#[derive(Debug, Default)]
struct Files {
    named: Vec<Candidate>,
    /// What is wrong with the list of them.
    listing: Vec<Finding>,
    /// Shown to agents and gates.
    key: Option<String>,
    hash_key: Option<String>,
}

/// What was heard from other hosts of workers.
struct Met {
    keys: Vec<Finding>,
    etcd: Vec<Finding>,
    /// What is to say of the list of workers itself.
    listing: Vec<Finding>,
    asked: Vec<Asked>,
    skews: Vec<Skew>,
    hash_key: Option<String>,
}

/// Reads our files, asks etcd, and then all workers that either names.
async fn meet(config: &Config) -> Met {
    let files = local((Check::Keys, "key files"), {
        let config = config.clone();
        move || (keys::check(&config), Files::read(&config))
    });
    let ((keys, files), told, bus) = tokio::join!(files, etcd::check(&config.etcd), bus(config));
    let files = files.unwrap_or_default();
    let client = EngineClient::with_key(files.key.as_deref());
    let mut tasks = Tasks::default();
    let is_reached = bus.is_some() || !asks_over_bus(config);
    let reaching = || {
        let client = client.clone();
        client.reaching(&config.dispatch, bus.as_ref(), &mut tasks)
    };
    let ways = Ways {
        engines: is_reached.then(reaching),
        agents: client,
        rules: Rules::any().within(&config.discovery.networks),
    };
    let (asked, left_out) = workers::ask(told.registered, files.named, Arc::new(ways)).await;
    let mut listing = files.listing;
    listing.extend(left_out);
    if asked.is_empty() && listing.is_empty() {
        let seen = "none is registered or named; name etcd (--etcd) or agents (--worker-url)";
        listing.push(Finding::skip(Check::Worker, "workers", seen));
    }
    Met {
        keys,
        etcd: told.findings,
        listing,
        asked,
        skews: told.skews,
        hash_key: files.hash_key,
    }
}

fn asks_over_bus(config: &Config) -> bool {
    config.dispatch.request_plane == RequestPlane::Nats
}

/// The bus, where requests go over it. What is wrong with it is found by the check of NATS.
async fn bus(config: &Config) -> Option<Bus> {
    match asks_over_bus(config) {
        true => Bus::connect(&config.nats, "kvlens-doctor").await.ok(),
        false => None,
    }
}

impl Files {
    /// What cannot be used is told of among the keys: agents then ask for one.
    fn read(config: &Config) -> Self {
        let (named, listing) = workers::named(config);
        let key = config.discovery.key_file.as_deref();
        let hash_key = hash_key(&config.cluster).ok().flatten();
        Self {
            named,
            listing,
            key: key.and_then(|path| first_key(path).ok()),
            hash_key: hash_key.map(|key| key.fingerprint()),
        }
    }
}

/// The clocks of a worker's agent and of its engine.
fn skews_of(asked: &Asked) -> Vec<Skew> {
    let agent = match &asked.agent {
        Answer::Came(_, page) => page.skew.clone(),
        _ => None,
    };
    let engine = match &asked.engine {
        Answer::Came((), page) => page.skew.clone(),
        _ => None,
    };
    agent.into_iter().chain(engine).collect()
}

async fn model_files(model: Option<&str>) -> (Vec<Finding>, Option<OurModel>) {
    let Some(text) = model.map(str::to_owned) else {
        return (model::unnamed(), None);
    };
    let subject = text.clone();
    let (findings, ours) = local((Check::Model, &subject), move || model::check(&text)).await;
    (findings, ours.flatten())
}

/// Runs a check that may block, on a thread of its own. What it returns beside its findings is `None`
/// where it did not end in time.
async fn local<T, F>((check, subject): (Check, &str), run: F) -> (Vec<Finding>, Option<T>)
where
    T: Send + 'static,
    F: FnOnce() -> (Vec<Finding>, T) + Send + 'static,
{
    let next = "run `kvlens doctor` again; see `dmesg` where it stays so";
    let failed = |seen: String| (vec![Finding::fail(check, subject, seen, next)], None);
    match timeout(LOCAL_MAX, spawn_blocking(run)).await {
        Ok(Ok((findings, more))) => (findings, Some(more)),
        Ok(Err(error)) => failed(format!("the check broke off: {error}")),
        Err(_) => failed(format!("the check hangs, for {} by now", millis(LOCAL_MAX))),
    }
}

/// The sources, or the configuration of the units where they name nothing.
fn or_installed(sources: Sources, installed: &Path) -> Sources {
    let is_named = sources.file.is_some() || !sources.flags.is_empty() || variables(&sources) > 0;
    match is_named || !installed.exists() {
        true => sources,
        false => Sources {
            file: Some(installed.to_owned()),
            ..sources
        },
    }
}

fn variables(sources: &Sources) -> usize {
    let ours = |(name, _): &&(String, String)| name.starts_with("KVLENS_");
    sources.environment.iter().filter(ours).count()
}

fn usable(sources: &Sources) -> Finding {
    let variables = variables(sources);
    let seen = format!("it can be used, with {variables} variables of the environment");
    Finding::ok(Check::Configuration, &place(sources), seen)
}

fn unusable(sources: &Sources, error: &CheckError) -> Vec<Finding> {
    let next = "correct it; `kvlens check-config --reference` prints every key with its meaning";
    let problems = match error {
        CheckError::Config(error) => error.problems.iter().map(ToString::to_string).collect(),
        other => vec![told(other)],
    };
    let place = place(sources);
    let fail = |problem: String| Finding::fail(Check::Configuration, &place, problem, next);
    problems.into_iter().map(fail).collect()
}

/// Where the configuration is from.
fn place(sources: &Sources) -> String {
    match &sources.file {
        Some(path) => path.display().to_string(),
        None => "no file".to_owned(),
    }
}

/// A time as it is shown.
fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_configuration_is_looked_at_where_nothing_else_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let installed = folder.path().join("kvlens.toml");
        let file = |sources: Sources| or_installed(sources, &installed).file;
        assert_eq!(file(Sources::default()), None);
        std::fs::write(&installed, "").unwrap();
        assert_eq!(file(Sources::default()).as_ref(), Some(&installed));
        let named = Sources {
            file: Some("k.toml".into()),
            ..Sources::default()
        };
        assert_eq!(file(named), Some("k.toml".into()));
        let flags = Values::default().set("discovery.workers", ["http://127.0.0.1:1"]);
        let environment = vec![("KVLENS_NATS_SERVERS".to_owned(), String::new())];
        for sources in [
            Sources {
                flags,
                ..Sources::default()
            },
            Sources {
                environment,
                ..Sources::default()
            },
        ] {
            assert_eq!(file(sources), None);
        }
    }
}
