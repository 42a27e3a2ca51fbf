//! The folder through which images go to the engines of this run.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::config::media::{MediaConfig, Transfer};
use crate::engine::run_dir::RunDir;
use crate::up::UpError;

/// A file system in memory, where the system has one.
const MEMORY: &str = "/dev/shm";

/// Ours alone, as the engines run under our own user.
const MODE: u32 = 0o700;

/// A folder that engines may read images from; removed when dropped.
#[derive(Debug)]
pub(crate) struct MediaFolder {
    path: PathBuf,
    /// `None` where the folder lies in the run's own.
    _in_memory: Option<RunDir>,
}

impl MediaFolder {
    /// Makes the folder, in memory where that can be; `None` where images go inside requests.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn create(media: &MediaConfig, run_dir: &RunDir) -> Result<Option<Self>, UpError> {
        if !media.enabled || media.transfer != Transfer::Shm {
            return Ok(None);
        }
        let memory = Path::new(MEMORY);
        let in_memory = memory.is_dir().then(|| RunDir::create(Some(memory)));
        let in_memory = in_memory.and_then(|made| {
            made.inspect_err(|error| warn!(%error, "images go through the run folder"))
                .ok()
        });
        let within = in_memory.as_ref().unwrap_or(run_dir);
        let path = within.path().join("media");
        let made = DirBuilder::new().mode(MODE).create(&path);
        made.map_err(|source| UpError::MediaFolder {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Some(Self {
            path,
            _in_memory: in_memory,
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
