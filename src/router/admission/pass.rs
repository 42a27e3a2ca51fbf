//! What the state decides of those who wait. All of it happens under the state's lock, and none of
//! it is told there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::router::RouteError;
use crate::router::admission::busy::{Fit, open_to, served_name};
use crate::router::admission::{Admission, Decided, Outcome, Waiter};
use crate::router::footprint::{Footprint, Wish};
use crate::router::state::{Chosen, State};
use crate::select::queue::{Entry, QueueFull, Ticket};

impl State {
    /// Lets a request come, to be decided on with others that come at the same instant; its ticket,
    /// and where it is told.
    pub(crate) fn arrive(
        &mut self,
        footprint: &Footprint,
        wish: &Wish,
        now: Instant,
    ) -> (Ticket, oneshot::Receiver<Outcome>) {
        let (answer, outcome) = oneshot::channel();
        let waiter = Waiter {
            footprint: footprint.clone(),
            wish: wish.clone(),
            since: now,
            answer,
        };
        let ticket = self.admission.queue.ticket();
        self.admission.arrivals.push_back((ticket, waiter));
        (ticket, outcome)
    }

    /// Places the first that has come, or lets it wait. What this decides of others is told with it.
    pub(crate) fn receive(&mut self, now: Instant) -> Option<Vec<Decided>> {
        let (ticket, waiter) = self.admission.arrivals.pop_front()?;
        let mut decided = Vec::new();
        self.admit(ticket, waiter, &mut decided, now);
        Some(decided)
    }

    /// Puts all that have come into the order in which they would leave the queue; how many they are.
    pub(crate) fn order_arrivals(&mut self, now: Instant) -> usize {
        let mut arrivals = std::mem::take(&mut self.admission.arrivals);
        let count = arrivals.len();
        if count < 2 {
            self.admission.arrivals = arrivals;
            return count;
        }
        let entries = arrivals.iter().map(|(ticket, waiter)| {
            let entry = self.entry(waiter, now);
            (*ticket, entry)
        });
        let order = self.admission.queue.order(entries);
        let places: HashMap<Ticket, usize> = order.into_iter().zip(0..).collect();
        let place = |(ticket, _): &(Ticket, Waiter)| places.get(ticket).copied();
        arrivals.make_contiguous().sort_by_key(place);
        self.admission.arrivals = arrivals;
        count
    }

    fn admit(&mut self, ticket: Ticket, waiter: Waiter, decided: &mut Vec<Decided>, now: Instant) {
        let name = served_name(&waiter.footprint);
        let mut fit = self.fit(name, &waiter.wish, now);
        if fit == Fit::Busy {
            // Some of what makes them busy may be over by now.
            self.settle(now);
            fit = self.fit(name, &waiter.wish, now);
        }
        let others_wait = self.admission.queue.has_waiting(&waiter.footprint.model);
        if fit == Fit::Nobody || (fit == Fit::Free && !others_wait) {
            let outcome = self.place(&waiter.footprint, &waiter.wish, now);
            return decided.push(waiter.told(ticket, None, outcome));
        }
        // Who has waited long enough takes nobody's room.
        self.expire(now, decided);
        if let Err(full) = self.stand(ticket, &waiter, now) {
            let model = waiter.footprint.model.to_string();
            let outcome = Err(RouteError::QueueFull { model, full });
            return decided.push(waiter.told(ticket, None, outcome));
        }
        self.admission.waiters.insert(ticket, waiter);
        if fit == Fit::Free {
            // Those before it may all be stuck elsewhere.
            decided.extend(self.let_in(now));
        }
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
                && let Some(next) = self.next(&model, &mut busy, now)
            {
                decided.push(self.decide(next, now));
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
            decided.extend(waiter.map(|waiter| self.decide((ticket, waiter), now)));
        }
        decided
    }

    fn expire(&mut self, now: Instant, decided: &mut Vec<Decided>) {
        let admission = &mut self.admission;
        for ticket in admission.queue.expire(admission.elapsed(now)) {
            let waiter = admission.waiters.remove(&ticket);
            decided.extend(waiter.map(|waiter| {
                let error = RouteError::QueueTimeout {
                    model: waiter.footprint.model.to_string(),
                    waited: admission.wait_max,
                };
                waiter.told(ticket, Some(admission.wait_max), Err(error))
            }));
        }
    }

    fn stand(&mut self, ticket: Ticket, waiter: &Waiter, now: Instant) -> Result<(), QueueFull> {
        // Before anything is looked up: most is refused when there is least time for it.
        let tokens = waiter.footprint.all_tokens();
        let tenant = &waiter.footprint.tenant;
        self.admission.queue.room_for(tenant, tokens)?;
        let entry = self.entry(waiter, now);
        self.admission.queue.push(ticket, entry)
    }

    fn entry(&self, waiter: &Waiter, now: Instant) -> Entry {
        let Waiter {
            footprint, wish, ..
        } = waiter;
        Entry {
            model: footprint.model.clone(),
            tenant: footprint.tenant.clone(),
            tokens: footprint.all_tokens(),
            uncached_tokens: self.uncached_tokens(footprint, wish, now),
            priority: footprint.hints.priority,
            strict_priority: footprint.hints.strict_priority,
            is_retry: !wish.excluded.is_empty(),
            arrived: self.admission.elapsed(waiter.since),
        }
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
    fn next(
        &mut self,
        model: &str,
        busy: &mut Vec<Arc<str>>,
        now: Instant,
    ) -> Option<(Ticket, Waiter)> {
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
        Some((ticket, waiters.remove(&ticket)?))
    }

    fn decide(&mut self, (ticket, waiter): (Ticket, Waiter), now: Instant) -> Decided {
        let outcome = self.place(&waiter.footprint, &waiter.wish, now);
        let queued = now.saturating_duration_since(waiter.since);
        waiter.told(ticket, Some(queued), outcome)
    }
}

impl Waiter {
    fn told(
        self,
        ticket: Ticket,
        queued: Option<Duration>,
        outcome: Result<Chosen, RouteError>,
    ) -> Decided {
        Decided {
            ticket,
            answer: self.answer,
            queued,
            outcome,
        }
    }
}
