//! The programs that units start, by their absolute paths.

use std::path::{Path, PathBuf};

use clap::ValueHint;

use crate::commands::units::UnitsError;
use crate::commands::units::plan::HostPlan;
use crate::config::units::Role;

/// Folders that units cannot see into, or see their own of.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Folders of system programs that the PATH of a user may lack.
const SYSTEM: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin"];

/// Where the programs are that units start.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Programs {
    /// This program; the one that runs where not given
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    kvlens: Option<PathBuf>,
    /// etcd; looked for in PATH where not given
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    etcd: Option<PathBuf>,
    /// nats-server; looked for in PATH where not given
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    nats_server: Option<PathBuf>,
}

/// The programs as units name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kvlens: String,
    pub(crate) etcd: String,
    pub(crate) nats_server: String,
}

impl Programs {
    /// Looks for the programs; those that `plan` does not start need not be there.
    pub(crate) fn find(&self, plan: &HostPlan) -> Result<Found, UnitsError> {
        let own = || std::env::current_exe();
        let kvlens = match &self.kvlens {
            Some(path) => path.clone(),
            None => own().map_err(UnitsError::file("find", Path::new("/proc/self/exe")))?,
        };
        let etcd = (self.etcd.as_deref(), "etcd", "Debian: etcd-server");
        let nats = (
            self.nats_server.as_deref(),
            "nats-server",
            "Debian: nats-server",
        );
        Ok(Found {
            kvlens: checked(&kvlens, "--kvlens")?,
            etcd: one(etcd, "--etcd", plan.has(Role::Etcd))?,
            nats_server: one(nats, "--nats-server", plan.has(Role::Nats))?,
        })
    }
}

fn one(
    (told, program, package): (Option<&Path>, &'static str, &'static str),
    flag: &'static str,
    is_needed: bool,
) -> Result<String, UnitsError> {
    match told.map(Path::to_owned).or_else(|| in_path(program)) {
        Some(path) => checked(&path, flag),
        None if is_needed => Err(UnitsError::ProgramMissing {
            program,
            package,
            flag,
        }),
        // Its unit is written all the same, for hosts that come to run it.
        None => Ok(format!("/usr/bin/{program}")),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM.map(PathBuf::from));
    folders
        .map(|folder| folder.join(program))
        .find(|path| runs(path))
}

fn runs(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The path as a unit has it, where units can start it.
fn checked(path: &Path, flag: &'static str) -> Result<String, UnitsError> {
    let shown = path.display().to_string();
    let is_odd = |c: char| c.is_whitespace() || "\"'%$\\".contains(c);
    if !path.is_absolute() || shown.contains(is_odd) {
        return Err(UnitsError::Unspeakable { path: shown });
    }
    if !runs(path) {
        return Err(UnitsError::NotAProgram { path: shown, flag });
    }
    match HIDDEN.iter().find(|folder| path.starts_with(folder)) {
        Some(folder) => Err(UnitsError::Hidden {
            path: shown,
            folder,
            flag,
        }),
        None => Ok(shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_units_could_not_start_is_refused() {
        for (path, part) in [
            ("bin/sh", "cannot stand in a unit"),
            ("/bin/a b", "cannot stand in a unit"),
            ("/bin/no-such-program", "name another with --etcd"),
        ] {
            let error = checked(Path::new(path), "--etcd").unwrap_err().to_string();
            assert!(error.contains(part), "{path}: {error}");
        }
        assert_eq!(checked(Path::new("/bin/sh"), "--etcd").unwrap(), "/bin/sh");
        let told = one((None, "no-such-program", "nowhere"), "--etcd", true);
        let error = told.unwrap_err().to_string();
        assert!(error.contains("install it (nowhere)"), "{error}");
        let unused = one((None, "no-such-program", "nowhere"), "--etcd", false);
        assert_eq!(unused.unwrap(), "/usr/bin/no-such-program");
    }
}
