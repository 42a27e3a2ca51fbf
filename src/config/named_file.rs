//! Files that the configuration names: read whole up to a limit, secrets only where no other user
//! could.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What users beyond the owner and its group may not do with the file.
const WORLD: u32 = 0o007;

/// Why a file cannot be used; `what` is what it is for, as "key file".
#[derive(Debug, thiserror::Error)]
pub enum NamedFileError {
    #[error("cannot read {what} {path}")]
    Unreadable {
        what: &'static str,
        path: String,
        source: io::Error,
    },
    #[error(
        "{what} {path} has mode {mode:o}: every user here could use what is in it; run chmod o= {path}"
    )]
    World {
        what: &'static str,
        path: String,
        mode: u32,
    },
    #[error("{what} {path} is over {max} bytes")]
    TooLarge {
        what: &'static str,
        path: String,
        max: u64,
    },
}

/// The text of a file of secrets.
///
/// # Errors
/// When it cannot be read, anybody else can read or write it, or it is too large.
pub fn read_secret(
    what: &'static str,
    path: &Path,
    bytes_max: u64,
) -> Result<String, NamedFileError> {
    let file = open(what, path)?;
    let mode = mode(what, path, &file)?;
    if mode & WORLD != 0 {
        let path = path.display().to_string();
        return Err(NamedFileError::World { what, path, mode });
    }
    text(what, path, (file, bytes_max))
}

/// The text of a file that everybody may see, as a certificate.
///
/// # Errors
/// When it cannot be read or is too large.
pub fn read_public(
    what: &'static str,
    path: &Path,
    bytes_max: u64,
) -> Result<String, NamedFileError> {
    let file = open(what, path)?;
    text(what, path, (file, bytes_max))
}

fn open(what: &'static str, path: &Path) -> Result<File, NamedFileError> {
    File::open(path).map_err(|source| unreadable(what, path, source))
}

fn mode(what: &'static str, path: &Path, file: &File) -> Result<u32, NamedFileError> {
    let metadata = file.metadata();
    let metadata = metadata.map_err(|source| unreadable(what, path, source))?;
    Ok(metadata.mode() & 0o7777)
}

fn text(
    what: &'static str,
    path: &Path,
    (file, bytes_max): (File, u64),
) -> Result<String, NamedFileError> {
    let mut text = String::new();
    let limited = &mut file.take(bytes_max + 1);
    let read = limited.read_to_string(&mut text);
    read.map_err(|source| unreadable(what, path, source))?;
    if text.len() as u64 > bytes_max {
        return Err(NamedFileError::TooLarge {
            what,
            path: path.display().to_string(),
            max: bytes_max,
        });
    }
    Ok(text)
}

fn unreadable(what: &'static str, path: &Path, source: io::Error) -> NamedFileError {
    NamedFileError::Unreadable {
        what,
        path: path.display().to_string(),
        source,
    }
}
