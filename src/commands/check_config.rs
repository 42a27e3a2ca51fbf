//! `kvlens check-config`: says what is wrong with a configuration before anything is started.

use crate::config::problem::ConfigError;
use crate::config::reference;
use crate::config::{Config, Sources};
use crate::telemetry::{self, TelemetryError};

/// Checks the configuration: file, environment, values against each other.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print a file of every key with its meaning, default and environment variable instead
    #[arg(long)]
    reference: bool,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// What to print: `ok`, or the reference.
///
/// # Errors
/// When a role would refuse to start with this configuration.
pub fn run(args: &Args, sources: &Sources) -> Result<String, CheckError> {
    if args.reference {
        return Ok(reference::reference());
    }
    let config = Config::load(sources)?;
    telemetry::check(&config.log)?;
    Ok("ok\n".to_owned())
}
