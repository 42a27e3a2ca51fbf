//! A folder of this process alone, removed with it; what a killed process left is swept by the next.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

/// Its name in a folder, and that of the turn in the folder of all.
const LOCK: &str = "lock";

/// New files and folders belong to the group of a folder with this bit.
const SET_GROUP: u32 = 0o2000;

/// A folder `<pid>.<number>`, removed when dropped. While the process lives it holds the folder's
/// lock; a folder whose lock is free is a leftover.
#[derive(Debug)]
pub struct OwnFolder {
    path: PathBuf,
    _lock: File,
}

impl OwnFolder {
    /// Makes the folder in `parent` with this mode, after leftovers were removed there. What else a
    /// leftover names is ended by `end` first.
    ///
    /// # Errors
    /// When `parent` cannot be read or written.
    pub fn create_in(
        parent: &Path,
        mode: u32,
        end: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<Self> {
        // Held while folders are swept and made, so that nobody sweeps a folder not yet locked.
        let turn = make_lock(parent, mode)?;
        turn.lock()?;
        sweep(parent, end)?;
        let path = parent.join(std::process::id().to_string());
        // Two folders of one process differ by a number.
        let free = |n: &u32| !path.with_extension(n.to_string()).exists();
        let path = (0..)
            .find(free)
            .map_or(path.clone(), |n| path.with_extension(n.to_string()));
        DirBuilder::new().mode(mode).create(&path)?;
        // The process's own mask may have taken bits away; the group stays the parent's, if told so.
        let group = fs::metadata(&path)?.mode() & SET_GROUP;
        fs::set_permissions(&path, Permissions::from_mode(mode | group))?;
        let lock = make_lock(&path, mode)?;
        lock.lock()?;
        Ok(Self { path, _lock: lock })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %self.path.display(), %error, "folder stays");
            }
            _ => {}
        }
    }
}

/// Opens the lock of a folder of this mode; one that another user made may only be readable.
fn make_lock(folder: &Path, mode: u32) -> io::Result<File> {
    match open_lock(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            options.mode(mode & 0o666).open(folder.join(LOCK))
        }
        opened => opened,
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    File::open(folder.join(LOCK))
}

/// Removes the folders whose lock is free. What cannot be swept stays: it hinders no new one.
fn sweep(parent: &Path, end: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if !is_own(&path) {
            continue;
        }
        let swept = match open_lock(&path).map(|lock| lock.try_lock().map(|()| lock)) {
            Ok(Ok(_held)) => end(&path).and_then(|()| fs::remove_dir_all(&path)),
            Ok(Err(TryLockError::WouldBlock)) => Ok(()),
            Ok(Err(TryLockError::Error(error))) | Err(error) => Err(error),
        };
        if let Err(error) = swept {
            warn!(path = %path.display(), %error, "folder of a former run stays");
        }
    }
    Ok(())
}

/// Whether `path` is a folder, not a link to one, with a name like ours: `<pid>.<number>`.
fn is_own(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    let parts = name.as_deref().and_then(|name| name.split_once('.'));
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    parts.is_some_and(|(pid, number)| is_number(pid) && is_number(number))
        && fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}
