//! An engine's stream on its way to a client: passed as it comes, counted, and told apart from one
//! that broke off.

use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;

use crate::dispatch::EngineAnswer;
use crate::dispatch::stream::{EventKind, Splitter, classify};
use crate::frontend::answer::{Answer, Counts, with_nvext};
use crate::frontend::relay::{Outgoing, speaks_of_death};
use crate::frontend::transcript::{Shape, Tokens, Transcript};
use crate::frontend::tries::Failure;

/// A stream whose worker was taken out may still be whole: a busy engine fails its probes and goes
/// on. One that then says nothing for so long is over.
const GONE_GRACE: Duration = Duration::from_secs(10);

/// What comes next of a stream.
pub(crate) enum Step {
    /// All whole events at hand.
    Events(Bytes),
    /// It broke off.
    Broken(Failure),
    /// It has come to its end, or the client has been told.
    Ended,
}

#[derive(Debug)]
enum State {
    Open,
    /// The engine said `[DONE]`.
    Done,
    /// It broke off; nobody knows yet.
    Broken(Failure),
    /// It is over, and that is known.
    Over,
}

/// What a stream of which another engine may go on is held to.
struct Record {
    transcript: Transcript,
    /// Once another engine goes on: the lengths by which its usage is told.
    continued: Option<Tokens>,
}

/// An engine's stream, event by event.
pub(crate) struct StreamRelay {
    pub(crate) counts: Counts,
    engine: EngineAnswer,
    splitter: Splitter,
    event_bytes_max: usize,
    include_usage: bool,
    state: State,
    /// The answer's last piece, until what it is to say of the answer is known.
    last_piece: Option<Bytes>,
    record: Option<Record>,
    /// Events that are ready for the client.
    ready: Vec<Bytes>,
}

impl StreamRelay {
    pub(crate) fn new(answer: Answer, outgoing: &Outgoing, event_bytes_max: usize) -> Self {
        let shape = match outgoing.path {
            "/v1/completions" => Shape::Completion,
            _ => Shape::Chat,
        };
        let record = outgoing.continuable.is_some().then(|| Record {
            transcript: Transcript::new(shape),
            continued: None,
        });
        Self {
            counts: answer.counts,
            engine: answer.engine,
            splitter: Splitter::new(event_bytes_max),
            event_bytes_max,
            include_usage: outgoing.include_usage,
            state: State::Open,
            last_piece: None,
            record,
            ready: Vec::new(),
        }
    }

    /// Waits for the first event: an engine that fails before it can still be replaced.
    ///
    /// # Errors
    /// Why it failed.
    pub(crate) async fn begin(&mut self) -> Result<(), Failure> {
        loop {
            self.take_events();
            if !self.ready.is_empty() {
                return Ok(());
            }
            match std::mem::replace(&mut self.state, State::Over) {
                State::Broken(failure) => return Err(failure),
                state => self.state = state,
            }
            if !self.read().await {
                return Err(Failure::Faulty("the stream was empty".to_owned()));
            }
        }
    }

    /// What comes next.
    pub(crate) async fn step(&mut self) -> Step {
        loop {
            self.take_events();
            match self.ready.len() {
                0 => {}
                1 => return Step::Events(self.ready.remove(0)),
                // What came together goes together.
                _ => return Step::Events(std::mem::take(&mut self.ready).concat().into()),
            }
            match std::mem::replace(&mut self.state, State::Over) {
                State::Broken(failure) => return Step::Broken(failure),
                State::Over => return Step::Ended,
                state => self.state = state,
            }
            if !self.read().await {
                return Step::Ended;
            }
        }
    }

    /// The text that the client has; `None` where it has more than text, or nothing can go on: behind
    /// its end there is nothing to say.
    pub(crate) fn text(&self) -> Option<&str> {
        let transcript = &self.record.as_ref()?.transcript;
        (!transcript.is_finished()).then(|| transcript.text())?
    }

    /// Whether all has come but the stream's end, and the client need not be told the usage.
    pub(crate) fn only_lacks_its_end(&self) -> bool {
        let record = self.record.as_ref();
        let is_finished = record.is_some_and(|record| record.transcript.is_finished());
        is_finished && !self.include_usage
    }

    /// The end of a stream that lacks nothing else.
    pub(crate) fn end(&mut self) -> Bytes {
        self.release_last_piece(true);
        self.ready.push(Bytes::from_static(b"data: [DONE]\n\n"));
        std::mem::take(&mut self.ready).concat().into()
    }

    /// Goes on with another engine's answer.
    pub(crate) fn follow(&mut self, mut answer: Answer, tokens: Tokens) {
        answer.counts.follow(&self.counts);
        self.counts = answer.counts;
        self.engine = answer.engine;
        self.splitter = Splitter::new(self.event_bytes_max);
        self.state = State::Open;
        if let Some(record) = &mut self.record {
            record.continued = Some(tokens);
        }
    }

    /// Takes in what comes next; false at the proper end of the stream.
    async fn read(&mut self) -> bool {
        let gone = self.counts.placement.gone.clone();
        let chunk = self.engine.chunk();
        let overdue = async {
            gone.cancelled().await;
            tokio::time::sleep(GONE_GRACE).await;
        };
        let came = tokio::select! {
            chunk = chunk => chunk,
            () = overdue => {
                if matches!(self.state, State::Done) {
                    return false;
                }
                let reason = "the worker was taken out and is silent";
                self.state = State::Broken(Failure::Left(reason.to_owned()));
                return true;
            }
        };
        match came {
            Some(Ok(bytes)) => self.splitter.push(&bytes),
            // All has come, however the connection ends.
            Some(Err(_)) | None if matches!(self.state, State::Done) => return false,
            Some(Err(error)) => self.state = State::Broken(Failure::cut(&error)),
            None => {
                let reason = "the stream ended before its end";
                self.state = State::Broken(Failure::Died(reason.to_owned()));
            }
        }
        true
    }

    /// Takes note of all whole events that have arrived.
    fn take_events(&mut self) {
        while matches!(self.state, State::Open | State::Done) {
            match self.splitter.next_event() {
                Ok(Some(event)) => self.take(event),
                Ok(None) => break,
                Err(error) => self.state = State::Broken(Failure::Faulty(error.to_string())),
            }
        }
    }

    fn take(&mut self, event: Bytes) {
        match classify(&event) {
            EventKind::Piece => {
                self.counts.piece();
                self.take_piece(event);
            }
            EventKind::Usage(usage) => {
                self.counts.usage(usage);
                self.take_usage(event);
            }
            EventKind::Done => {
                self.release_last_piece(true);
                self.state = State::Done;
                self.ready.push(event);
            }
            EventKind::Error => {
                // The engine's own words may tell of its inside: the client gets ours.
                let reason = "the engine reported an error".to_owned();
                self.state = State::Broken(match speaks_of_death(&event) {
                    true => Failure::Died(reason),
                    false => Failure::Faulty(reason),
                });
            }
            EventKind::Other => self.ready.push(event),
        }
    }

    fn take_piece(&mut self, event: Bytes) {
        let event = match &mut self.record {
            Some(Record {
                transcript,
                continued: Some(_),
            }) => transcript.piece(&event),
            Some(record) => {
                record.transcript.note(&event);
                Some(event)
            }
            None => Some(event),
        };
        let Some(event) = event else {
            return;
        };
        self.release_last_piece(false);
        match self.counts.wants_nvext() && has_finish(&event) {
            true => self.last_piece = Some(event),
            false => self.ready.push(event),
        }
    }

    fn take_usage(&mut self, event: Bytes) {
        if !self.include_usage {
            return;
        }
        let record = self.record.as_ref();
        let continued = record.and_then(|record| Some((&record.transcript, record.continued?)));
        let event = match continued {
            Some((transcript, tokens)) => transcript.usage(&event, tokens),
            None => Some(event),
        };
        self.release_last_piece(false);
        let nvext = self.counts.nvext();
        self.ready.extend(event.map(|event| match nvext {
            Some(nvext) => with_nvext(&event, &nvext),
            None => event,
        }));
    }

    /// Lets the last piece go, with `nvext` where nothing but the stream's end comes behind it.
    fn release_last_piece(&mut self, is_last: bool) {
        let Some(piece) = self.last_piece.take() else {
            return;
        };
        let nvext = self.counts.nvext().filter(|_| is_last);
        self.ready.push(match nvext {
            Some(nvext) => with_nvext(&piece, &nvext),
            None => piece,
        });
    }
}

/// Whether a piece is a choice's last one. A text that says so has its quotes escaped.
fn has_finish(event: &[u8]) -> bool {
    memmem::find(event, b"\"finish_reason\":\"").is_some()
}
