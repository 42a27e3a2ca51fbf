//! Folders of running programs: sockets, process ids, and what killed runs before them left behind.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::discovery::engine_file;
use crate::engine::leftover;
use crate::id::WorkerId;
use crate::lifecycle::shelter::{RunDirError, in_folder, own, prepare};

const LOCK: &str = "lock";

/// What an engine's life leaves in the folder: its sockets and the record of its processes.
const OF_A_LIFE: [&str; 4] = ["kv", "replay", "http.sock", PROCESSES];
const PROCESSES: &str = "pid";

/// A folder of this process alone, removed when dropped. While the process lives it holds the
/// folder's lock; a folder whose lock is free is a leftover.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
    /// Whether it is the folder of several workers, whose files begin with their names.
    is_shared: bool,
}

impl RunDir {
    /// Makes the folder in `kvlens-<uid>` below `base`, or below the default where there is none,
    /// after ending the engines and deleting the sockets that killed runs left there.
    ///
    /// # Errors
    /// When `base` cannot be made, or others may replace what is made there.
    pub fn create(base: Option<&Path>) -> Result<Self, RunDirError> {
        let runs = prepare(base)?;
        Self::create_in(&runs).map_err(in_folder(&runs))
    }

    /// Takes the folder `engine-<worker>` in `kvlens-<uid>` below `base`, after ending the engine and
    /// deleting the files that a killed run left in it. Others find the worker's engine there.
    ///
    /// # Errors
    /// When another process holds the folder, it cannot be made, or others may replace it.
    pub fn of_engine(base: Option<&Path>, worker: &WorkerId) -> Result<Self, RunDirError> {
        let runs = prepare(base)?;
        let path = engine_file::folder(base, worker);
        let failed = in_folder(&path);
        // Held while the folder is made and locked, because its last owner removes it.
        let _turn = turn(&runs).map_err(&failed)?;
        own(&path).map_err(&failed)??;
        let lock = open_lock(&path, true).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunDirError::Running {
                    worker: worker.clone(),
                    path: path.display().to_string(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        empty(&path).map_err(failed)?;
        Ok(Self {
            path,
            _lock: lock,
            is_shared: false,
        })
    }

    fn create_in(runs: &Path) -> io::Result<Self> {
        // Held while folders are swept and made, so that nobody sweeps a folder not yet locked.
        let _turn = turn(runs)?;
        sweep(runs)?;
        let path = runs.join(std::process::id().to_string());
        // Two runs of one process differ by a number.
        let free = |n: &u32| !path.with_extension(n.to_string()).exists();
        let path = (0..)
            .find(free)
            .map_or(path.clone(), |n| path.with_extension(n.to_string()));
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = open_lock(&path, true)?;
        lock.lock()?;
        Ok(Self {
            path,
            _lock: lock,
            is_shared: true,
        })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a worker's socket.
    pub fn socket(&self, worker: &WorkerId, name: &str) -> PathBuf {
        match self.is_shared {
            true => self.path.join(format!("{worker}.{name}")),
            false => self.path.join(name),
        }
    }

    /// Writes down the processes of a worker's engine.
    pub(crate) fn record(&self, worker: &WorkerId, processes: &str) -> io::Result<()> {
        fs::write(self.socket(worker, PROCESSES), processes)
    }

    /// Removes what a life of a worker's engine left: its sockets, on which the next one could not
    /// bind, and the record of its processes.
    pub(crate) fn clear(&self, worker: &WorkerId) {
        for name in OF_A_LIFE {
            let path = self.socket(worker, name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!(path = %path.display(), %error, "file stays");
                }
                _ => {}
            }
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Nobody may take the folder while it goes; without a turn it goes all the same.
        let _turn = self.path.parent().and_then(|runs| turn(runs).ok());
        if let Err(error) = fs::remove_dir_all(&self.path) {
            warn!(path = %self.path.display(), %error, "run folder stays");
        }
    }
}

/// Waits for the turn to make or remove folders of runs.
fn turn(runs: &Path) -> io::Result<File> {
    let turn = open_lock(runs, true)?;
    turn.lock()?;
    Ok(turn)
}

fn open_lock(folder: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(create).truncate(false);
    options.mode(0o600).open(folder.join(LOCK))
}

/// Ends the engines and removes the folders of runs whose lock is free. What cannot be swept stays:
/// it hinders no new run.
fn sweep(runs: &Path) -> io::Result<()> {
    for entry in fs::read_dir(runs)? {
        let path = entry?.path();
        if !is_run(&path) {
            continue;
        }
        let swept = match open_lock(&path, false).map(|lock| lock.try_lock().map(|()| lock)) {
            Ok(Ok(_held)) => sweep_run(&path),
            Ok(Err(TryLockError::WouldBlock)) => Ok(()),
            Ok(Err(TryLockError::Error(error))) | Err(error) => Err(error),
        };
        if let Err(error) = swept {
            warn!(path = %path.display(), %error, "folder of a former run stays");
        }
    }
    Ok(())
}

/// Whether `path` is a folder, not a link to one, with the name of a run: `<pid>.<number>`.
fn is_run(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    let parts = name.as_deref().and_then(|name| name.split_once('.'));
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    parts.is_some_and(|(pid, number)| is_number(pid) && is_number(number))
        && fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn sweep_run(path: &Path) -> io::Result<()> {
    for file in files(path)? {
        end_recorded(&file)?;
    }
    fs::remove_dir_all(path)
}

/// Ends what a killed run left in an engine's folder, and removes all files but the lock.
fn empty(path: &Path) -> io::Result<()> {
    for file in files(path)? {
        end_recorded(&file)?;
        if file.file_name().is_none_or(|name| name != LOCK) {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect()
}

/// Ends the engine whose processes are recorded in `file`, if that is such a record.
fn end_recorded(file: &Path) -> io::Result<()> {
    // `pid` in an engine's own folder, `<worker>.pid` in that of several.
    let name = file.extension().or(file.file_name());
    if name.is_some_and(|name| name == PROCESSES) {
        leftover::end(&fs::read_to_string(file)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::engine::leftover::tests::sleeper;

    fn base() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o700)).unwrap();
        base
    }

    #[test]
    fn a_run_has_its_own_folder_and_takes_it_away() {
        let base = base();
        let one = RunDir::create(Some(base.path())).unwrap();
        let two = RunDir::create(Some(base.path())).unwrap();
        assert_ne!(one.path(), two.path());
        assert!(one.path().is_dir(), "a run in progress is not swept");
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists());
        assert!(two.path().is_dir());
    }

    /// The folder of all runs below `base`.
    fn runs(base: &tempfile::TempDir) -> PathBuf {
        prepare(Some(base.path())).unwrap()
    }

    #[test]
    fn a_killed_runs_engine_is_ended_and_its_folder_removed() {
        let base = base();
        let left = runs(&base).join("123.0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let (mut engine, kin) = sleeper("run");
        fs::write(left.join("gpu-0.pid"), kin.record()).unwrap();
        fs::write(left.join("gpu-0.kv"), "").unwrap();

        let _run = RunDir::create(Some(base.path())).unwrap();
        assert!(!left.exists());
        assert_eq!(engine.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn an_engines_folder_has_one_owner_at_a_time() {
        let base = base();
        let worker = WorkerId::new("gpu-0").unwrap();
        let take = || RunDir::of_engine(Some(base.path()), &worker);
        let folder = take().unwrap();
        assert_eq!(
            folder.path(),
            engine_file::folder(Some(base.path()), &worker)
        );
        assert_eq!(folder.socket(&worker, "kv"), folder.path().join("kv"));
        let error = take().unwrap_err().to_string();
        assert!(error.starts_with("engine gpu-0 runs already"), "{error}");
        let other = WorkerId::new("gpu-1").unwrap();
        let _neighbour = RunDir::of_engine(Some(base.path()), &other).unwrap();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
        take().unwrap();
    }

    #[test]
    fn what_a_killed_owner_left_in_an_engines_folder_is_ended() {
        let base = base();
        let worker = WorkerId::new("gpu-0").unwrap();
        let left = engine_file::folder(Some(base.path()), &worker);
        runs(&base);
        DirBuilder::new().mode(0o700).create(&left).unwrap();
        let (mut engine, kin) = sleeper("folder");
        fs::write(left.join("pid"), kin.record()).unwrap();
        for name in ["kv", "engine.json", "control.sock", LOCK] {
            fs::write(left.join(name), "").unwrap();
        }
        // Another run that sweeps leaves it to its next owner.
        let _run = RunDir::create(Some(base.path())).unwrap();
        assert!(left.join("pid").exists());
        let folder = RunDir::of_engine(Some(base.path()), &worker).unwrap();
        assert_eq!(engine.wait().unwrap().signal(), Some(9));
        let kept: Vec<_> = files(folder.path()).unwrap();
        assert_eq!(kept, [left.join(LOCK)]);
    }

    #[test]
    fn what_no_run_made_is_left_alone() {
        let base = base();
        let elsewhere = base.path().join("elsewhere");
        let runs = runs(&base);
        let kept = [
            base.path().join("1.0"),
            elsewhere.clone(),
            runs.join("photos"),
            runs.join("7"),
            runs.join("7.x"),
            runs.join("8.0"),
        ];
        for folder in &kept {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("file"), "").unwrap();
        }
        // All but the last look like a run's in one way or another; the last has no lock.
        for folder in &kept[..5] {
            fs::write(folder.join(LOCK), "").unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, runs.join("9.0")).unwrap();

        let _run = RunDir::create(Some(base.path())).unwrap();
        for folder in kept {
            assert!(folder.join("file").exists(), "{}", folder.display());
        }
    }

    #[test]
    fn clearing_a_worker_leaves_its_neighbours() {
        let base = base();
        let run = RunDir::create(Some(base.path())).unwrap();
        let id = |text| WorkerId::new(text).unwrap();
        for name in ["gpu-1.kv", "gpu-1.http.sock", "gpu-1.pid", "gpu-10.kv"] {
            fs::write(run.path().join(name), "").unwrap();
        }
        run.clear(&id("gpu-1"));
        for name in OF_A_LIFE {
            assert!(!run.socket(&id("gpu-1"), name).exists(), "{name}");
        }
        assert!(run.socket(&id("gpu-10"), "kv").exists());
    }
}
