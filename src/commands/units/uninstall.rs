//! All that install wrote, and what units kept, removed.

use std::fs;
use std::path::Path;

use crate::commands::units::files::{Log, below, names_in};
use crate::commands::units::install::{CREDENTIALS, SYSUSERS_FILE, UNIT_DIR, WANTS};
use crate::commands::units::texts::{EXAMPLE, UNITS, nats_alone};
use crate::commands::units::{CONFIG_DIR, UnitsError, init};

/// What units keep and leave behind.
const STATE: [&str; 6] = [
    "/var/lib/kvlens",
    "/var/lib/kvlens-etcd",
    "/var/lib/private/kvlens-etcd",
    "/var/lib/kvlens-podman",
    "/var/cache/kvlens",
    "/run/kvlens",
];

/// Stops and removes all units below `prefix`, what they kept, and the configuration where it is as
/// install wrote it; `purge` removes all of the configuration, credentials too.
///
/// # Errors
/// When a unit does not stop or a file cannot be removed. A second run begins where this one ended.
pub(crate) fn uninstall(prefix: &Path, purge: bool) -> Result<String, UnitsError> {
    let is_here = prefix == Path::new("/");
    let is_running = is_here && init::is_running();
    let units = below(prefix, UNIT_DIR);
    if is_running {
        stop(&units)?;
    }
    let mut log = Log::default();
    for (name, _) in UNITS {
        log.remove(&units.join(name))?;
    }
    log.remove(&units.join(WANTS))?;
    log.remove(&units.join("multi-user.target.wants/kvlens.target"))?;
    log.remove(&below(prefix, SYSUSERS_FILE))?;
    remove_drop_ins(&mut log, &units, purge)?;
    for path in STATE {
        log.remove(&below(prefix, path))?;
    }
    remove_config(&mut log, &below(prefix, CONFIG_DIR), purge)?;
    if is_running {
        init::call("systemctl", &["daemon-reload"])?;
        // Those that had failed are forgotten with their units.
        init::call("systemctl", &["reset-failed"])?;
    }
    if is_here && has_user()? {
        init::call("userdel", &["kvlens"])?;
        log.say("removed", Path::new("user kvlens"));
    }
    Ok(match log.text() {
        text if text.is_empty() => "nothing of kvlens is installed there\n".to_owned(),
        text => text,
    })
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
fn remove_drop_ins(log: &mut Log, units: &Path, purge: bool) -> Result<(), UnitsError> {
    for name in names_in(units)? {
        if name.starts_with("kvlens") && name.ends_with(".d") {
            match purge {
                true => log.remove(&units.join(name))?,
                false => log.say("kept", &units.join(name)),
            }
        }
    }
    Ok(())
}

fn remove_config(log: &mut Log, folder: &Path, purge: bool) -> Result<(), UnitsError> {
    if purge {
        return log.remove(folder);
    }
    for (name, text) in [
        ("kvlens.toml", EXAMPLE),
        ("nats.conf", nats_alone().as_str()),
    ] {
        let path = folder.join(name);
        match fs::read_to_string(&path) {
            Ok(found) if found == text => log.remove(&path)?,
            Ok(_) => log.say("kept", &path),
            Err(_) => {}
        }
    }
    for role in CREDENTIALS {
        log.remove_empty(&folder.join("credentials").join(role))?;
    }
    log.remove_empty(&folder.join("credentials"))?;
    log.remove_empty(folder)
}

/// Whether the user of agents and engines is there.
fn has_user() -> Result<bool, UnitsError> {
    let path = Path::new("/etc/passwd");
    let users = fs::read_to_string(path).map_err(UnitsError::file("read", path))?;
    Ok(users.lines().any(|line| line.starts_with("kvlens:")))
}
