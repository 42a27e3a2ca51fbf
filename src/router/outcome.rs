//! What became of requests on their workers: it opens and closes circuits.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use tracing::{error, info, warn};

use crate::health::Verdict;
use crate::id::WorkerId;
use crate::router::Router;
use crate::router::circuit::{Cause, Circuit, Passage};
use crate::router::state::State;
use crate::router::view::CircuitView;

impl Router {
    /// Notes that a worker refused a connection: it gets no requests for a while.
    pub fn refused(&self, worker: &WorkerId) {
        self.note_failure(worker, Cause::Refused);
    }

    /// Notes that a worker does not take our key: it gets no requests for a while.
    pub fn barred_us(&self, worker: &WorkerId) {
        self.note_failure(worker, Cause::Barred);
    }

    /// Notes that a worker failed under a request: some in a row, and it gets none for a while.
    pub fn failed(&self, worker: &WorkerId) {
        self.note_failure(worker, Cause::Failed);
    }

    /// Notes that a worker has begun an answer. To be called before the request's booking is
    /// dropped, lest another one try a worker that is known to answer.
    pub fn succeeded(&self, worker: &WorkerId) {
        let closed = self.make_room(|state, _| {
            let member = state.workers.get_mut(worker);
            member.is_some_and(|member| member.circuit.succeeded())
        });
        if closed {
            info!(%worker, "circuit closed: worker answers again");
        }
    }

    /// The workers that get nothing now, as seen from here alone: they failed, or are not heard.
    pub(crate) fn barred(&self) -> Vec<WorkerId> {
        let now = Instant::now();
        let state = self.lock();
        let barred = state
            .workers
            .values()
            .filter(|member| member.is_silent || member.circuit.passage(now).barrier().is_some());
        barred.map(|member| member.record.worker.clone()).collect()
    }

    /// The workers on the hosts of those of these that are not heard, themselves left out: the host may
    /// be cut off. This host's own are not meant.
    pub(crate) fn neighbours(&self, workers: &[WorkerId]) -> Vec<WorkerId> {
        let state = self.lock();
        let members = workers
            .iter()
            .filter_map(|worker| state.workers.get(worker));
        let silent = members.filter(|member| member.is_silent);
        let hosts: Vec<&str> = silent
            .filter_map(|member| host(&member.record.address))
            .collect();
        let near = state.workers.values().filter(|member| {
            let at = host(&member.record.address);
            at.is_some_and(|at| hosts.contains(&at)) && !workers.contains(&member.record.worker)
        });
        near.map(|member| member.record.worker.clone()).collect()
    }

    /// The verdict on a worker; `None` for one that is gone.
    pub fn verdict(&self, worker: &WorkerId) -> Option<Verdict> {
        let state = self.lock();
        let member = state.workers.get(worker);
        member.map(|member| member.record.verdict)
    }

    /// Whether a worker is held for failed because of a GPU, whatever its engine does.
    pub fn has_failed_gpu(&self, worker: &WorkerId) -> bool {
        let state = self.lock();
        let member = state.workers.get(worker);
        let gpus = member.map_or(&[][..], |member| &member.record.gpus);
        gpus.iter().any(|gpu| gpu.verdict == Verdict::Failed)
    }

    fn note_failure(&self, worker: &WorkerId, cause: Cause) {
        let opened = self.change_workers(|state, now| {
            let until = state.note_failure(worker, cause, now)?;
            Some(until.saturating_duration_since(now))
        });
        if let Some(pause) = opened {
            self.metrics.circuit_openings.inc();
            let text = cause.text();
            match cause {
                // Nothing but an operator mends it.
                Cause::Barred => {
                    error!(%worker, ?pause, cause = text, "circuit opened: worker gets no requests");
                }
                Cause::Refused | Cause::Failed => {
                    warn!(%worker, ?pause, cause = text, "circuit opened: worker gets no requests");
                }
            }
        }
    }
}

impl State {
    /// Until when a failure opens a worker's circuit; `None` where it does not.
    fn note_failure(&mut self, worker: &WorkerId, cause: Cause, now: Instant) -> Option<Instant> {
        let circuit = &mut self.workers.get_mut(worker)?.circuit;
        match (circuit.failed(cause, now), circuit.passage(now)) {
            (true, Passage::Open(opening)) => Some(opening.until),
            _ => None,
        }
    }
}

/// The host of an address; `None` for this one.
fn host(address: &str) -> Option<&str> {
    let (host, _) = address.strip_prefix("http://")?.rsplit_once(':')?;
    let is_here = host.starts_with("127.") || host == "localhost" || host == "[::1]";
    (!is_here).then_some(host)
}

/// A circuit as operators see it, its times on their clock.
pub(crate) fn shown(circuit: &Circuit, now: Instant) -> CircuitView {
    let clock = Timestamp::now();
    let text = |at: Instant| {
        let moved = match at.checked_duration_since(now) {
            Some(ahead) => SignedDuration::try_from(ahead).map(|ahead| clock.checked_add(ahead)),
            None => SignedDuration::try_from(now - at).map(|ago| clock.checked_sub(ago)),
        };
        // A pause is an hour at most, and the clock's range thousands of years.
        let moved = moved.map(Result::unwrap_or_default).unwrap_or_default();
        moved.strftime("%FT%TZ").to_string()
    };
    match circuit.passage(now) {
        Passage::Closed => CircuitView::Closed,
        Passage::Open(opening) => CircuitView::Open {
            since: text(opening.since),
            until: text(opening.until),
            cause: opening.cause.text(),
        },
        Passage::Probe(opening) | Passage::Probing(opening) => CircuitView::HalfOpen {
            since: text(opening.since),
            cause: opening.cause.text(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_has_a_name() {
        for (address, wanted) in [
            ("http://10.0.0.5:8100", Some("10.0.0.5")),
            ("http://[fd00::1]:8100", Some("[fd00::1]")),
            ("http://127.0.0.1:8100", None),
            ("http://[::1]:8100", None),
            ("unix:/run/http.sock", None),
        ] {
            assert_eq!(host(address), wanted);
        }
    }
}
