//! The files of keys that the configuration names, read as the roles read them.

use std::io;
use std::path::Path;

use crate::commands::doctor::finding::{Check, Finding};
use crate::config::Config;
use crate::config::named_file::{NamedFileError, is_for_a_unit};
use crate::discovery::hash_key::{HashKeyError, hash_key};
use crate::frontend::tenants::Tenants;
use crate::http::keys::{KeyFileError, Keys, first_key};
use crate::telemetry::causes::told;

/// Reads each file that is named.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let tenants = |path: &Path| Tenants::read(Some(path)).map(|_| "names tenants".to_owned());
    let agents = |path: &Path| Keys::read(path).map(|keys| format!("{} keys", keys.count()));
    let shown =
        |path: &Path| first_key(path).map(|_| "its first key is shown to agents".to_owned());
    let files = [
        read(
            "frontend.key_file",
            config.frontend.key_file.as_deref(),
            tenants,
        ),
        read("worker.key_file", config.worker.key_file.as_deref(), agents),
        read(
            "discovery.key_file",
            config.discovery.key_file.as_deref(),
            shown,
        ),
    ];
    let mut findings: Vec<_> = files.into_iter().flatten().collect();
    if let Some(path) = &config.cluster.hash_key_file {
        findings.push(seal(config, path));
    }
    if findings.is_empty() {
        findings.push(Finding::skip(
            Check::Keys,
            "key files",
            "none is configured",
        ));
    }
    findings
}

fn read(
    key: &str,
    path: Option<&Path>,
    reading: impl Fn(&Path) -> Result<String, KeyFileError>,
) -> Option<Finding> {
    let path = path?;
    if is_for_a_unit(path) {
        let seen = format!("{}: only its unit can read it", path.display());
        return Some(Finding::skip(Check::Keys, key, seen));
    }
    Some(match reading(path) {
        Ok(seen) => Finding::ok(Check::Keys, key, format!("{}: {seen}", path.display())),
        Err(error) => Finding::fail(Check::Keys, key, told(&error), remedy(path, &error)),
    })
}

fn seal(config: &Config, path: &Path) -> Finding {
    const KEY: &str = "cluster.hash_key_file";
    let shown = path.display();
    if is_for_a_unit(path) {
        let seen = format!("{shown}: only its unit can read it");
        return Finding::skip(Check::Keys, KEY, seen);
    }
    match hash_key(&config.cluster) {
        Ok(key) => {
            let fingerprint = key.map(|key| key.fingerprint()).unwrap_or_default();
            let seen = format!("{shown}: fingerprint {fingerprint}");
            Finding::ok(Check::Keys, KEY, seen)
        }
        Err(HashKeyError::File(error)) => {
            Finding::fail(Check::Keys, KEY, told(&error), remedy(path, &error))
        }
        Err(error @ HashKeyError::Short { .. }) => {
            let next =
                format!("`openssl rand -hex 32 > {shown}` here and on every host of the cluster");
            Finding::fail(Check::Keys, KEY, told(&error), next)
        }
    }
}

/// What mends a file.
fn remedy(path: &Path, error: &KeyFileError) -> String {
    let path = path.display();
    match error {
        KeyFileError::File(NamedFileError::World { .. }) => format!("`chmod o= {path}`"),
        KeyFileError::File(NamedFileError::Unreadable { source, .. }) => match source.kind() {
            io::ErrorKind::NotFound => format!("write {path}, or unset the key"),
            _ => format!("`ls -l {path}`; run this as the role's own user, who must read it"),
        },
        KeyFileError::File(NamedFileError::CredentialMissing { source_path, .. }) => {
            format!("write {source_path}, mode 600")
        }
        KeyFileError::OnlyHash { .. } => {
            format!(
                "put the key itself on the first line of {path}: who only checks keys can do with hashes"
            )
        }
        _ => format!("edit {path}: one `name:key` a line"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn each_file_is_read_as_its_role_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode: u32| -> PathBuf {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let hash = "e".repeat(64);
        let good = write("good", "name:s3cret-and-long-enough-for-all\n", 0o600);
        let open = write("open", "name:s3cret-and-long-enough-for-all\n", 0o644);
        let hashed = write("hashed", &format!("name:sha256:{hash}\n"), 0o600);
        let short = write("short", "abc\n", 0o600);
        let gone = folder.path().join("gone");
        let set = |key: &str, path: &Path| {
            let mut config = Config::default();
            let path = Some(path.to_owned());
            match key {
                "frontend.key_file" => config.frontend.key_file = path,
                "worker.key_file" => config.worker.key_file = path,
                "discovery.key_file" => config.discovery.key_file = path,
                _ => config.cluster.hash_key_file = path,
            }
            config
        };
        for (key, path, status, part) in [
            ("frontend.key_file", &good, Status::Ok, "names tenants"),
            (
                "frontend.key_file",
                &short,
                Status::Fail,
                "one `name:key` a line",
            ),
            ("worker.key_file", &hashed, Status::Ok, "1 keys"),
            ("worker.key_file", &open, Status::Fail, "chmod o="),
            ("discovery.key_file", &good, Status::Ok, "shown to agents"),
            (
                "discovery.key_file",
                &hashed,
                Status::Fail,
                "the key itself",
            ),
            (
                "discovery.key_file",
                &gone,
                Status::Fail,
                "or unset the key",
            ),
            ("cluster.hash_key_file", &good, Status::Ok, "fingerprint"),
            (
                "cluster.hash_key_file",
                &short,
                Status::Fail,
                "openssl rand",
            ),
            ("cluster.hash_key_file", &open, Status::Fail, "chmod o="),
        ] {
            let found = check(&set(key, path));
            assert_eq!(found.len(), 1);
            assert_eq!(
                (found[0].subject.as_str(), found[0].status),
                (key, status),
                "{found:?}"
            );
            let said = found[0].next.as_ref().unwrap_or(&found[0].seen);
            assert!(said.contains(part), "{found:?}");
            assert!(!found[0].seen.contains("s3cret"), "{found:?}");
        }
        assert_eq!(check(&Config::default())[0].status, Status::Skip);
    }
}
