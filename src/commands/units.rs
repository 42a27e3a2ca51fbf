//! `kvlens units`: the units of systemd that a host runs, from its configuration.

mod files;
mod init;
mod install;
mod next_steps;
mod plan;
mod programs;
mod status;
mod texts;
mod uninstall;

use std::io;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};

use crate::commands::check_config::{self, CheckError};
use crate::commands::units::plan::HostPlan;
use crate::commands::units::programs::Programs;
use crate::config::units::CONFIG_FILE;
use crate::config::{Config, Sources};

/// Writes, shows and removes the units of systemd that this host runs
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Prints which units this host runs, with their GPUs and ports, as JSON
    Plan,
    /// Writes the units, filled in for this host, into a folder
    Render {
        /// The folder, made where it is missing
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        to: PathBuf,
        #[command(flatten)]
        programs: Programs,
    },
    /// Installs the units, and a configuration where there is none
    Install {
        /// Root of the system to install into
        #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
        prefix: PathBuf,
        #[command(flatten)]
        programs: Programs,
    },
    /// Shows all units that this host is to run: their states, ports, and what they say of themselves;
    /// ends with 1 where one of them is not active
    Status,
    /// Stops the units and removes all that install wrote, with what they kept
    Uninstall {
        /// Root of the system to remove them from
        #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
        prefix: PathBuf,
        /// Remove configuration and credentials of yours too
        #[arg(long)]
        purge: bool,
    },
}

/// Why nothing can be said or done about units.
#[derive(Debug, thiserror::Error)]
pub enum UnitsError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(
        "{program} is not found in PATH; install it ({package}), or say where it is with {flag}"
    )]
    ProgramMissing {
        program: &'static str,
        package: &'static str,
        flag: &'static str,
    },
    #[error("{path} does not exist or is no program; name another with {flag}")]
    NotAProgram { path: String, flag: &'static str },
    #[error(
        "{path} is below {folder}, which is hidden from units: copy it to /usr/local/bin, or name \
         another with {flag}"
    )]
    Hidden {
        path: String,
        folder: &'static str,
        flag: &'static str,
    },
    #[error(
        "{path} cannot stand in a unit: it has to be absolute, without blanks, quotes, %, $ and \\"
    )]
    Unspeakable { path: String },
    #[error("cannot {verb} {path}{}", hint(source))]
    File {
        verb: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} does not exist: run `kvlens units install`, which writes one to begin with")]
    NoConfiguration { path: String },
    #[error(
        "{path} is not taken here: units read {CONFIG_FILE} (below --prefix), and are planned from it; \
         `kvlens units plan` and `render` take --config"
    )]
    OtherConfiguration { path: String },
    #[error("{units} of the planned units are not active")]
    NotActive { units: usize },
    #[error("this host runs no systemd (/run/systemd/system is missing): {instead}")]
    NoSystemd { instead: &'static str },
    #[error("{command} failed: {said}")]
    Command { command: String, said: String },
    #[error("cannot run {program}; it belongs to systemd or to the system's tools for users")]
    Run {
        program: &'static str,
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root, or with another folder",
        io::ErrorKind::ReadOnlyFilesystem => "; this part of the system is not for installing into",
        _ => "",
    }
}

impl UnitsError {
    /// An error of the file system, about one path.
    fn file(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { verb, path, source }
    }
}

/// What to print once it is done.
#[derive(Debug)]
pub struct Report {
    pub text: String,
    /// What is wrong all the same.
    pub fault: Option<UnitsError>,
}

impl From<String> for Report {
    fn from(text: String) -> Self {
        Self { text, fault: None }
    }
}

/// Does what was asked for. `told` is the file of `--config`, where that was given.
///
/// # Errors
/// What stood in the way, and what to do about it.
pub fn run(args: &Args, sources: &Sources, told: Option<&Path>) -> Result<Report, UnitsError> {
    let named = sources.file.as_deref();
    match &args.action {
        Action::Plan => {
            let plan = HostPlan::new(&load(named)?);
            // Text, numbers and lists have a form in JSON.
            let text = serde_json::to_string_pretty(&plan).unwrap_or_default();
            Ok(Report::from(text + "\n"))
        }
        Action::Render { to, programs } => {
            install::render(&load(named)?, programs, to).map(Report::from)
        }
        Action::Install { prefix, programs } => {
            nowhere_else(told)?;
            install::install(programs, prefix).map(Report::from)
        }
        // A configuration that is refused is when its state is asked for.
        Action::Status => status::show(load(named)),
        Action::Uninstall { prefix, purge } => {
            nowhere_else(told)?;
            uninstall::uninstall(prefix, *purge).map(Report::from)
        }
    }
}

/// Refuses another file than the one that installed units read.
fn nowhere_else(told: Option<&Path>) -> Result<(), UnitsError> {
    let other = |path: &Path| UnitsError::OtherConfiguration {
        path: path.display().to_string(),
    };
    told.map_or(Ok(()), |path| Err(other(path)))
}

/// The configuration as units read it: the file that was named, or else the one that is installed. What
/// this shell's environment says is not theirs.
fn load(named: Option<&Path>) -> Result<Config, UnitsError> {
    let path = named.unwrap_or(Path::new(CONFIG_FILE));
    if named.is_none() && !path.exists() {
        let path = path.display().to_string();
        return Err(UnitsError::NoConfiguration { path });
    }
    let sources = Sources {
        file: Some(path.to_owned()),
        ..Sources::default()
    };
    Ok(check_config::load(&sources)?)
}
