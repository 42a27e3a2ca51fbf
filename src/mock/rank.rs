//! One engine rank at work: a task that steps its scheduler, takes the time a GPU would, and
//! publishes what happened.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mock::publisher::Publisher;
use crate::mock::scheduler::{Admission, Progress, Scheduler, Sequence, SequenceId, Totals, Work};

/// Tokens per second; 0 is infinitely fast.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// Of one rank, over all its requests.
    pub prefill: f64,
    /// Of each request.
    pub decode: f64,
}

impl Speeds {
    /// How long a step takes: its new tokens one after the other, one token for all that decode.
    fn duration(self, work: Work) -> Duration {
        let mut seconds = 0.0;
        if self.prefill > 0.0 {
            seconds += work.prefill_tokens as f64 / self.prefill;
        }
        if self.decode > 0.0 && work.decoding > 0 {
            seconds += 1.0 / self.decode;
        }
        Duration::from_secs_f64(seconds)
    }
}

/// A rank's figures at the end of its last step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub running: usize,
    pub waiting: usize,
    pub usage: f64,
    pub totals: Totals,
}

/// The way to a rank's task. Shared by all handlers.
#[derive(Debug, Default)]
pub struct Rank {
    /// Holds at most one submission and one abort per open request, which the listener bounds.
    inbox: Mutex<Vec<Command>>,
    arrived: Notify,
    figures: Mutex<Figures>,
}

#[derive(Debug)]
enum Command {
    Submit(Box<Sequence>, Arc<Track>),
    Abort(SequenceId),
    Clear(oneshot::Sender<bool>),
}

impl Rank {
    pub fn submit(&self, sequence: Sequence, track: Arc<Track>) {
        self.send(Command::Submit(Box::new(sequence), track));
    }

    pub fn abort(&self, id: SequenceId) {
        self.send(Command::Abort(id));
    }

    /// Forgets the cache; false when a request holds blocks.
    pub async fn clear_cache(&self) -> bool {
        let (answer, cleared) = oneshot::channel();
        self.send(Command::Clear(answer));
        cleared.await.unwrap_or(false)
    }

    pub fn figures(&self) -> Figures {
        *lock(&self.figures)
    }

    fn send(&self, command: Command) {
        lock(&self.inbox).push(command);
        self.arrived.notify_one();
    }
}

/// How far one request has come, written by the rank and read by the handler.
#[derive(Debug)]
pub struct Track {
    state: Mutex<TrackState>,
    /// Wakes the handler; shared by all choices of its request.
    wake: Arc<Notify>,
    /// Wakes it for every token, not only the last.
    every_token: bool,
}

/// A reading of a [`Track`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TrackState {
    pub admission: Option<Admission>,
    pub produced: usize,
    pub finished: bool,
}

impl Track {
    pub fn new(wake: Arc<Notify>, every_token: bool) -> Self {
        Self {
            state: Mutex::default(),
            wake,
            every_token,
        }
    }

    pub fn read(&self) -> TrackState {
        *lock(&self.state)
    }

    pub fn admitted(&self, admission: Admission) {
        lock(&self.state).admission = Some(admission);
    }

    fn progressed(&self, progress: &Progress) {
        let mut state = lock(&self.state);
        state.produced = progress.produced;
        state.finished = progress.finished;
        drop(state);
        if self.every_token || progress.finished {
            self.wake.notify_one();
        }
    }
}

/// What a rank's task owns.
#[derive(Debug)]
pub struct Engine {
    rank: Arc<Rank>,
    scheduler: Scheduler,
    speeds: Speeds,
    publisher: Option<Publisher>,
    tracks: HashMap<SequenceId, Arc<Track>>,
}

impl Engine {
    pub fn new(
        rank: Arc<Rank>,
        scheduler: Scheduler,
        speeds: Speeds,
        publisher: Option<Publisher>,
    ) -> Self {
        Self {
            rank,
            scheduler,
            speeds,
            publisher,
            tracks: HashMap::new(),
        }
    }

    /// Works until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.take_commands();
            let work = self.scheduler.schedule();
            if work.is_empty() {
                self.report();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.rank.arrived.notified() => {}
                }
                continue;
            }
            self.work(self.speeds.duration(work)).await;
            let progress = self.scheduler.finish_step();
            // As in vLLM, whose scheduler hands its events over before a step's tokens leave it.
            let events = self.scheduler.take_events();
            if let Some(publisher) = &mut self.publisher {
                publisher.publish(&events).await;
            }
            progress.iter().for_each(|progress| self.deliver(progress));
            self.report();
        }
    }

    /// Lets the step's time pass; aborts take effect meanwhile.
    async fn work(&mut self, duration: Duration) {
        if duration.is_zero() {
            // Handlers run between steps even when a step costs nothing.
            tokio::task::yield_now().await;
            return;
        }
        let end = Instant::now() + duration;
        let rank = Arc::clone(&self.rank);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                () = rank.arrived.notified() => self.take_commands(),
            }
        }
    }

    fn take_commands(&mut self) {
        let commands = std::mem::take(&mut *lock(&self.rank.inbox));
        for command in commands {
            match command {
                Command::Submit(sequence, track) => {
                    self.tracks.insert(sequence.id, track);
                    self.scheduler.submit(*sequence);
                }
                Command::Abort(id) => {
                    if self.tracks.remove(&id).is_some() {
                        self.scheduler.abort(id);
                    }
                }
                Command::Clear(answer) => {
                    // The one who asked may have gone; the cache is cleared all the same.
                    let _ = answer.send(self.scheduler.clear_cache());
                }
            }
        }
    }

    fn deliver(&mut self, progress: &Progress) {
        if let Some(track) = self.tracks.get(&progress.id) {
            track.progressed(progress);
        }
        if progress.finished {
            self.tracks.remove(&progress.id);
        }
    }

    fn report(&self) {
        *lock(&self.rank.figures) = Figures {
            running: self.scheduler.running_len(),
            waiting: self.scheduler.waiting_len(),
            usage: self.scheduler.usage(),
            totals: self.scheduler.totals(),
        };
    }
}

// No lock is held across a panic that would leave its value half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
