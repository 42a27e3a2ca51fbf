//! What GPUs had counted over their lives when an agent last looked, kept for the next one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::id::WorkerId;

/// The end of the file's name in the agent's folder, which several agents may share.
const FILE: &str = "gpus.json";

/// Uncorrected errors over each GPU's life, by its UUID.
#[derive(Debug, Default)]
pub(super) struct Lifetimes {
    before: BTreeMap<String, u64>,
    now: BTreeMap<String, u64>,
    file: Option<PathBuf>,
}

impl Lifetimes {
    /// Reads what an agent before this one kept; nothing where there is no such file, or none to be read.
    pub(super) fn read(folder: Option<&Path>, worker: &WorkerId) -> Self {
        let file = folder.map(|folder| folder.join(format!("{worker}.{FILE}")));
        let text = file.as_ref().and_then(|file| fs::read(file).ok());
        let before = text.and_then(|text| serde_json::from_slice(&text).ok());
        let before: BTreeMap<_, _> = before.unwrap_or_default();
        Self {
            now: before.clone(),
            before,
            file,
        }
    }

    /// What a GPU had counted before this agent began.
    pub(super) fn before(&self, uuid: &str) -> Option<u64> {
        self.before.get(uuid).copied()
    }

    /// Keeps what a GPU has counted now, where that is more or less than before.
    pub(super) fn note(&mut self, uuid: &str, counted: Option<u64>) {
        let Some(counted) = counted else {
            return;
        };
        if self.now.insert(uuid.to_owned(), counted) != Some(counted)
            && let Some(file) = &self.file
            && let Err(error) = write(file, &self.now)
        {
            warn!(%error, file = %file.display(), "counts of gpus are not kept");
        }
    }
}

fn write(file: &Path, counts: &BTreeMap<String, u64>) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec(counts)?)?;
    fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_knows_what_was_counted() {
        let folder = tempfile::tempdir().unwrap();
        let worker = WorkerId::new("gpu-0").unwrap();
        let mut first = Lifetimes::read(Some(folder.path()), &worker);
        assert_eq!(first.before("GPU-1"), None);
        first.note("GPU-1", Some(3));
        first.note("GPU-2", None);
        assert_eq!(first.before("GPU-1"), None, "it was counted in this life");
        let next = Lifetimes::read(Some(folder.path()), &worker);
        assert_eq!(
            (next.before("GPU-1"), next.before("GPU-2")),
            (Some(3), None)
        );
        fs::write(folder.path().join(format!("gpu-0.{FILE}")), "no JSON").unwrap();
        assert_eq!(
            Lifetimes::read(Some(folder.path()), &worker).before("GPU-1"),
            None
        );
    }
}
