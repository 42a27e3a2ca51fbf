//! The folder of this run: sockets, process ids, and what a killed run before it left behind.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use tracing::warn;

use crate::id::WorkerId;

const LOCK: &str = "lock";

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
}

/// A folder of this process alone, removed when dropped. While the process lives it holds the
/// folder's lock; a folder whose lock is free is a leftover.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes the folder in `kvlens-<uid>` below `base`, or below the default where there is none,
    /// after ending the engines and deleting the sockets that killed runs left there.
    ///
    /// # Errors
    /// When `base` cannot be made, or others may replace what is made there.
    pub fn create(base: Option<&Path>) -> Result<Self, RunDirError> {
        let base = base.map_or_else(default_base, Path::to_owned);
        sheltered(&base).map_err(in_folder(&base))??;
        // What is swept lies in a folder of ours alone: `base` may hold other things.
        let runs = base.join(format!("kvlens-{}", geteuid().as_raw()));
        own(&runs).map_err(in_folder(&runs))??;
        Self::create_in(&runs).map_err(in_folder(&runs))
    }

    fn create_in(runs: &Path) -> io::Result<Self> {
        // Held while folders are swept and made, so that nobody sweeps a folder not yet locked.
        let turn = open_lock(runs, true)?;
        turn.lock()?;
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
        Ok(Self { path, _lock: lock })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a worker's socket.
    pub fn socket(&self, worker: &WorkerId, name: &str) -> PathBuf {
        self.path.join(format!("{worker}.{name}"))
    }

    /// Writes down that `pid` leads the process group of a worker's engine.
    pub(crate) fn record(&self, worker: &WorkerId, pid: Pid) -> io::Result<()> {
        let start = start_time(pid).unwrap_or_default();
        let text = format!("{} {start}\n", pid.as_raw_nonzero());
        fs::write(self.path.join(format!("{worker}.pid")), text)
    }

    /// Removes what a worker's engine left: its sockets, on which the next one could not bind, and
    /// the record of its process.
    pub(crate) fn clear(&self, worker: &WorkerId) {
        // A worker's name has no dot, so the prefix is that of no other worker.
        let prefix = format!("{worker}.");
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                remove(&entry.path());
            }
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            warn!(path = %self.path.display(), %error, "run folder stays");
        }
    }
}

fn in_folder(path: &Path) -> impl Fn(io::Error) -> RunDirError {
    let path = path.display().to_string();
    move |source| RunDirError::Io {
        path: path.clone(),
        source,
    }
}

/// `$XDG_RUNTIME_DIR` where that folder exists, else `/tmp`.
fn default_base() -> PathBuf {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let session = session.filter(|path| path.is_dir());
    session.unwrap_or_else(|| PathBuf::from("/tmp"))
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
fn own(runs: &Path) -> io::Result<Result<(), RunDirError>> {
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
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "pid") {
            end_leftover(&fs::read_to_string(&file)?);
        }
    }
    fs::remove_dir_all(path)
}

/// Kills the process group of a record, if its leader is the very process that was recorded: a
/// number alone may by now be another's.
fn end_leftover(record: &str) {
    let mut words = record.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(number)), Some(Ok(start))) = (words.next(), words.next()) else {
        return;
    };
    let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
        return;
    };
    if start_time(pid) == Some(start) {
        warn!(pid = number, "ending an engine that a former run left");
        if let Err(error) = kill_process_group(pid, Signal::KILL) {
            warn!(pid = number, %error, "the engine cannot be ended");
        }
    }
}

/// When a process started, in clock ticks since the boot: together with its id it names one
/// process for good.
fn start_time(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The second field, the program's name in parentheses, may have spaces and parentheses of its
    // own; the start time is field 22, the 20th after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(path = %path.display(), %error, "file stays");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;

    fn base() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o700)).unwrap();
        base
    }

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
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
        let runs = base.path().join(format!("kvlens-{}", geteuid().as_raw()));
        own(&runs).unwrap().unwrap();
        runs
    }

    #[test]
    fn a_killed_runs_engine_is_ended_and_its_folder_removed() {
        let base = base();
        let left = runs(&base).join("123.0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let (mut engine, pid) = sleeper();
        let start = start_time(pid).unwrap();
        fs::write(left.join("gpu-0.pid"), format!("{} {start}\n", engine.id())).unwrap();
        fs::write(left.join("gpu-0.kv"), "").unwrap();

        let _run = RunDir::create(Some(base.path())).unwrap();
        assert!(!left.exists());
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&engine.wait().unwrap()),
            Some(9)
        );
    }

    #[test]
    fn a_foreign_process_with_a_recorded_number_is_left_alone() {
        let (mut other, pid) = sleeper();
        let start = start_time(pid).unwrap();
        for record in [
            format!("{} {}\n", other.id(), start + 1),
            "x y\n".to_owned(),
        ] {
            end_leftover(&record);
        }
        assert_eq!(other.try_wait().unwrap(), None, "it must still run");
        other.kill().unwrap();
        other.wait().unwrap();
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
    fn folders_that_others_could_have_prepared_are_refused() {
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        for (mode, refused) in [(0o755, false), (0o1777, false), (0o777, true)] {
            let base = base();
            set(base.path(), mode).unwrap();
            let made = RunDir::create(Some(base.path()));
            assert_eq!(made.is_err(), refused, "{mode:o}");
        }
        let open = base();
        set(&runs(&open), 0o755).unwrap();
        let error = RunDir::create(Some(open.path())).unwrap_err();
        assert!(error.to_string().contains("with mode 755"), "{error}");

        let linked = base();
        fs::remove_dir(runs(&linked)).unwrap();
        let name = format!("kvlens-{}", geteuid().as_raw());
        std::os::unix::fs::symlink(open.path(), linked.path().join(name)).unwrap();
        assert!(
            RunDir::create(Some(linked.path())).is_err(),
            "a link is refused"
        );
    }

    #[test]
    fn clearing_a_worker_leaves_its_neighbours() {
        let base = base();
        let run = RunDir::create(Some(base.path())).unwrap();
        let id = |text| WorkerId::new(text).unwrap();
        for name in ["gpu-1.kv", "gpu-1.pid", "gpu-10.kv"] {
            fs::write(run.path().join(name), "").unwrap();
        }
        run.clear(&id("gpu-1"));
        assert!(!run.socket(&id("gpu-1"), "kv").exists());
        assert!(run.socket(&id("gpu-10"), "kv").exists());
    }
}
