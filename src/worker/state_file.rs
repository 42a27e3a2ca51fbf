//! Keeps a rank's ledger in a file, so that an agent that was restarted, or killed, goes on where it
//! was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::events::zmq::Last;
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::ledger::saved::Saved;

/// Version of [`SavedRank`]'s form; a file of another one is left unread.
const VERSION: u32 = 2;

/// Shortest time between two savings: what came since is replayed, and an engine keeps minutes.
const PERIOD: Duration = Duration::from_secs(2);

/// A saving may take this part of the time at most: a large ledger is saved less often.
const PERIOD_PER_SAVING: u32 = 20;

/// Largest file that is read: some 10 million blocks.
const BYTES_MAX: u64 = 1 << 30;

/// A rank as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRank {
    version: u32,
    worker: WorkerId,
    rank: DpRank,
    pub incarnation: Incarnation,
    /// The last message that the ledger has taken in: whether the engine is still the process that
    /// sent it decides whether the rest is worth anything.
    pub last: Last,
    pub ledger: Saved,
}

impl SavedRank {
    /// A rank in today's form.
    pub fn new(
        worker: WorkerId,
        rank: DpRank,
        incarnation: Incarnation,
        last: Last,
        ledger: Saved,
    ) -> Self {
        Self {
            version: VERSION,
            worker,
            rank,
            incarnation,
            last,
            ledger,
        }
    }
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not of this form: {reason}")]
    Form { reason: String },
    #[error("it is of version {found}, not {VERSION}")]
    Version { found: u32 },
    #[error("it is of rank {rank} of {worker}")]
    OtherRank { worker: WorkerId, rank: DpRank },
}

/// The file of one rank, and when it is to be written next.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    worker: WorkerId,
    rank: DpRank,
    due: Instant,
    saved: Option<Last>,
    is_told: bool,
}

impl StateFile {
    /// The file of a rank in `folder`.
    pub fn new(folder: &Path, worker: &WorkerId, rank: DpRank) -> Self {
        Self {
            path: folder.join(format!("{worker}.{rank}.ledger")),
            worker: worker.clone(),
            rank,
            due: Instant::now() + PERIOD,
            saved: None,
            is_told: false,
        }
    }

    /// What was saved; `None` where nothing was, or nothing of use.
    pub fn load(&self) -> Option<SavedRank> {
        match self.read() {
            Ok(saved) => Some(saved),
            Err(StateError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = self.path.display();
                warn!(%path, %error, "saved ledger is not used");
                None
            }
        }
    }

    /// When the rank is to be saved next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Saves a rank, if there is one and it is not saved already. A failure costs the next agent its
    /// start and nothing now: it is logged, once in a row.
    pub fn save(&mut self, rank: Option<&SavedRank>) {
        let started = Instant::now();
        let fresh = rank.filter(|rank| self.saved != Some(rank.last));
        match fresh.map(|rank| self.write(rank).map(|()| rank.last)) {
            None => {}
            Some(Ok(last)) => {
                self.saved = Some(last);
                self.is_told = false;
            }
            Some(Err(_)) if self.is_told => {}
            Some(Err(error)) => {
                self.is_told = true;
                warn!(path = %self.path.display(), %error, "ledger cannot be saved");
            }
        }
        self.due = Instant::now() + PERIOD.max(started.elapsed() * PERIOD_PER_SAVING);
    }

    fn read(&self) -> Result<SavedRank, StateError> {
        let file = BufReader::new(File::open(&self.path)?).take(BYTES_MAX);
        let saved: SavedRank = ciborium::from_reader(file).map_err(|error| StateError::Form {
            reason: error.to_string(),
        })?;
        if saved.version != VERSION {
            return Err(StateError::Version {
                found: saved.version,
            });
        }
        if (&saved.worker, saved.rank) != (&self.worker, self.rank) {
            return Err(StateError::OtherRank {
                worker: saved.worker,
                rank: saved.rank,
            });
        }
        Ok(saved)
    }

    /// Written beside the file and renamed, so that a kill at any moment leaves a whole one.
    fn write(&self, rank: &SavedRank) -> Result<(), StateError> {
        let fresh = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = BufWriter::new(options.open(&fresh)?);
        ciborium::into_writer(rank, &mut file).map_err(|error| StateError::Form {
            reason: error.to_string(),
        })?;
        file.flush()?;
        Ok(fs::rename(fresh, &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Options};

    fn saved(worker: &str, sequence: u64) -> SavedRank {
        let ledger = Ledger::new("m", Options::default()).save();
        let worker = WorkerId::new(worker).unwrap();
        let last = Last::of(sequence, b"payload");
        SavedRank::new(worker, DpRank(1), Incarnation(7), last, ledger)
    }

    fn file(folder: &Path, worker: &str) -> StateFile {
        StateFile::new(folder, &WorkerId::new(worker).unwrap(), DpRank(1))
    }

    #[test]
    fn what_was_saved_last_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = file(folder.path(), "w");
        state.save(None);
        assert_eq!(state.load(), None);
        for sequence in [3, 4] {
            state.save(Some(&saved("w", sequence)));
            assert_eq!(file(folder.path(), "w").load(), Some(saved("w", sequence)));
            assert!(state.due() > Instant::now());
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn what_is_not_ours_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let state = file(folder.path(), "w");
        let mut other = saved("w", 1);
        other.version = VERSION + 1;
        let mut bytes = Vec::new();
        ciborium::into_writer(&other, &mut bytes).unwrap();
        let mut foreign = Vec::new();
        ciborium::into_writer(&saved("x", 1), &mut foreign).unwrap();
        let cut = foreign[..foreign.len() / 2].to_vec();
        for (content, part) in [
            (bytes, "version 3"),
            (foreign, "rank 1 of x"),
            (cut, "not of this form"),
            (b"garbage".to_vec(), "not of this form"),
        ] {
            fs::write(&state.path, content).unwrap();
            let error = state.read().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(state.load(), None);
        }
    }

    #[test]
    fn a_folder_that_is_gone_costs_nothing_but_the_saving() {
        let mut state = file(Path::new("/nonexistent/folder"), "w");
        state.save(Some(&saved("w", 1)));
        assert!(state.is_told);
        assert_eq!(state.load(), None);
    }
}
