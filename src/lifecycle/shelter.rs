//! Folders in which nobody else can put or replace a file.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::id::WorkerId;

/// Why there is no folder for this run.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("cannot use run folder {path}")]
    Io { path: String, source: io::Error },
    #[error(
        "run folder {path} belongs to uid {owner} with mode {mode:o}, but must belong to uid {uid} \
         alone (mode 700)"
    )]
    NotOurs {
        path: String,
        owner: u32,
        mode: u32,
        uid: u32,
    },
    #[error(
        "folder {path} belongs to uid {owner} with mode {mode:o}: others could replace the run \
         folder in it; name another folder as engine.run_dir"
    )]
    Open { path: String, owner: u32, mode: u32 },
    #[error("engine {worker} runs already: another process holds {path}")]
    Running { worker: WorkerId, path: String },
}

/// The folder of all runs below `base`, ours alone: `base` may hold other things.
pub(crate) fn prepare(base: Option<&Path>) -> Result<PathBuf, RunDirError> {
    let runs = runs(base);
    let base = runs.parent().unwrap_or(&runs);
    sheltered(base).map_err(in_folder(base))??;
    own(&runs).map_err(in_folder(&runs))??;
    Ok(runs)
}

/// The folder of a user's running programs: `kvlens-<uid>` below `base`, or without one below
/// `$XDG_RUNTIME_DIR` where that folder exists, else below `/tmp`.
pub fn runs(base: Option<&Path>) -> PathBuf {
    let session = || std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let base = base.map(Path::to_owned);
    let base = base.or_else(|| session().filter(|path| path.is_dir()));
    let base = base.unwrap_or_else(|| PathBuf::from("/tmp"));
    base.join(format!("kvlens-{}", geteuid().as_raw()))
}

/// A folder of ours alone for what a program keeps across its restarts: `told`, or `name` in the
/// folder of all runs below `base`.
///
/// # Errors
/// When it cannot be made, or others may replace it.
pub fn kept(told: Option<&Path>, base: Option<&Path>, name: &str) -> Result<PathBuf, RunDirError> {
    let path = match told {
        Some(path) => {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            sheltered(parent).map_err(in_folder(parent))??;
            path.to_owned()
        }
        None => prepare(base)?.join(name),
    };
    own(&path).map_err(in_folder(&path))??;
    Ok(path)
}

pub(crate) fn in_folder(path: &Path) -> impl Fn(io::Error) -> RunDirError {
    let path = path.display().to_string();
    move |source| RunDirError::Io {
        path: path.clone(),
        source,
    }
}

const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Makes `base` unless it is there, and refuses one in which others may rename what is not theirs.
fn sheltered(base: &Path) -> io::Result<Result<(), RunDirError>> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(base)?;
    let found = fs::metadata(base)?;
    let by_us = [0, geteuid().as_raw()].contains(&found.uid());
    let kept = found.mode() & OTHERS_WRITE == 0 || found.mode() & STICKY != 0;
    Ok((by_us && kept)
        .then_some(())
        .ok_or_else(|| RunDirError::Open {
            path: base.display().to_string(),
            owner: found.uid(),
            mode: found.mode() & 0o7777,
        }))
}

/// Makes `runs` unless it is there, and refuses one that others could have prepared: whoever may
/// write there could have us connect to sockets of theirs.
pub(crate) fn own(runs: &Path) -> io::Result<Result<(), RunDirError>> {
    match DirBuilder::new().mode(0o700).create(runs) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(runs)?;
    let uid = geteuid().as_raw();
    let ours = found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0;
    Ok(ours.then_some(()).ok_or_else(|| RunDirError::NotOurs {
        path: runs.display().to_string(),
        owner: found.uid(),
        mode: found.mode() & 0o7777,
        uid,
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_that_others_could_have_prepared_are_refused() {
        let base = || tempfile::tempdir().unwrap();
        for (mode, refused) in [(0o755, false), (0o1777, false), (0o777, true)] {
            let base = base();
            set(base.path(), mode);
            assert_eq!(prepare(Some(base.path())).is_err(), refused, "{mode:o}");
        }
        let open = base();
        set(&prepare(Some(open.path())).unwrap(), 0o755);
        let error = prepare(Some(open.path())).unwrap_err();
        assert!(error.to_string().contains("with mode 755"), "{error}");

        let linked = base();
        let name = runs(Some(linked.path()));
        std::os::unix::fs::symlink(open.path(), name).unwrap();
        assert!(prepare(Some(linked.path())).is_err(), "a link is refused");
    }
}
