//! The units and a configuration, written to where systemd and kvlens look for them.

use std::path::Path;

use crate::commands::units::files::{FileWork, below, names_in};
use crate::commands::units::next_steps::{Installed, next_steps};
use crate::commands::units::plan::{HostPlan, Unit};
use crate::commands::units::programs::Programs;
use crate::commands::units::texts::{EXAMPLE, NATS_RACK, SYSUSERS, UNITS, Values, nats_alone};
use crate::commands::units::{UnitsError, init, load};
use crate::config::Config;
use crate::config::units::{CONFIG_DIR, CONFIG_FILE, CREDENTIALS_DIR, Role};

pub(crate) const UNIT_DIR: &str = "/etc/systemd/system";
pub(crate) const SYSUSERS_FILE: &str = "/etc/sysusers.d/kvlens.conf";

/// Below the folder of units: those that the target wants, and the target where it starts at boot.
pub(crate) const WANTS: &str = "kvlens.target.wants";
pub(crate) const ENABLED: &str = "multi-user.target.wants/kvlens.target";

/// Units of distributions that have the ports of ours, and start as they are installed.
const RIVALS: [&str; 2] = ["etcd.service", "nats-server.service"];

/// What everybody may read, and what nobody but root.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;
const PUBLIC_FOLDER: u32 = 0o755;

/// Writes the units, filled in for this host, into a folder.
///
/// # Errors
/// When a program is missing or a file cannot be written.
pub(crate) fn render(
    config: &Config,
    programs: &Programs,
    to: &Path,
) -> Result<String, UnitsError> {
    let plan = HostPlan::new(config);
    let values = Values::new(config, &programs.find(&plan)?);
    let mut files = FileWork::default();
    files.folder(to, PUBLIC_FOLDER)?;
    write_units(&mut files, (&plan, &values), to)?;
    files.write(&to.join("kvlens.sysusers"), SYSUSERS, PUBLIC)?;
    files.write(&to.join("nats.conf"), &nats_alone(), PUBLIC)?;
    files.write(&to.join("nats-rack.conf"), NATS_RACK, PUBLIC)?;
    Ok(files.text())
}

/// Installs the units below `prefix`, and a configuration where there is none; in the system itself it
/// has systemd read them.
///
/// # Errors
/// When the configuration is refused, a program is missing or a file cannot be written. A second run
/// begins where this one ended.
pub(crate) fn install(programs: &Programs, prefix: &Path) -> Result<String, UnitsError> {
    let is_here = prefix == Path::new("/");
    if is_here && !init::is_running() {
        let instead =
            "install below a folder with --prefix, or write the units with `kvlens units render`";
        return Err(UnitsError::NoSystemd { instead });
    }
    let mut files = FileWork::default();
    files.folder(&below(prefix, CONFIG_DIR), PUBLIC_FOLDER)?;
    let config_file = below(prefix, CONFIG_FILE);
    files.write_new(&config_file, EXAMPLE, PUBLIC)?;
    let config = load(Some(&config_file))?;
    let plan = HostPlan::new(&config);
    let values = Values::new(&config, &programs.find(&plan)?);
    let nats = below(prefix, CONFIG_DIR).join("nats.conf");
    files.write_new(&nats, &nats_alone(), SECRET)?;
    let credentials = below(prefix, CREDENTIALS_DIR);
    files.secret_folder(&credentials)?;
    for role in Role::ALL {
        files.secret_folder(&credentials.join(role.name()))?;
    }
    let units = below(prefix, UNIT_DIR);
    files.folder(&units, PUBLIC_FOLDER)?;
    let stale = write_units(&mut files, (&plan, &values), &units)?;
    let sysusers = below(prefix, SYSUSERS_FILE);
    files.folder(sysusers.parent().unwrap_or(prefix), PUBLIC_FOLDER)?;
    files.write(&sysusers, SYSUSERS, PUBLIC)?;
    let mut rivals = Vec::new();
    if is_here {
        init::call("systemd-sysusers", &[SYSUSERS_FILE])?;
        init::call("systemctl", &["daemon-reload"])?;
        if plan.has(Role::Etcd) {
            rivals = init::running(&RIVALS)?;
        }
    }
    let installed = Installed {
        plan,
        stale,
        rivals,
        has_agent_keys: config.worker.key_file.is_some(),
        is_enabled: units.join(ENABLED).symlink_metadata().is_ok(),
        has_changed: files.has_changed(),
    };
    Ok(files.text() + &next_steps(&installed))
}

/// Writes every unit into a folder, and links those of the plan to the target. The links to units that
/// are no longer planned are removed; their names come back.
fn write_units(
    files: &mut FileWork,
    (plan, values): (&HostPlan, &Values),
    folder: &Path,
) -> Result<Vec<String>, UnitsError> {
    for (name, text) in UNITS {
        files.write(&folder.join(name), &values.fill(text), PUBLIC)?;
    }
    let wants = folder.join(WANTS);
    files.folder(&wants, PUBLIC_FOLDER)?;
    let mut stale = wanted(folder)?;
    stale.retain(|name| !plan.names(name));
    for name in &stale {
        files.remove(&wants.join(name))?;
    }
    for unit in &plan.units {
        files.link(&wants.join(&unit.name), &format!("../{}", file_of(unit)))?;
    }
    Ok(stale)
}

/// The units of ours that the target in this folder of units wants. An operator may have it want more.
pub(crate) fn wanted(folder: &Path) -> Result<Vec<String>, UnitsError> {
    let mut names = names_in(&folder.join(WANTS))?;
    names.retain(|name| name.starts_with("kvlens-"));
    Ok(names)
}

/// The file of a unit: an instance's is its template.
fn file_of(unit: &Unit) -> String {
    match (&unit.instance, unit.name.split_once('@')) {
        (Some(_), Some((template, _))) => format!("{template}@.service"),
        _ => unit.name.clone(),
    }
}
