//! Images as files in a folder in memory, for engines on this host.
//!
//! Below the folder that a worker's record names, each frontend has one of its own that only it may
//! write. A file is named after its image's digest, is complete once it has that name, and is never
//! replaced: what an engine reads is what was hashed. It stays while a request that names it is in
//! flight, and after that until room is needed.

use std::collections::HashMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::geteuid;
use tracing::{info, warn};
use url::Url;

use crate::id::MediaDigest;
use crate::lifecycle::folder::OwnFolder;
use crate::media::Image;
use crate::media::lru::Lru;

/// The engine, which is in the group of the folder, may read and no more; others may not even that.
const FOLDER_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// How long a folder that cannot be used is left alone: an operator's mend shows soon, and a broken
/// folder costs one attempt a minute.
const PAUSE: Duration = Duration::from_secs(60);

/// Memory is given out in pages, so that a small file takes as much.
const PAGE_BYTES: usize = 4_096;

/// Why an image goes inside the request after all.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    #[error("images in use leave no room for {bytes} bytes within {max}")]
    Full { bytes: usize, max: usize },
    #[error("folder {path} has just been unusable")]
    Paused { path: String },
    #[error("folder {path} has mode {mode:o}: others could replace what is made in it")]
    NotSheltered { path: String, mode: u32 },
    #[error("cannot write in folder {path}")]
    Io { path: String, source: io::Error },
}

/// The images that lie in folders, bounded together. Clones share them.
#[derive(Clone, Debug)]
pub struct Shm {
    bytes_max: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    folders: HashMap<Arc<str>, Folder>,
    posted: Lru<(Number, MediaDigest), Arc<Posted>>,
    /// Bytes of files, those being written included.
    bytes: Arc<AtomicUsize>,
    next: u64,
}

/// Numbers our folders and temporary files.
type Number = u64;

/// What has become of a folder that a record names.
#[derive(Debug)]
enum Folder {
    Ours(Number, Arc<OwnFolder>),
    Unusable { until: Instant },
}

/// An image in its file; removed when dropped.
#[derive(Debug)]
struct Posted {
    path: PathBuf,
    url: String,
    _room: Room,
    _folder: Arc<OwnFolder>,
}

/// Bytes of the bound, given back when dropped.
#[derive(Debug)]
struct Room {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

/// An image that an engine may read; its file stays as long as this does.
#[derive(Clone, Debug)]
pub struct Lent(Arc<Posted>);

impl Lent {
    /// Where the engine finds it, as `file:///…`.
    pub fn url(&self) -> &str {
        &self.0.url
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Shm {
    /// No images yet; at most `bytes_max` bytes of them later.
    pub fn new(bytes_max: usize) -> Self {
        let held = Held {
            folders: HashMap::new(),
            posted: Lru::new(usize::MAX),
            bytes: Arc::default(),
            next: 0,
        };
        Self {
            bytes_max,
            held: Arc::new(Mutex::new(held)),
        }
    }

    /// Puts an image below `dir`, the folder that a worker's record names, unless it lies there
    /// already. Writes to files: not for a thread that others wait for.
    ///
    /// # Errors
    /// When there is no room, or the folder cannot be used.
    pub fn lend(&self, dir: &Arc<str>, image: &Image) -> Result<Lent, ShmError> {
        let (number, folder) = self.folder(dir)?;
        let key = (number, image.digest);
        if let Some(lent) = self.known(key, image) {
            return Ok(lent);
        }
        let room = self.room(image.bytes.len())?;
        let posted = self.post(key, folder.clone(), image, room);
        posted.map_err(|source| {
            match folder.path().is_dir() {
                true => self.pause(dir, &source.to_string()),
                // Its engine began anew: the next image makes another.
                false => self.forget(dir, None),
            }
            let path = dir.to_string();
            ShmError::Io { path, source }
        })
    }

    /// Notes that a folder cannot be used, by us or by an engine: images go inside requests for a
    /// while, then it is tried anew.
    pub fn pause(&self, dir: &Arc<str>, reason: &str) {
        warn!(folder = %dir, reason, pause = ?PAUSE, "images cannot go through this folder");
        let until = Instant::now() + PAUSE;
        self.forget(dir, Some(Folder::Unusable { until }));
    }

    /// Lets go of our folder below `dir`; its files go with the requests that name them.
    fn forget(&self, dir: &Arc<str>, now: Option<Folder>) {
        let mut held = self.lock();
        let former = held.folders.remove(dir);
        held.folders.extend(now.map(|now| (dir.clone(), now)));
        if let Some(Folder::Ours(number, _)) = former {
            held.posted.retain(|(folder, _)| *folder != number);
        }
    }

    /// Our own folder below `dir`, made and swept at its first use.
    fn folder(&self, dir: &Arc<str>) -> Result<(Number, Arc<OwnFolder>), ShmError> {
        match self.lock().folders.get(dir) {
            Some(Folder::Ours(number, folder)) => return Ok((*number, folder.clone())),
            Some(Folder::Unusable { until }) if Instant::now() < *until => {
                let path = dir.to_string();
                return Err(ShmError::Paused { path });
            }
            _ => {}
        }
        // Made without the lock, for a sweep may take long; of two the first one stays.
        let made = own_folder(Path::new(&**dir)).inspect_err(|error| {
            let source = std::error::Error::source(error).map(ToString::to_string);
            self.pause(dir, &source.unwrap_or_else(|| error.to_string()));
        })?;
        let mut held = self.lock();
        if let Some(Folder::Ours(number, folder)) = held.folders.get(dir) {
            return Ok((*number, folder.clone()));
        }
        info!(folder = %made.path().display(), "images go to engines through a folder");
        let (number, made) = (held.number(), Arc::new(made));
        let ours = Folder::Ours(number, made.clone());
        held.folders.insert(dir.clone(), ours);
        Ok((number, made))
    }

    fn known(&self, key: (Number, MediaDigest), image: &Image) -> Option<Lent> {
        let mut held = self.lock();
        let lent = Lent(held.posted.get(&key)?.clone());
        if is_ours(&lent.0.path, image) {
            return Some(lent);
        }
        // Somebody tidied up; it is written anew.
        held.posted.remove(&key);
        None
    }

    /// Room for a file; what nobody uses goes first, the least recently used before others.
    fn room(&self, bytes: usize) -> Result<Room, ShmError> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let mut held = self.lock();
        while held.bytes.load(Ordering::Relaxed) + bytes > self.bytes_max {
            let unused = |posted: &Arc<Posted>| Arc::strong_count(posted) == 1;
            if held.posted.remove_oldest(unused).is_none() {
                let max = self.bytes_max;
                return Err(ShmError::Full { bytes, max });
            }
        }
        held.bytes.fetch_add(bytes, Ordering::Relaxed);
        let held = held.bytes.clone();
        Ok(Room { held, bytes })
    }

    fn post(
        &self,
        key: (Number, MediaDigest),
        folder: Arc<OwnFolder>,
        image: &Image,
        room: Room,
    ) -> io::Result<Lent> {
        let part = folder.path().join(format!("{}.part", self.lock().number()));
        let written = write(&part, &image.bytes);
        if let Err(error) = written {
            remove(&part);
            return Err(error);
        }
        let extension = image.mime.strip_prefix("image/").unwrap_or("image");
        let path = folder.path().join(format!("{}.{extension}", image.digest));
        let url = Url::from_file_path(&path).map_err(|()| io::ErrorKind::InvalidInput)?;
        let mut held = self.lock();
        if let Some(posted) = held.posted.get(&key) {
            // Another request was faster with the same image.
            remove(&part);
            return Ok(Lent(posted.clone()));
        }
        if let Err(error) = renameat_with(CWD, &part, CWD, &path, RenameFlags::NOREPLACE) {
            remove(&part);
            return Err(error.into());
        }
        let bytes = room.bytes;
        let posted = Arc::new(Posted {
            path,
            url: url.into(),
            _room: room,
            _folder: folder,
        });
        held.posted.insert(key, posted.clone(), bytes);
        Ok(Lent(posted))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // What a panic left behind is at worst a file too many, which goes with the folder.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn number(&mut self) -> Number {
        self.next += 1;
        self.next
    }
}

fn own_folder(dir: &Path) -> Result<OwnFolder, ShmError> {
    let path = || dir.display().to_string();
    let failed = |source| ShmError::Io {
        path: path(),
        source,
    };
    let found = fs::symlink_metadata(dir).map_err(failed)?;
    let mode = found.mode() & 0o7777;
    if !found.is_dir() || mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(ShmError::NotSheltered { path: path(), mode });
    }
    OwnFolder::create_in(dir, FOLDER_MODE, |_| Ok(())).map_err(failed)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // A new file: never what a name leads to.
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(bytes)?;
    // The process's own mask may have taken the group's bit away.
    file.set_permissions(Permissions::from_mode(FILE_MODE))
}

/// Whether the file is still the one that was written: a file, not a link, ours, and as long.
fn is_ours(path: &Path, image: &Image) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_file()
            && found.uid() == geteuid().as_raw()
            && found.len() == image.bytes.len() as u64
    })
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "file stays");
        }
        _ => {}
    }
}
