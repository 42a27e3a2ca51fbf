//! Routers in other processes as a frontend sees them: asked over the bus one after the other, and
//! done without where none answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bus::{Bus, BusError, Replies, subjects, wire};
use crate::id::RouterId;
use crate::router::answers::{ALIVE_EVERY, WAITS_EVERY};
use crate::router::asked::{Answer, Asked, Placed, Request};
use crate::router::footprint::{Footprint, Wish};
use crate::router::state::BookingKey;
use crate::router::{Placement, RouteError, Router};
use crate::select::RouterMode;

/// A router that has not said that it is there for so long is not asked.
const SILENCE_MAX: Duration = ALIVE_EVERY.saturating_mul(4);

/// Longest wait for a router's first word, which it gives within 100 ms.
const FIRST_WORD: Duration = Duration::from_millis(300);

/// Longest wait for its next word while a request waits.
const NEXT_WORD: Duration = WAITS_EVERY.saturating_mul(3);

/// A router that failed one request is passed over for so long, where there is another.
const PASSED_OVER: Duration = Duration::from_secs(2);

/// Most routers that are known.
const ROUTERS_MAX: usize = 64;

/// Who chose a request's worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chooser {
    /// The router in this process.
    #[default]
    Here,
    Remote(RouterId),
    /// This process, by turns, because no router answered.
    Fallback {
        reason: &'static str,
    },
}

impl std::fmt::Display for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.write_str("here"),
            Self::Remote(router) => router.fmt(f),
            Self::Fallback { reason } => write!(f, "fallback; reason={reason}"),
        }
    }
}

/// The routers that a frontend asks.
#[derive(Debug)]
pub struct Remote {
    /// This frontend's own: it knows the workers, and holds the bookings that others are told of.
    local: Arc<Router>,
    bus: Bus,
    id: RouterId,
    life: u64,
    known: Mutex<BTreeMap<RouterId, Known>>,
}

/// What is known of a router.
#[derive(Clone, Copy, Debug)]
struct Known {
    heard: Instant,
    failed: Option<Instant>,
}

/// Why a router did not place a request.
enum NotPlaced {
    /// It cannot be placed, whoever is asked.
    Refused(RouteError),
    /// This one cannot say.
    Failed(BusError),
    /// It answers what cannot be followed from here.
    Useless(&'static str),
}

impl Remote {
    /// No router is known yet. `life` tells the bookings of this frontend from those of a former one.
    pub fn new(local: Arc<Router>, bus: Bus, (id, life): (RouterId, u64)) -> Arc<Self> {
        Arc::new(Self {
            local,
            bus,
            id,
            life,
            known: Mutex::default(),
        })
    }

    /// Hears which routers there are until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let hearing = async {
            loop {
                let mut alive = self.bus.hear(subjects::ALL_ALIVE.to_owned()).await;
                while let Some(heard) = alive.next().await {
                    let name = heard.subject.split('.').nth(2).map(RouterId::new);
                    if let Some(Ok(id)) = name {
                        self.note_alive(id);
                    }
                }
            }
        };
        stop.run_until_cancelled::<_>(hearing).await.unwrap_or(());
    }

    /// Lets a router choose a worker, and books the request there; where none answers, workers take
    /// turns.
    ///
    /// # Errors
    /// As [`Router::admit`].
    pub async fn admit(&self, footprint: &Footprint, wish: &Wish) -> Result<Placement, RouteError> {
        self.placed(footprint, wish, true).await
    }

    /// The same without a wait for room.
    ///
    /// # Errors
    /// As [`Router::place`].
    pub async fn place(&self, footprint: &Footprint, wish: &Wish) -> Result<Placement, RouteError> {
        self.placed(footprint, wish, false).await
    }

    /// What a router says of every candidate, as JSON; `None` where none answers.
    pub async fn explain(&self, footprint: &Footprint, wish: &Wish) -> Option<String> {
        let mut wish = wish.clone();
        wish.excluded.extend(self.local.barred());
        let request = Request::new(footprint, &wish);
        for router in self.to_ask() {
            let asked = self.bus.ask(subjects::explain(router.as_str()), &request);
            let Ok(mut replies) = asked.await else {
                continue;
            };
            if let Ok(payload) = replies.next(FIRST_WORD).await
                && let Ok(text) = wire::decode("an explanation", &payload)
            {
                return Some(text);
            }
        }
        None
    }

    /// The routers that say that they are there.
    pub fn routers(&self) -> Vec<RouterId> {
        self.to_ask()
    }

    async fn placed(
        &self,
        footprint: &Footprint,
        wish: &Wish,
        may_wait: bool,
    ) -> Result<Placement, RouteError> {
        let mut refused = None;
        let mut reason = "no_router";
        // What has failed from here is not known there.
        let mut asked_wish = wish.clone();
        asked_wish.excluded.extend(self.local.barred());
        let request = Request::new(footprint, &asked_wish);
        for router in self.to_ask() {
            let asked = self.ask(&router, (footprint, request.clone()), may_wait);
            match asked.await {
                Ok(placement) => return Ok(placement),
                Err(NotPlaced::Refused(error)) if !error.may_be_better_elsewhere() => {
                    return Err(error);
                }
                Err(NotPlaced::Refused(error)) => {
                    refused = Some(error);
                    reason = "refused";
                }
                Err(NotPlaced::Failed(error)) => {
                    self.note_failure(&router, &error);
                    reason = "no_answer";
                }
                Err(NotPlaced::Useless(why)) => {
                    debug!(%router, why, "router's answer cannot be followed");
                    reason = why;
                }
            }
        }
        let own = Wish {
            mode: wish.mode.or(Some(RouterMode::RoundRobin)),
            ..wish.clone()
        };
        let placed = match may_wait {
            true => self.local.admit(footprint, &own).await,
            false => self.local.place(footprint, &own),
        };
        // A router that answers knows better why than we do.
        let mut placement = placed.map_err(|error| refused.unwrap_or(error))?;
        self.local.count_fallback();
        placement.chooser = Chooser::Fallback { reason };
        Ok(placement)
    }

    async fn ask(
        &self,
        router: &RouterId,
        (footprint, request): (&Footprint, Request),
        may_wait: bool,
    ) -> Result<Placement, NotPlaced> {
        let key = self.local.reserve();
        let asked = Asked {
            from: self.id.clone(),
            life: self.life,
            key: key.0,
            may_wait,
            request,
        };
        let subject = subjects::place(router.as_str());
        let asked = self.bus.ask(subject, &asked).await;
        let mut replies = asked.map_err(NotPlaced::Failed)?;
        // Dropped with this future when the client goes away, and where no answer comes.
        let asking = Asking {
            local: &self.local,
            key,
        };
        let told = answer(&mut replies).await?;
        let placed = self.local.book_told(key, footprint, &told);
        let mut placement = placed.ok_or(NotPlaced::Useless("unknown_worker"))?;
        std::mem::forget(asking);
        placement.chooser = Chooser::Remote(router.clone());
        Ok(placement)
    }

    /// Those that are there, by name, so that all frontends ask the same one: it sees all they send.
    /// One that has just failed comes last.
    fn to_ask(&self) -> Vec<RouterId> {
        let now = Instant::now();
        let known = self.known();
        let there = known
            .iter()
            .filter(|(_, known)| now - known.heard < SILENCE_MAX);
        let (late, mut first): (Vec<_>, Vec<_>) = there.partition(|(_, known)| {
            known
                .failed
                .is_some_and(|failed| now - failed < PASSED_OVER)
        });
        first.extend(late);
        first.into_iter().map(|(id, _)| id.clone()).collect()
    }

    fn note_alive(&self, id: RouterId) {
        let heard = Instant::now();
        let mut known = self.known();
        known.retain(|_, known| heard - known.heard < SILENCE_MAX * 100);
        if !known.contains_key(&id) && known.len() < ROUTERS_MAX {
            info!(router = %id, "router found");
        } else if !known.contains_key(&id) {
            return;
        }
        let failed = known.get(&id).and_then(|known| known.failed);
        known.insert(id, Known { heard, failed });
    }

    /// Passes a router over for a while that has said nothing; what never reached it is not its fault.
    fn note_failure(&self, id: &RouterId, error: &BusError) {
        if !matches!(
            error,
            BusError::Silent { .. } | BusError::NoResponder { .. }
        ) {
            return debug!(router = %id, %error, "router cannot be asked");
        }
        let now = Instant::now();
        if let Some(known) = self.known().get_mut(id) {
            let former = known.failed.replace(now);
            if former.is_none_or(|former| now - former >= PASSED_OVER) {
                warn!(router = %id, %error, "router did not answer, the next is asked");
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<RouterId, Known>> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question whose answer is waited for: dropped, the router that was asked hears that nobody waits
/// any more.
struct Asking<'a> {
    local: &'a Router,
    key: BookingKey,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.local.lock().withdraw(self.key);
    }
}

async fn answer(replies: &mut Replies) -> Result<Box<Placed>, NotPlaced> {
    let mut patience = FIRST_WORD;
    loop {
        let payload = replies.next(patience).await.map_err(NotPlaced::Failed)?;
        match wire::decode("a placement", &payload) {
            Ok(Answer::Placed(told)) => return Ok(told),
            Ok(Answer::Refused(error)) => return Err(NotPlaced::Refused(error)),
            Ok(Answer::Waits) => patience = NEXT_WORD,
            Err(_) => return Err(NotPlaced::Useless("bad_answer")),
        }
    }
}

impl Router {
    fn reserve(&self) -> BookingKey {
        self.lock().reserve()
    }

    /// Books a request where another router has placed it.
    fn book_told(
        self: &Arc<Self>,
        key: BookingKey,
        footprint: &Footprint,
        told: &Placed,
    ) -> Option<Placement> {
        let chosen = self
            .lock()
            .book_told(key, footprint, told, Instant::now())?;
        Some(self.placement(chosen, told.queued))
    }

    /// Says that no KV events come here, so that nothing follows from their absence.
    pub fn hear_no_events(&self) {
        self.lock().hears_events = false;
    }

    fn count_fallback(&self) {
        self.metrics.router_fallbacks.inc();
    }
}
