//! Files and folders that are written and removed, and a record of each for who reads the outcome.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::commands::units::UnitsError;

/// `path`, which is absolute, below `prefix`.
pub(crate) fn below(prefix: &Path, path: &str) -> PathBuf {
    prefix.join(path.trim_start_matches('/'))
}

/// What was done, one line for each path.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Vec<String>,
}

impl Log {
    pub(crate) fn say(&mut self, verb: &str, path: &Path) {
        self.lines.push(format!("{verb:<9} {}", path.display()));
    }

    pub(crate) fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Writes a file, whole or not at all, unless it is so already.
    pub(crate) fn write(&mut self, path: &Path, text: &str, mode: u32) -> Result<(), UnitsError> {
        if fs::read_to_string(path).is_ok_and(|found| found == text) {
            self.say("unchanged", path);
            return Ok(());
        }
        replace(path, text, mode).map_err(UnitsError::file("write", path))?;
        self.say("written", path);
        Ok(())
    }

    /// Writes a file unless there is one.
    pub(crate) fn write_new(
        &mut self,
        path: &Path,
        text: &str,
        mode: u32,
    ) -> Result<(), UnitsError> {
        match fs::read_to_string(path) {
            Ok(found) if found == text => self.say("unchanged", path),
            Ok(_) => self.say("kept", path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.write(path, text, mode);
            }
            Err(error) => return Err(UnitsError::file("read", path)(error)),
        }
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
        self.say("made", path);
        Ok(())
    }

    /// Makes a link, unless it is there.
    pub(crate) fn link(&mut self, path: &Path, to: &str) -> Result<(), UnitsError> {
        if fs::read_link(path).is_ok_and(|found| found == Path::new(to)) {
            self.say("unchanged", path);
            return Ok(());
        }
        self.remove(path)?;
        symlink(to, path).map_err(UnitsError::file("link", path))?;
        self.say("linked", path);
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
        self.say("removed", path);
        Ok(())
    }

    /// Removes a folder that has nothing in it.
    pub(crate) fn remove_empty(&mut self, path: &Path) -> Result<(), UnitsError> {
        match fs::remove_dir(path) {
            Ok(()) => self.say("removed", path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.say("kept", path);
            }
            Err(error) => return Err(UnitsError::file("remove", path)(error)),
        }
        Ok(())
    }
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
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
