//! The units and a configuration, written to where systemd and kvlens look for them.

use std::path::Path;

use crate::commands::units::files::{Log, below, names_in};
use crate::commands::units::plan::{HostPlan, Role, Unit};
use crate::commands::units::programs::Programs;
use crate::commands::units::texts::{EXAMPLE, NATS_RACK, SYSUSERS, UNITS, Values, nats_alone};
use crate::commands::units::{CONFIG_DIR, UnitsError, init, load};
use crate::config::{Config, Sources};

pub(crate) const UNIT_DIR: &str = "/etc/systemd/system";
pub(crate) const SYSUSERS_FILE: &str = "/etc/sysusers.d/kvlens.conf";
pub(crate) const WANTS: &str = "kvlens.target.wants";

/// The roles that may have credentials, each in a folder of its own.
pub(crate) const CREDENTIALS: [&str; 6] =
    ["etcd", "nats", "router", "frontend", "engine", "worker"];

/// Units of distributions that have the ports of ours, and start as they are installed.
const RIVALS: [&str; 2] = ["etcd.service", "nats-server.service"];

/// What everybody may read, and what nobody but root.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;
const PUBLIC_FOLDER: u32 = 0o755;
const SECRET_FOLDER: u32 = 0o700;

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
    let mut log = Log::default();
    log.folder(to, PUBLIC_FOLDER)?;
    write_units(&mut log, (&plan, &values), to)?;
    log.write(&to.join("kvlens.sysusers"), SYSUSERS, PUBLIC)?;
    log.write(&to.join("nats.conf"), &nats_alone(), PUBLIC)?;
    log.write(&to.join("nats-rack.conf"), NATS_RACK, PUBLIC)?;
    Ok(log.text())
}

/// Installs the units below `prefix`, and a configuration where there is none; in the system itself it
/// has systemd read them.
///
/// # Errors
/// When the configuration is refused, a program is missing or a file cannot be written. A second run
/// begins where this one ended.
pub(crate) fn install(
    sources: &Sources,
    programs: &Programs,
    prefix: &Path,
) -> Result<String, UnitsError> {
    let is_here = prefix == Path::new("/");
    if is_here && !init::is_running() {
        let instead =
            "install below a folder with --prefix, or write the units with `kvlens units render`";
        return Err(UnitsError::NoSystemd { instead });
    }
    let mut log = Log::default();
    let config_dir = below(prefix, CONFIG_DIR);
    log.folder(&config_dir, PUBLIC_FOLDER)?;
    log.write_new(&config_dir.join("kvlens.toml"), EXAMPLE, PUBLIC)?;
    let config = load(sources, Some(prefix))?;
    let plan = HostPlan::new(&config);
    let values = Values::new(&config, &programs.find(&plan)?);
    log.write_new(&config_dir.join("nats.conf"), &nats_alone(), SECRET)?;
    for role in CREDENTIALS {
        log.folder(&config_dir.join("credentials").join(role), SECRET_FOLDER)?;
    }
    let units = below(prefix, UNIT_DIR);
    log.folder(&units, PUBLIC_FOLDER)?;
    let stale = write_units(&mut log, (&plan, &values), &units)?;
    let sysusers = below(prefix, SYSUSERS_FILE);
    log.folder(sysusers.parent().unwrap_or(prefix), PUBLIC_FOLDER)?;
    log.write(&sysusers, SYSUSERS, PUBLIC)?;
    let mut rivals = Vec::new();
    if is_here {
        init::call("systemd-sysusers", &[SYSUSERS_FILE])?;
        init::call("systemctl", &["daemon-reload"])?;
        if plan.has(Role::Etcd) {
            rivals = init::running(&RIVALS)?;
        }
    }
    Ok(log.text() + &next_steps(&plan, &stale, &rivals))
}

/// Writes every unit into a folder, and links those of the plan to the target. The links to units that
/// are no longer planned are removed; their names come back.
fn write_units(
    log: &mut Log,
    (plan, values): (&HostPlan, &Values),
    folder: &Path,
) -> Result<Vec<String>, UnitsError> {
    for (name, text) in UNITS {
        log.write(&folder.join(name), &values.fill(text), PUBLIC)?;
    }
    let wants = folder.join(WANTS);
    log.folder(&wants, PUBLIC_FOLDER)?;
    let is_planned = |name: &String| plan.units.iter().any(|unit| unit.name == *name);
    let mut stale = names_in(&wants)?;
    stale.retain(|name| !is_planned(name));
    for name in &stale {
        log.remove(&wants.join(name))?;
    }
    for unit in &plan.units {
        log.link(&wants.join(&unit.name), &format!("../{}", file_of(unit)))?;
    }
    Ok(stale)
}

/// The file of a unit: an instance's is its template.
fn file_of(unit: &Unit) -> String {
    match (&unit.instance, unit.name.split_once('@')) {
        (Some(_), Some((template, _))) => format!("{template}@.service"),
        _ => unit.name.clone(),
    }
}

fn next_steps(plan: &HostPlan, stale: &[String], rivals: &[&str]) -> String {
    let mut text = "\n".to_owned();
    let mut say = |line: &str| text += &format!("{line}\n");
    if !plan.has(Role::Engine) {
        say("No worker is planned: to run engines here name them as [workers.NAME] in");
        say("/etc/kvlens/kvlens.toml, and run `kvlens units install` again.");
    }
    let podman = |unit: &Unit| unit.name.starts_with("kvlens-engine-podman@");
    if plan.units.iter().any(podman) {
        say("Podman needs ids for its containers, once: `usermod --add-subuids 524288-589823");
        say("--add-subgids 524288-589823 kvlens`, and the GPUs' description: `nvidia-ctk cdi");
        say("generate --output=/etc/cdi/nvidia.yaml`.");
    }
    if !stale.is_empty() {
        let stale = stale.join(" ");
        say(&format!("No longer planned: `systemctl stop {stale}`"));
    }
    if !rivals.is_empty() {
        let rivals = rivals.join(" ");
        say("The distribution's own have the ports of ours, and are used by nothing of kvlens:");
        say(&format!("`systemctl disable --now {rivals}`"));
    }
    say("Next: `systemctl enable --now kvlens.target`, then `kvlens units status`");
    text
}
