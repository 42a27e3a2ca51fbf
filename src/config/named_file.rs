//! Files that the configuration names: read whole up to a limit, secrets only where no other user
//! could.
//!
//! `credential:NAME` instead of a path is a file that systemd gives to one unit alone. A unit of role
//! `R` loads the folder `/etc/kvlens/credentials/R` as `kvlens`, so that its file `NAME` is
//! `$CREDENTIALS_DIRECTORY/kvlens_NAME`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::units::CREDENTIALS_DIR;

/// What a name begins with that is a credential's and no path.
const CREDENTIAL: &str = "credential:";

/// Where systemd says that a unit's credentials are.
const DIRECTORY_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// What the units call the folder of a role's credentials.
const PREFIX: &str = "kvlens_";

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
    #[error(
        "{what} {path} has no name that a credential can have: letters, digits, -, _ and . after \
         credential:"
    )]
    CredentialName { what: &'static str, path: String },
    #[error(
        "{what} {path} is a credential, and this process has none: run it as a unit, which has \
         LoadCredential=kvlens:{folder}/<role>, or name a file by its path",
        folder = CREDENTIALS_DIR
    )]
    NoCredentials { what: &'static str, path: String },
    #[error(
        "{what} {path} is not among this unit's credentials: write {source_path}, mode 600, and start \
         the unit again"
    )]
    CredentialMissing {
        what: &'static str,
        path: String,
        source_path: String,
    },
}

/// The file that `path` stands for: itself, or what systemd made of a credential's source.
///
/// # Errors
/// When it is a credential that this process was not given, or whose source everybody can read.
pub fn located(what: &'static str, path: &Path) -> Result<PathBuf, NamedFileError> {
    let given = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from);
    located_in(what, path, given.as_deref(), Path::new(CREDENTIALS_DIR))
}

/// Whether `path` is a credential, which systemd copies when it starts a unit.
pub fn is_credential(path: &Path) -> bool {
    path.to_string_lossy().starts_with(CREDENTIAL)
}

/// Whether `path` is a credential and this process has none, so that only a unit could read it.
pub fn is_for_a_unit(path: &Path) -> bool {
    is_credential(path) && std::env::var_os(DIRECTORY_VARIABLE).is_none()
}

fn located_in(
    what: &'static str,
    path: &Path,
    given: Option<&Path>,
    sources: &Path,
) -> Result<PathBuf, NamedFileError> {
    let shown = path.to_string_lossy().into_owned();
    let Some(name) = shown.strip_prefix(CREDENTIAL) else {
        return Ok(path.to_owned());
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || !name.bytes().all(legal) {
        return Err(NamedFileError::CredentialName { what, path: shown });
    }
    let Some(given) = given else {
        return Err(NamedFileError::NoCredentials { what, path: shown });
    };
    let role = role_of(given);
    let source = sources.join(role.unwrap_or("<role>")).join(name);
    let source_path = source.display().to_string();
    let found = given.join(format!("{PREFIX}{name}"));
    if !found.exists() {
        return Err(NamedFileError::CredentialMissing {
            what,
            path: shown,
            source_path,
        });
    }
    // Seen from here, its folder is open to all users; in a folder of root's alone its own mode
    // is of no account.
    match fs::metadata(&source) {
        Ok(seen) if seen.mode() & WORLD != 0 => Err(NamedFileError::World {
            what,
            path: source_path,
            mode: seen.mode() & 0o7777,
        }),
        _ => Ok(found),
    }
}

/// The role of the unit that was given credentials in `folder`: `frontend` in
/// `/run/credentials/kvlens-frontend.service`, `engine` in `…/kvlens-engine-podman@gpu-0.service`.
fn role_of(folder: &Path) -> Option<&str> {
    let unit = folder.file_name()?.to_str()?;
    let name = unit.strip_prefix("kvlens-")?;
    name.split(['-', '@', '.']).next()
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
    let path = &located(what, path)?;
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
    let path = &located(what, path)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What a unit of this name is given, and the sources of its role, with one key in both.
    fn unit(name: &str, role: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let given = folder.path().join(name);
        let sources = folder.path().join("credentials");
        fs::create_dir_all(sources.join(role)).unwrap();
        fs::create_dir(&given).unwrap();
        fs::write(sources.join(role).join("key"), "secret").unwrap();
        fs::write(given.join("kvlens_key"), "secret").unwrap();
        set(&sources.join(role).join("key"), 0o600);
        (folder, given, sources)
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refused(path: &str, given: Option<&Path>, sources: &Path) -> String {
        let error = located_in("key file", Path::new(path), given, sources).unwrap_err();
        error.to_string()
    }

    #[test]
    fn a_credential_is_the_units_own_file() {
        for (name, role) in [
            ("kvlens-frontend.service", "frontend"),
            ("kvlens-worker@gpu-0.service", "worker"),
            ("kvlens-engine-podman@gpu-0.service", "engine"),
        ] {
            let (_folder, given, sources) = unit(name, role);
            let found = |path| located_in("key file", Path::new(path), Some(&given), &sources);
            assert_eq!(found("credential:key").unwrap(), given.join("kvlens_key"));
            assert_eq!(found("/a/key").unwrap(), Path::new("/a/key"));
            let other = sources.join(role).join("other");
            assert_eq!(
                refused("credential:other", Some(&given), &sources),
                format!(
                    "key file credential:other is not among this unit's credentials: write {}, mode \
                     600, and start the unit again",
                    other.display()
                )
            );
        }
    }

    #[test]
    fn a_credential_needs_a_unit_and_a_name() {
        let text = refused("credential:key", None, Path::new("/none"));
        assert!(text.contains("run it as a unit"), "{text}");
        for path in ["credential:", "credential:../key", "credential:a/b"] {
            let text = refused(path, Some(Path::new("/none")), Path::new("/none"));
            assert!(
                text.contains("no name that a credential can have"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_source_that_everybody_reads_is_refused() {
        let (_folder, given, sources) = unit("kvlens-router.service", "router");
        let source = sources.join("router/key");
        set(&source, 0o644);
        assert_eq!(
            refused("credential:key", Some(&given), &sources),
            format!(
                "key file {0} has mode 644: every user here could use what is in it; run chmod o= {0}",
                source.display()
            )
        );
    }
}
