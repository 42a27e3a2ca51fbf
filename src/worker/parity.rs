//! Whether an engine makes the prompts that we hash: it is asked when it comes up.

mod prompts;

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::discovery::{Parity, ParityScope};
use crate::id::WorkerId;
use crate::model::{Model, ModelError};
use crate::telemetry::labels::{ParityCheck, ParityLabels};
use crate::telemetry::metrics::Metrics;
use crate::worker::parity::prompts::{Sample, samples};
use crate::worker::probe::{Probe, ProbeError};
use crate::worker::spec::AgentSpec;

/// Where engines say how they tokenise.
const TOKENIZE: &str = "/tokenize";

/// How often an engine that does not answer is asked. Its first image can take it longer than it is
/// given: what it loads for it is there the next time.
const TRIES_MAX: u32 = 3;

/// Between two of them.
const PAUSE: Duration = Duration::from_secs(5);

/// A comparison under way, for one life of an engine. Dropping it ends it.
#[derive(Debug)]
pub struct Check {
    worker: WorkerId,
    tasks: JoinSet<Parity>,
}

impl Check {
    /// Nothing to compare.
    pub fn none(worker: &WorkerId) -> Self {
        Self {
            worker: worker.clone(),
            tasks: JoinSet::new(),
        }
    }

    /// Begins to compare, beside whatever else goes on; nothing where the model's files are not
    /// here. `served` are the names that the engine answers to.
    pub fn start(spec: &AgentSpec, served: &[String]) -> Self {
        let mut check = Self::none(&spec.worker);
        if let Some(files) = spec.files.clone() {
            let name = served.iter().find(|name| **name == spec.model);
            let name = name.or(served.first()).unwrap_or(&spec.model).clone();
            let asked = Asked {
                worker: spec.worker.clone(),
                probe: Probe::new(&spec.address),
                files,
                name,
            };
            check.tasks.spawn(async move { asked.settled().await });
        }
        check
    }

    /// Waits for the outcome, which comes once; never returns where there is none to come. Losing
    /// the future loses nothing.
    pub async fn outcome(&mut self, metrics: &Metrics) -> Parity {
        let worker = &self.worker;
        let parity = match self.tasks.join_next().await {
            Some(Ok(parity)) => parity,
            Some(Err(error)) => {
                error!(%worker, %error, "prompts were not compared");
                Parity::Unchecked
            }
            None => std::future::pending().await,
        };
        match &parity {
            Parity::Exact => info!(%worker, "engine makes the same prompts"),
            Parity::Unchecked => info!(%worker, "engine does not tell its prompts"),
            Parity::Failed { scope, reason } => {
                let check = ParityCheck::Registration;
                let labels = ParityLabels { check };
                metrics.parity_failures.get_or_create(&labels).inc();
                warn!(%worker, ?scope, reason, "engine makes other prompts than we do");
            }
        }
        parity
    }
}

/// One engine and what it is asked with.
struct Asked {
    worker: WorkerId,
    probe: Probe,
    files: Arc<Model>,
    /// What the engine calls its model.
    name: String,
}

/// What an engine made of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Theirs {
    Tokens(Vec<u32>),
    /// It refused the chat itself.
    Refused,
    /// It has no such endpoint.
    NotThere,
}

/// What one sample showed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Same,
    /// The engine's answer says nothing of the prompt it would make.
    Untold,
    /// The engine tells nothing of any prompt.
    NoneTold,
    Differs(String),
}

impl Asked {
    async fn settled(&self) -> Parity {
        let mut has_differed = false;
        for _ in 0..TRIES_MAX {
            match self.compared().await {
                // A template may write the time: only what differs twice does differ.
                Ok(Parity::Failed { .. }) if !has_differed => has_differed = true,
                Ok(parity) => return parity,
                Err(error) => {
                    warn!(worker = %self.worker, %error, "engine could not be asked for a prompt");
                    sleep(PAUSE).await;
                }
            }
        }
        Parity::Unchecked
    }

    /// Compares all samples once.
    async fn compared(&self) -> Result<Parity, ProbeError> {
        let mut parity = Parity::Exact;
        for sample in samples(&self.files) {
            let ours = sample.ours(&self.files);
            if let Err(ModelError::NoChatTemplate { .. }) = ours {
                return Ok(Parity::Unchecked);
            }
            let theirs = self.ask(&sample).await?;
            match self.finding(&sample, ours, theirs) {
                Finding::Same => {}
                Finding::Untold => parity = Parity::Unchecked,
                Finding::NoneTold => return Ok(Parity::Unchecked),
                Finding::Differs(reason) => {
                    let scope = sample.scope();
                    return Ok(Parity::Failed { scope, reason });
                }
            }
        }
        Ok(parity)
    }

    async fn ask(&self, sample: &Sample) -> Result<Theirs, ProbeError> {
        #[derive(Deserialize)]
        struct Tokenized {
            tokens: Vec<u32>,
        }
        let path = TOKENIZE;
        let (status, body) = self.probe.post(path, &sample.body(&self.name)).await?;
        match status {
            StatusCode::OK => {
                let answer: Tokenized = serde_json::from_slice(&body)
                    .map_err(|source| ProbeError::Json { path, source })?;
                Ok(Theirs::Tokens(answer.tokens))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Ok(Theirs::Refused),
            StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => Ok(Theirs::NotThere),
            status => Err(ProbeError::Status { path, status }),
        }
    }

    fn finding(
        &self,
        sample: &Sample,
        ours: Result<Vec<u32>, ModelError>,
        theirs: Theirs,
    ) -> Finding {
        let what = sample.what;
        let has_images = sample.scope() == ParityScope::Media;
        match (ours, theirs) {
            (_, Theirs::NotThere) => Finding::NoneTold,
            (Err(_), Theirs::Refused) => Finding::Same,
            // An engine that may take no image, or only one, will get none that it could cache.
            (Ok(_), Theirs::Refused) if has_images => Finding::Same,
            // What renders chats takes this one: the endpoint takes other questions.
            (Ok(_), Theirs::Refused) if sample.is_plain() => Finding::NoneTold,
            (Ok(_), Theirs::Refused) => {
                Finding::Differs(format!("prompt with {what}: the engine refuses it"))
            }
            (Err(error), Theirs::Tokens(_)) => {
                let reason =
                    format!("prompt with {what}: refused here, not by the engine: {error}");
                Finding::Differs(reason)
            }
            (Ok(ours), Theirs::Tokens(theirs)) => match difference(&ours, &theirs) {
                None => Finding::Same,
                Some(_) if has_images && self.is_unexpanded(sample, &theirs) => Finding::Untold,
                Some(where_) => Finding::Differs(format!("prompt with {what}: {where_}")),
            },
        }
    }

    /// Whether an engine answered with the tokens from before the expansion, which say nothing of
    /// it.
    fn is_unexpanded(&self, sample: &Sample, theirs: &[u32]) -> bool {
        let unexpanded = sample.unexpanded(&self.files);
        unexpanded.is_ok_and(|unexpanded| unexpanded == theirs)
    }
}

/// Where two prompts part, for a person; `None` where they are the same.
fn difference(ours: &[u32], theirs: &[u32]) -> Option<String> {
    if ours == theirs {
        return None;
    }
    let mut pairs = ours.iter().zip(theirs);
    let mut text = match pairs.position(|(ours, theirs)| ours != theirs) {
        Some(at) => {
            let (here, there) = (ours[at], theirs[at]);
            format!("token {at} is {here} here and {there} in the engine")
        }
        None => "one is the other's beginning".to_owned(),
    };
    let (here, there) = (ours.len(), theirs.len());
    // Writing to a String cannot fail.
    let _ = write!(text, " (lengths {here}, {there})");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_its_place() {
        for (theirs, wanted) in [
            (&[1, 2, 3][..], None),
            (
                &[1, 9, 3],
                Some("token 1 is 2 here and 9 in the engine (lengths 3, 3)"),
            ),
            (&[1, 2], Some("one is the other's beginning (lengths 3, 2)")),
            (&[], Some("one is the other's beginning (lengths 3, 0)")),
        ] {
            let found = difference(&[1, 2, 3], theirs);
            assert_eq!(found.as_deref(), wanted, "{theirs:?}");
        }
    }

    #[test]
    fn each_pair_of_answers_has_its_meaning() {
        let asked = Asked {
            worker: WorkerId::new("w").unwrap(),
            probe: Probe::new("http://127.0.0.1:1"),
            files: Arc::new(Model::demo().unwrap()),
            name: "m".to_owned(),
        };
        let refused = || {
            Err(ModelError::Encode {
                reason: "no".to_owned(),
            })
        };
        let differs = |text: &str| Finding::Differs(text.to_owned());
        let [plain, tools, one, _] = &samples(&asked.files)[..] else {
            panic!("four samples");
        };
        let short = one.unexpanded(&asked.files).unwrap();
        let tokens = || Ok(vec![1]);
        for (sample, ours, theirs, wanted) in [
            (plain, tokens(), Theirs::Tokens(vec![1]), Finding::Same),
            (plain, refused(), Theirs::Refused, Finding::Same),
            (plain, tokens(), Theirs::Refused, Finding::NoneTold),
            (plain, tokens(), Theirs::NotThere, Finding::NoneTold),
            (
                tools,
                tokens(),
                Theirs::Refused,
                differs("prompt with tools: the engine refuses it"),
            ),
            (
                tools,
                refused(),
                Theirs::Tokens(vec![1]),
                differs("prompt with tools: refused here, not by the engine: cannot tokenise: no"),
            ),
            (one, tokens(), Theirs::Refused, Finding::Same),
            (one, tokens(), Theirs::Tokens(short), Finding::Untold),
            (
                one,
                tokens(),
                Theirs::Tokens(vec![2]),
                differs(
                    "prompt with one image: token 0 is 1 here and 2 in the engine (lengths 1, 1)",
                ),
            ),
        ] {
            let about = format!("{} {theirs:?}", sample.what);
            assert_eq!(asked.finding(sample, ours, theirs), wanted, "{about}");
        }
    }
}
