//! Whether an engine still generates: it is asked for one token, each of its ranks.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::health::judge::Progress;
use crate::id::DpRank;
use crate::telemetry::labels::{Canary as Outcome, CanaryLabels};
use crate::telemetry::metrics::Metrics;
use crate::worker::gpus::EngineSeen;
use crate::worker::probe::{Probe, ProbeError};

/// Too short for a block, so that no cache keeps it.
const PROMPT: &str = "a";

/// The question under way, if any. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Canary {
    metrics: Arc<Metrics>,
    tasks: JoinSet<Answer>,
    /// How far the engine was when it was asked.
    asked_at: Option<Progress>,
    /// Something has happened since it was asked, of which the answer may know nothing.
    is_stale: bool,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Token,
    /// It has too much to do to say.
    Busy,
    NoToken,
}

impl Canary {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            tasks: JoinSet::new(),
            asked_at: None,
            is_stale: false,
        }
    }

    /// Asks the engine for a token of `model`, unless that is being done.
    pub(super) fn start(&mut self, engine: &EngineSeen, model: &str) {
        if self.tasks.is_empty() {
            let (probe, model) = (Probe::new(&engine.address), model.to_owned());
            let ranks = engine.ranks;
            self.tasks
                .spawn(async move { of_all(&probe, &model, ranks).await });
            self.asked_at = engine.progress;
            self.is_stale = false;
        }
    }

    /// Notes that something has happened which the answer under way may know nothing of.
    pub(super) fn doubt(&mut self) {
        self.is_stale = true;
    }

    /// Waits for the answer, which comes once for each question; never returns where none is under way.
    async fn answer(&mut self) -> Answer {
        match self.tasks.join_next().await {
            Some(answer) => answer.unwrap_or(Answer::NoToken),
            None => std::future::pending().await,
        }
    }

    /// Waits for the outcome: whether the engine generates; `None` where it has to be asked again.
    pub(super) async fn outcome(&mut self, engine: &EngineSeen) -> Option<bool> {
        let passed = match self.answer().await {
            Answer::Token => true,
            Answer::NoToken => false,
            // One that computes for others meanwhile has shown as much.
            Answer::Busy => self
                .asked_at
                .zip(engine.progress)
                .is_some_and(|(before, now)| now.generated_tokens > before.generated_tokens),
        };
        let outcome = match passed {
            true => Outcome::Passed,
            false => Outcome::Failed,
        };
        let labels = CanaryLabels { outcome };
        self.metrics.gpu_canaries.get_or_create(&labels).inc();
        (!(passed && self.is_stale)).then_some(passed)
    }
}

/// The worst answer of all ranks: each may compute on another GPU.
async fn of_all(probe: &Probe, model: &str, ranks: u32) -> Answer {
    let mut worst = Answer::Token;
    for rank in 0..ranks.max(1) {
        let rank = (ranks > 1).then_some(DpRank(rank));
        worst = worst.max(of_one(probe, model, rank).await);
    }
    worst
}

async fn of_one(probe: &Probe, model: &str, rank: Option<DpRank>) -> Answer {
    let question = json!({"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0});
    let answered = probe.post_to(rank, "/v1/completions", &question).await;
    let answer = match answered {
        Ok((status, body)) => read(status, &body),
        Err(error) => return silent(model, &error),
    };
    if answer == Answer::NoToken {
        warn!(
            model,
            rank = rank.map(|rank| rank.0),
            "engine does not generate a token"
        );
    }
    answer
}

fn silent(model: &str, error: &ProbeError) -> Answer {
    match error {
        ProbeError::TooLate { .. } => return Answer::Busy,
        // Its process is known to be away: whoever runs it says so.
        error if error.is_refused() => debug!(model, %error, "engine cannot be asked for a token"),
        error => warn!(model, %error, "engine does not generate a token"),
    }
    Answer::NoToken
}

/// Whether it gave a token. One that has no such endpoint or takes no text, as an engine for embeddings,
/// answers at least.
fn read(status: StatusCode, body: &[u8]) -> Answer {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    match status {
        StatusCode::OK if answer["choices"][0].is_object() => Answer::Token,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Answer::Busy,
        status if status.is_client_error() => Answer::Token,
        _ => Answer::NoToken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_passes_and_silence_does_not() {
        for (status, body, answer) in [
            (200, r#"{"choices":[{"text":"b"}]}"#, Answer::Token),
            (200, r#"{"choices":[]}"#, Answer::NoToken),
            (200, "", Answer::NoToken),
            (404, r#"{"error":"no such endpoint"}"#, Answer::Token),
            (400, "{}", Answer::Token),
            (429, "{}", Answer::Busy),
            (503, "", Answer::Busy),
            (
                500,
                r#"{"error":"CUDA error: illegal memory access"}"#,
                Answer::NoToken,
            ),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(read(status, body.as_bytes()), answer, "{status} {body}");
        }
    }

    #[tokio::test]
    async fn what_a_busy_engine_does_meanwhile_counts() {
        let told = |generated_tokens| {
            Some(Progress {
                running: 3,
                generated_tokens,
            })
        };
        for (answer, before, now, is_stale, outcome) in [
            (Answer::Token, None, None, false, Some(true)),
            (Answer::Token, None, None, true, None),
            (Answer::NoToken, told(1), told(9), false, Some(false)),
            (Answer::NoToken, None, None, true, Some(false)),
            (Answer::Busy, told(1), told(9), false, Some(true)),
            (Answer::Busy, told(1), told(9), true, None),
            (Answer::Busy, told(9), told(9), false, Some(false)),
            (Answer::Busy, None, None, false, Some(false)),
        ] {
            let mut canary = Canary::new(Arc::default());
            canary.tasks.spawn(async move { answer });
            (canary.asked_at, canary.is_stale) = (before, is_stale);
            let engine = EngineSeen {
                progress: now,
                ..EngineSeen::default()
            };
            assert_eq!(canary.outcome(&engine).await, outcome, "{answer:?}");
        }
    }
}
