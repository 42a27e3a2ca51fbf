//! Which workers may be given requests here: by where they answer, by the files their model's prompts
//! are made with, and by the key their blocks' names are sealed with. Who may not is listed with the
//! cause.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::block::HashKey;
use crate::config::network::{self, Network};
use crate::discovery::WorkerRecord;
use crate::health::Verdict;
use crate::id::WorkerId;
use crate::model::archive::ModelDigest;
use crate::router::view::WorkerView;

/// The rules of one process. What they depend on may change: whoever holds a worker judges its
/// record again then.
#[derive(Debug)]
pub struct Rules {
    networks: Vec<Network>,
    /// The key's fingerprint.
    hash_key: Option<String>,
    files: Files,
    state: Mutex<State>,
    turns: watch::Sender<u64>,
}

/// Which files a worker's model must have.
#[derive(Debug)]
enum Files {
    /// Whichever: nobody renders here.
    Any,
    /// Those of the one model that is served here; `None` where nobody says which they are.
    Own {
        model: String,
        digest: Option<ModelDigest>,
    },
    /// Those that were fetched from the workers' own agents.
    Fetched,
}

#[derive(Debug, Default)]
struct State {
    /// By base name, the files that prompts are made with.
    used: HashMap<String, ModelDigest>,
    /// By base name, why there are none.
    lacking: HashMap<String, String>,
    /// As the agents told last, one entry for each worker that is held.
    seen: BTreeMap<WorkerId, Seen>,
}

/// What counts of a worker that may be asked for its model's files.
#[derive(Debug)]
struct Seen {
    model: String,
    digest: Option<ModelDigest>,
    agent: Option<String>,
    takes_requests: bool,
}

/// Files of a model that should be fetched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sought {
    /// Its base name.
    pub(crate) model: String,
    pub(crate) digest: ModelDigest,
    /// The listeners of the agents that have them, at least one.
    pub(crate) agents: Vec<String>,
}

impl Rules {
    /// Takes workers of every model.
    pub fn any() -> Self {
        Self::new(Files::Any)
    }

    /// Takes the workers of one model, by its base name, whose files are those of `digest`.
    pub fn of_model(model: &str, digest: Option<ModelDigest>) -> Self {
        let model = model.to_owned();
        Self::new(Files::Own { model, digest })
    }

    /// Takes the workers of every model whose files were fetched.
    pub fn fetched() -> Self {
        Self::new(Files::Fetched)
    }

    fn new(files: Files) -> Self {
        Self {
            networks: Vec::new(),
            hash_key: None,
            files,
            state: Mutex::default(),
            turns: watch::Sender::new(0),
        }
    }

    /// The same for workers that answer inside `networks` alone, where there are any.
    #[must_use]
    pub fn within(self, networks: &[Network]) -> Self {
        Self {
            networks: networks.to_vec(),
            ..self
        }
    }

    /// The same for workers whose blocks' names are sealed with `key` alone, or not at all.
    #[must_use]
    pub fn sealed_by(self, key: Option<&HashKey>) -> Self {
        Self {
            hash_key: key.map(HashKey::fingerprint),
            ..self
        }
    }

    /// Changes whenever records should be judged again.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// A record as it counts here; `agent` is where its agent is known to answer.
    pub(crate) fn judged(&self, record: WorkerRecord, agent: Option<&str>) -> WorkerRecord {
        let outside = self.outside(&record);
        if outside.is_none() {
            self.note(&record, agent);
        }
        let Some(cause) = outside.or_else(|| self.unfit(&record)) else {
            return record;
        };
        WorkerRecord {
            verdict: Verdict::Failed,
            cause: Some(cause),
            // They must not stand in the way of a name of ours.
            aliases: Vec::new(),
            adapters: Vec::new(),
            ..record
        }
    }

    /// Forgets a worker that is gone.
    pub(crate) fn forget(&self, worker: &WorkerId) {
        self.lock().seen.remove(worker);
    }

    /// Takes `digest` for the files that the prompts of `model` are made with from now on.
    pub(crate) fn use_files(&self, model: &str, digest: ModelDigest) {
        let mut state = self.lock();
        state.used.insert(model.to_owned(), digest);
        state.lacking.remove(model);
        drop(state);
        self.turn();
    }

    /// Forgets the files of models that no worker has any more, and names those models.
    pub(crate) fn drop_unseen(&self) -> Vec<String> {
        let mut state = self.lock();
        let State { used, seen, .. } = &mut *state;
        let has = |model: &str| seen.values().any(|seen| seen.model == model);
        let unseen = used.keys().filter(|model| !has(model));
        let unseen: Vec<String> = unseen.cloned().collect();
        for model in &unseen {
            used.remove(model);
        }
        unseen
    }

    /// Says why there are no files of `model`.
    pub(crate) fn lack_files(&self, model: &str, cause: &str) {
        let mut state = self.lock();
        let before = state.lacking.insert(model.to_owned(), cause.to_owned());
        drop(state);
        if before.is_none_or(|before| before != cause) {
            self.turn();
        }
    }

    /// The files that should be fetched: of each model that has none, and of each of which no worker
    /// with those in use takes requests. `workers` are as requests are placed by.
    pub(crate) fn sought(&self, workers: impl FnOnce() -> Vec<WorkerView>) -> Vec<Sought> {
        let mut sought = self.lock().candidates();
        if sought.is_empty() {
            return sought;
        }
        let workers = workers();
        let state = self.lock();
        // Those in use stay while anybody has them: a change rolls over the workers one by one.
        sought.retain(|sought| {
            let Some(used) = state.used.get(&sought.model) else {
                return true;
            };
            let used = used.to_string();
            !workers.iter().any(|WorkerView { record, .. }| {
                let digest = record.model_digest.as_ref();
                record.model == sought.model
                    && record.verdict.takes_requests()
                    && digest.is_none_or(|digest| *digest == used)
            })
        });
        sought
    }

    /// Why a worker must not even be asked for files.
    fn outside(&self, record: &WorkerRecord) -> Option<String> {
        if !self.reaches(&record.address) {
            return Some(format!(
                "its address {} is in none of the networks of discovery.networks, where a host is \
                 named by number",
                record.address
            ));
        }
        let (ours, its) = (self.hash_key.as_deref(), record.hash_key.as_deref());
        (ours != its).then(|| {
            let shown = |key: Option<&str>| match key {
                Some(fingerprint) => format!("key {fingerprint:.16}"),
                None => "no key".to_owned(),
            };
            format!(
                "its blocks are named with {}, and those here with {}; give both the same \
                 cluster.hash_key_file",
                shown(its),
                shown(ours)
            )
        })
    }

    /// Why a worker's prompts are not those that are made here.
    fn unfit(&self, record: &WorkerRecord) -> Option<String> {
        let model = &record.model;
        let its = match record.model_digest.as_deref() {
            None => None,
            Some(hex) => match ModelDigest::from_hex(hex) {
                Some(digest) => Some(digest),
                None => return Some(format!("its model's files are named {hex:.64}, no digest")),
            },
        };
        let (used, remedy) = match &self.files {
            Files::Any => return None,
            Files::Own {
                model: ours,
                digest,
            } => {
                if model != ours {
                    let cause = format!("serves model {model:?}, and this frontend {ours:?}");
                    return Some(cause);
                }
                let remedy = "give both the same files, or the frontend no --model";
                ((*digest)?, remedy)
            }
            Files::Fetched => {
                let state = self.lock();
                let Some(used) = state.used.get(model) else {
                    let lacking = state.lacking.get(model).cloned();
                    let unnamed = "its record names no files of its model; give its agent or this \
                                   frontend --model";
                    let pending = match its {
                        None => unnamed,
                        Some(_) => "its model's files are not here yet",
                    };
                    return Some(lacking.unwrap_or_else(|| pending.to_owned()));
                };
                let remedy = "they change when no worker with those takes requests any more";
                (*used, remedy)
            }
        };
        let its = its.filter(|its| *its != used)?;
        Some(format!(
            "its model's files have digest {}, and those used here {}; {remedy}",
            its.short(),
            used.short()
        ))
    }

    fn note(&self, record: &WorkerRecord, agent: Option<&str>) {
        let agent = agent.or(record.agent.as_deref());
        let digest = record.model_digest.as_deref();
        let seen = Seen {
            model: record.model.clone(),
            digest: digest.and_then(ModelDigest::from_hex),
            // It would be shown our key.
            agent: agent.filter(|url| self.reaches(url)).map(str::to_owned),
            takes_requests: record.verdict.takes_requests(),
        };
        self.lock().seen.insert(record.worker.clone(), seen);
    }

    /// Whether an address may be sent requests.
    pub(crate) fn reaches(&self, address: &str) -> bool {
        address.starts_with("unix:") || network::hold(&self.networks, address)
    }

    fn turn(&self) {
        self.turns.send_modify(|turns| *turns += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Of each model the files that most workers have which take requests, or which are there at all
    /// where none does and none are used yet. Those in use are left out: who has them may have died
    /// since its agent last told of it, and then it must not outvote the living.
    fn candidates(&self) -> Vec<Sought> {
        type Having<'a> = BTreeMap<String, (ModelDigest, Vec<&'a str>)>;
        let mut models: BTreeMap<&str, [Having<'_>; 2]> = BTreeMap::new();
        for seen in self.seen.values() {
            let (Some(digest), Some(agent)) = (seen.digest, &seen.agent) else {
                continue;
            };
            let having = &mut models.entry(&seen.model).or_default();
            let having = &mut having[usize::from(seen.takes_requests)];
            let entry = having.entry(digest.to_string());
            entry.or_insert((digest, Vec::new())).1.push(agent);
        }
        let best = |(model, [idle, ready]): (&str, [Having<'_>; 2])| {
            let used = self.used.get(model);
            let having = match (ready.is_empty(), used) {
                (true, Some(_)) => return None,
                (true, None) => idle,
                (false, _) => ready,
            };
            let others = having.into_values();
            let others = others.filter(|(digest, _)| used != Some(digest));
            let (digest, agents) = others.max_by_key(|(_, agents)| agents.len())?;
            Some(Sought {
                model: model.to_owned(),
                digest,
                agents: agents.into_iter().map(str::to_owned).collect(),
            })
        };
        models.into_iter().filter_map(best).collect()
    }
}
