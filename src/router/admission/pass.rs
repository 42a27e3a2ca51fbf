//! What the state decides of those who wait. All of it happens under the state's lock, and none of
//! it is told there.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::router::RouteError;
use crate::router::admission::busy::{Fit, open_to, served_name};
use crate::router::admission::{Admission, Admitted, Decided, Outcome, Waiter};
use crate::router::footprint::{Footprint, Wish};
use crate::router::state::State;
use crate::select::queue::{Entry, Ticket};

impl State {
    /// Places a request, or lets it wait; see [`crate::router::Router::admit`]. What this decides of
    /// others goes to `decided`.
    pub(crate) fn admit(
        &mut self,
        footprint: &Footprint,
        wish: &Wish,
        now: Instant,
        decided: &mut Vec<Decided>,
    ) -> Result<Admitted, RouteError> {
        let name = served_name(footprint);
        let mut fit = self.fit(name, wish, now);
        if fit == Fit::Busy {
            // Some of what makes them busy may be over by now.
            self.settle(now);
            fit = self.fit(name, wish, now);
        }
        let others_wait = self.admission.queue.has_waiting(&footprint.model);
        if fit == Fit::Nobody || (fit == Fit::Free && !others_wait) {
            return self.place(footprint, wish, now).map(Admitted::Placed);
        }
        // Who has waited long enough takes nobody's room.
        self.expire(now, decided);
        let (ticket, outcome) = self.wait(footprint, wish, now)?;
        if fit == Fit::Free {
            // Those before it may all be stuck elsewhere.
            decided.extend(self.let_in(now));
        }
        Ok(Admitted::Waits(ticket, outcome))
    }

    fn fit(&self, name: &str, wish: &Wish, now: Instant) -> Fit {
        let threshold = self.admission.threshold;
        threshold.fit(&self.workers, (name, wish), now)
    }

    /// Decides on all whose turn has come, and on those who have waited long enough.
    pub(crate) fn let_in(&mut self, now: Instant) -> Vec<Decided> {
        let mut decided = Vec::new();
        self.settle(now);
        self.expire(now, &mut decided);
        self.admission.looked = now;
        for model in self.admission.queue.models() {
            // No placement makes room, so who was found busy stays so in this pass.
            let mut busy = Vec::new();
            // Mostly all are busy again after one, and then nobody need be asked, however many wait.
            while self.fit(&model, &Wish::default(), now) != Fit::Busy
                && let Some(waiter) = self.next(&model, &mut busy, now)
            {
                decided.push(self.decide(waiter, now));
            }
        }
        decided
    }

    /// Decides on those that no worker can take any more.
    pub(crate) fn dismiss(&mut self, now: Instant) -> Vec<Decided> {
        let workers = &self.workers;
        let is_hopeless = |waiter: &Waiter| {
            let name = served_name(&waiter.footprint);
            let mut open = open_to(workers, (name, &waiter.wish), now);
            open.next().is_none()
        };
        let waiters = self.admission.waiters.iter();
        let hopeless = waiters.filter(|(_, waiter)| is_hopeless(waiter));
        let hopeless: Vec<Ticket> = hopeless.map(|(ticket, _)| *ticket).collect();
        let mut decided = Vec::new();
        for ticket in hopeless {
            let waiter = self.admission.take(ticket);
            decided.extend(waiter.map(|waiter| self.decide(waiter, now)));
        }
        decided
    }

    fn expire(&mut self, now: Instant, decided: &mut Vec<Decided>) {
        let admission = &mut self.admission;
        for ticket in admission.queue.expire(admission.elapsed(now)) {
            let waiter = admission.waiters.remove(&ticket);
            decided.extend(waiter.map(|waiter| Decided {
                answer: waiter.answer,
                outcome: Err(RouteError::QueueTimeout {
                    model: waiter.footprint.model.to_string(),
                    waited: admission.wait_max,
                }),
            }));
        }
    }

    fn wait(
        &mut self,
        footprint: &Footprint,
        wish: &Wish,
        now: Instant,
    ) -> Result<(Ticket, oneshot::Receiver<Outcome>), RouteError> {
        let full = |full| RouteError::QueueFull {
            model: footprint.model.to_string(),
            full,
        };
        let tokens = footprint.all_tokens();
        // Before anything is looked up: most is refused when there is least time for it.
        self.admission.queue.room_for(tokens).map_err(full)?;
        let entry = Entry {
            model: footprint.model.clone(),
            tenant: footprint.tenant.clone(),
            tokens,
            uncached_tokens: self.uncached_tokens(footprint, wish, now),
            priority: footprint.hints.priority,
            strict_priority: footprint.hints.strict_priority,
            is_retry: !wish.excluded.is_empty(),
            arrived: self.admission.elapsed(now),
        };
        let ticket = self.admission.queue.push(entry).map_err(full)?;
        let (answer, outcome) = oneshot::channel();
        let waiter = Waiter {
            footprint: footprint.clone(),
            wish: wish.clone(),
            since: now,
            answer,
        };
        self.admission.waiters.insert(ticket, waiter);
        Ok((ticket, outcome))
    }

    /// Tokens of a prompt that none of the ranks it may go to has cached.
    fn uncached_tokens(&self, footprint: &Footprint, wish: &Wish, now: Instant) -> u32 {
        let tokens = footprint.all_tokens();
        let seats = self.seats(footprint, now);
        let open = seats.iter().filter(|seat| {
            let is_meant = wish.names(&seat.worker, seat.rank);
            is_meant && seat.not_eligible.is_none() && !wish.excluded.contains(&seat.worker)
        });
        let uncached = open.map(|seat| seat.candidate.uncached_tokens(tokens));
        uncached.min().unwrap_or(tokens)
    }

    /// Takes the next of a model that has somewhere to go out of the queue; `busy` are the names for
    /// which nobody has room, whoever asks.
    fn next(&mut self, model: &str, busy: &mut Vec<Arc<str>>, now: Instant) -> Option<Waiter> {
        let workers = &self.workers;
        let Admission {
            queue,
            waiters,
            threshold,
            ..
        } = &mut self.admission;
        let fits = |ticket| {
            let Some(waiter) = waiters.get(&ticket) else {
                return true;
            };
            let name = served_name(&waiter.footprint);
            if busy.contains(name) {
                return false;
            }
            let fit = threshold.fit(workers, (name, &waiter.wish), now);
            if fit == Fit::Busy && waiter.wish.is_open() {
                busy.push(name.clone());
            }
            fit != Fit::Busy
        };
        let ticket = queue.pop(model, fits)?;
        waiters.remove(&ticket)
    }

    fn decide(&mut self, waiter: Waiter, now: Instant) -> Decided {
        let placed = self.place(&waiter.footprint, &waiter.wish, now);
        let queued = now.saturating_duration_since(waiter.since);
        Decided {
            answer: waiter.answer,
            outcome: placed.map(|chosen| (chosen, queued)),
        }
    }
}
