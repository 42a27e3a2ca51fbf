//! The programs of systemd, called and heard.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::commands::units::UnitsError;

/// There where systemd is the init of this host.
const BOOTED: &str = "/run/systemd/system";

/// Whether systemd runs this host.
pub(crate) fn is_running() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Those of `units` that run.
///
/// # Errors
/// When systemctl is not there.
pub(crate) fn running<'a>(units: &[&'a str]) -> Result<Vec<&'a str>, UnitsError> {
    let program = "systemctl";
    // Its exit code says only whether one of them runs.
    let output = Command::new(program)
        .arg("is-active")
        .args(units)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| UnitsError::Run { program, source })?;
    let said = String::from_utf8_lossy(&output.stdout);
    let states = units.iter().zip(said.lines());
    let running = states.filter(|(_, state)| ["active", "activating"].contains(state));
    Ok(running.map(|(unit, _)| *unit).collect())
}

/// What a program says on its standard output.
///
/// # Errors
/// When it is not there, or fails: then with what it says.
pub(crate) fn call(program: &'static str, args: &[&str]) -> Result<String, UnitsError> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| UnitsError::Run { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().replace('\n', "; ");
    Err(UnitsError::Command {
        command: format!("{program} {}", args.join(" ")),
        said: match said.as_str() {
            "" => output.status.to_string(),
            said => said.to_owned(),
        },
    })
}
