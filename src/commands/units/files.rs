//! Files and folders that are written and removed, and what was done to each for who reads the outcome.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::commands::units::UnitsError;

/// `path`, which is absolute, below `prefix`.
pub(crate) fn below(prefix: &Path, path: &str) -> PathBuf {
    prefix.join(path.trim_start_matches('/'))
}

/// Does the work on files, and has a line for each path that it was asked for.
#[derive(Debug, Default)]
pub(crate) struct FileWork {
    lines: Vec<String>,
    /// Whether anything is other than it was.
    has_changed: bool,
}

impl FileWork {
    /// Says of a path what it is left as.
    pub(crate) fn leave(&mut self, verb: &str, path: &Path) {
        self.lines.push(format!("{verb:<9} {}", path.display()));
    }

    /// Says of a path what was done.
    pub(crate) fn did(&mut self, verb: &str, path: &Path) {
        self.leave(verb, path);
        self.has_changed = true;
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.has_changed
    }

    pub(crate) fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Writes a file, whole or not at all, unless it is so already.
    pub(crate) fn write(&mut self, path: &Path, text: &str, mode: u32) -> Result<(), UnitsError> {
        if fs::read_to_string(path).is_ok_and(|found| found == text) {
            self.leave("unchanged", path);
            return Ok(());
        }
        let is_there = path.symlink_metadata().is_ok();
        replace(path, text, mode).map_err(UnitsError::file("write", path))?;
        self.did(if is_there { "replaced" } else { "written" }, path);
        Ok(())
    }

    /// Writes a file unless there is one.
    pub(crate) fn write_new(
        &mut self,
        path: &Path,
        text: &str,
        mode: u32,
    ) -> Result<(), UnitsError> {
        if path.symlink_metadata().is_err() {
            return self.write(path, text, mode);
        }
        let found = fs::read_to_string(path).map_err(UnitsError::file("read", path))?;
        self.leave(if found == text { "unchanged" } else { "kept" }, path);
        Ok(())
    }

    /// Makes a folder of this mode, unless there is one.
    pub(crate) fn folder(&mut self, path: &Path, mode: u32) -> Result<(), UnitsError> {
        if path.is_dir() {
            return Ok(());
        }
        let made = DirBuilder::new().recursive(true).mode(mode).create(path);
        made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(UnitsError::file("make folder", path))?;
        self.did("made", path);
        Ok(())
    }

    /// Makes a folder that is its owner's alone, or makes it so where it is there. What a link leads to
    /// is left to who made the link.
    pub(crate) fn secret_folder(&mut self, path: &Path) -> Result<(), UnitsError> {
        self.folder(path, SECRET_FOLDER)?;
        let found = fs::symlink_metadata(path).map_err(UnitsError::file("look at", path))?;
        if found.is_dir() && found.permissions().mode() & 0o777 != SECRET_FOLDER {
            fs::set_permissions(path, Permissions::from_mode(SECRET_FOLDER))
                .map_err(UnitsError::file("close folder", path))?;
            self.did("closed", path);
        }
        Ok(())
    }

    /// Makes a link, unless it is there.
    pub(crate) fn link(&mut self, path: &Path, to: &str) -> Result<(), UnitsError> {
        if fs::read_link(path).is_ok_and(|found| found == Path::new(to)) {
            self.leave("unchanged", path);
            return Ok(());
        }
        self.remove(path)?;
        symlink(to, path).map_err(UnitsError::file("link", path))?;
        self.did("linked", path);
        Ok(())
    }

    /// Removes a file, a link, or a folder with all in it, where there is one.
    pub(crate) fn remove(&mut self, path: &Path) -> Result<(), UnitsError> {
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(UnitsError::file("look at", path))?,
        };
        let removed = match found.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        };
        removed.map_err(UnitsError::file("remove", path))?;
        self.did("removed", path);
        Ok(())
    }

    /// Removes a folder that has nothing in it.
    pub(crate) fn remove_empty(&mut self, path: &Path) -> Result<(), UnitsError> {
        match fs::remove_dir(path) {
            Ok(()) => self.did("removed", path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.leave("kept", path);
            }
            Err(error) => return Err(UnitsError::file("remove", path)(error)),
        }
        Ok(())
    }
}

/// The mode of a folder that nobody but its owner sees into.
const SECRET_FOLDER: u32 = 0o700;

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // One that a run left which was killed.
        _ => {}
    }
    let mut options = OpenOptions::new();
    // A link that others put there is not followed.
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&new)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

/// The names in a folder, sorted; none where there is no folder.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, UnitsError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(UnitsError::file("read folder", folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(UnitsError::file("read folder", folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
