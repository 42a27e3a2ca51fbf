//! All that install wrote, and what units kept, removed.

use std::fs;
use std::path::Path;

use crate::commands::units::files::{FileWork, below, names_in};
use crate::commands::units::install::{ENABLED, SYSUSERS_FILE, UNIT_DIR, WANTS, wanted};
use crate::commands::units::texts::{EXAMPLE, UNITS, nats_alone};
use crate::commands::units::{UnitsError, init};
use crate::config::units::{CONFIG_DIR, CREDENTIALS_DIR, Role};

/// What units keep and leave behind.
const STATE: [&str; 6] = [
    "/var/lib/kvlens",
    "/var/lib/kvlens-etcd",
    "/var/lib/private/kvlens-etcd",
    "/var/lib/kvlens-podman",
    "/var/cache/kvlens-engine",
    "/run/kvlens",
];

/// The account of agents and engines as sysusers makes it: its name, its folder, and the most that its
/// number can be.
const USER: &str = "kvlens";
const HOME: &str = "/var/lib/kvlens";
const SYSTEM_UID_MAX: u32 = 999;

/// Stops and removes all units below `prefix`, what they kept, and the configuration where it is as
/// install wrote it; `purge` removes all of the configuration, credentials too. Where nothing is
/// installed only what `purge` asks for is removed.
///
/// # Errors
/// When a unit does not stop or a file cannot be removed. A second run begins where this one ended.
pub(crate) fn uninstall(prefix: &Path, purge: bool) -> Result<String, UnitsError> {
    let is_here = prefix == Path::new("/");
    let units = below(prefix, UNIT_DIR);
    let sysusers = below(prefix, SYSUSERS_FILE);
    // It goes last, so that a run that was cut short is gone on with.
    let is_installed = sysusers.exists() || UNITS.iter().any(|(name, _)| units.join(name).exists());
    let mut files = FileWork::default();
    if is_installed {
        remove_units(&mut files, &units, is_here && init::is_running())?;
        for path in STATE {
            files.remove(&below(prefix, path))?;
        }
        if is_here && has_user()? {
            init::call("userdel", &[USER])?;
            files.did("removed", Path::new("user kvlens"));
        }
    }
    remove_drop_ins(&mut files, &units, purge)?;
    remove_config(&mut files, prefix, (is_installed, purge))?;
    files.remove(&sysusers)?;
    Ok(match is_installed {
        true => files.text() + &what_stays(purge),
        false => "nothing of kvlens is installed there\n".to_owned() + &files.text(),
    })
}

fn what_stays(purge: bool) -> String {
    let program = std::env::current_exe();
    let program = program.map_or_else(
        |_| "the program".to_owned(),
        |path| format!("the program, {}", path.display()),
    );
    match purge {
        true => format!("\nWhat stays: {program}\n"),
        false => format!(
            "\nWhat stays: {program}, and what is listed as kept; configuration, keys and drop-ins go \
             with --purge\n"
        ),
    }
}

/// Stops all units of kvlens and removes their files.
fn remove_units(files: &mut FileWork, units: &Path, is_running: bool) -> Result<(), UnitsError> {
    if is_running {
        stop(units)?;
    }
    for name in wanted(units)? {
        files.remove(&units.join(WANTS).join(name))?;
    }
    files.remove_empty(&units.join(WANTS))?;
    files.remove(&units.join(ENABLED))?;
    for (name, _) in UNITS {
        files.remove(&units.join(name))?;
    }
    if is_running {
        init::call("systemctl", &["daemon-reload"])?;
        // Those that had failed are forgotten with their units.
        init::call("systemctl", &["reset-failed", "kvlens*"])?;
    }
    Ok(())
}

/// Stops all that the target wants and all else of kvlens that runs.
fn stop(units: &Path) -> Result<(), UnitsError> {
    if units.join("kvlens.target").exists() {
        init::call("systemctl", &["disable", "--now", "kvlens.target"])?;
    }
    init::call(
        "systemctl",
        &["stop", "kvlens-*.socket", "kvlens-*.service"],
    )?;
    Ok(())
}

/// What an operator has added to units is the operator's.
fn remove_drop_ins(files: &mut FileWork, units: &Path, purge: bool) -> Result<(), UnitsError> {
    let is_ours = |name: &str| name.starts_with("kvlens.target") || name.starts_with("kvlens-");
    for name in names_in(units)? {
        if is_ours(&name) && name.ends_with(".d") {
            match purge {
                true => files.remove(&units.join(name))?,
                false => files.leave("kept", &units.join(name)),
            }
        }
    }
    Ok(())
}

/// Files that are as install wrote them go with an installation, all others with `purge`.
fn remove_config(
    files: &mut FileWork,
    prefix: &Path,
    (is_installed, purge): (bool, bool),
) -> Result<(), UnitsError> {
    let folder = below(prefix, CONFIG_DIR);
    if purge {
        return files.remove(&folder);
    }
    for (name, text) in [
        ("kvlens.toml", EXAMPLE),
        ("nats.conf", nats_alone().as_str()),
    ] {
        let path = folder.join(name);
        match fs::read_to_string(&path) {
            Ok(found) if found == text && is_installed => files.remove(&path)?,
            Ok(_) => files.leave("kept", &path),
            Err(_) => {}
        }
    }
    if is_installed {
        let credentials = below(prefix, CREDENTIALS_DIR);
        for role in Role::ALL {
            files.remove_empty(&credentials.join(role.name()))?;
        }
        files.remove_empty(&credentials)?;
        files.remove_empty(&folder)?;
    }
    Ok(())
}

/// Whether the account that sysusers made for agents and engines is there.
fn has_user() -> Result<bool, UnitsError> {
    let path = Path::new("/etc/passwd");
    let users = fs::read_to_string(path).map_err(UnitsError::file("read", path))?;
    Ok(users.lines().any(is_ours))
}

/// Whether a line of `/etc/passwd` is that account, and not a person's or another program's.
fn is_ours(line: &str) -> bool {
    let fields: Vec<_> = line.split(':').collect();
    let [name, _, uid, _, _, home, _] = fields[..] else {
        return false;
    };
    let is_system = uid.parse::<u32>().is_ok_and(|uid| uid <= SYSTEM_UID_MAX);
    name == USER && home == HOME && is_system
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_account_that_sysusers_made_is_ours() {
        for (line, is) in [
            (
                "kvlens:x:998:998:kvlens agents and engines:/var/lib/kvlens:/usr/sbin/nologin",
                true,
            ),
            ("kvlens:x:1000:1000::/var/lib/kvlens:/bin/bash", false),
            ("kvlens:x:998:998::/home/kvlens:/bin/bash", false),
            ("kvlens2:x:998:998::/var/lib/kvlens:/bin/bash", false),
            ("kvlens:x:998", false),
        ] {
            assert_eq!(is_ours(line), is, "{line}");
        }
    }
}
