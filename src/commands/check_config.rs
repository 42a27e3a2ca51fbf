//! `kvlens check-config`: says what is wrong with a configuration before anything is started.

use std::path::PathBuf;

use crate::config::cluster::ClusterConfig;
use crate::config::named_file::is_for_a_unit;
use crate::config::problem::ConfigError;
use crate::config::reference;
use crate::config::{Config, Sources};
use crate::discovery::hash_key::{HashKeyError, hash_key};
use crate::frontend::tenants::Tenants;
use crate::http::keys::{KeyFileError, first_key};
use crate::media::{Media, PolicyError};
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
    #[error(transparent)]
    Media(#[from] PolicyError),
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error(transparent)]
    HashKey(#[from] HashKeyError),
}

/// What to print: `ok`, or the reference.
///
/// # Errors
/// When a role would refuse to start with this configuration.
pub fn run(args: &Args, sources: &Sources) -> Result<String, CheckError> {
    if args.reference {
        return Ok(reference::reference());
    }
    let config = load(sources)?;
    // Only here: what a role does not use need not be on its host. What systemd gives to a unit alone
    // can be read nowhere else.
    let here = |path: &Option<PathBuf>| path.clone().filter(|path| !is_for_a_unit(path));
    Tenants::read(here(&config.frontend.key_file).as_deref())?;
    let shown = here(&config.discovery.key_file);
    shown.as_deref().map(first_key).transpose()?;
    hash_key(&ClusterConfig {
        hash_key_file: here(&config.cluster.hash_key_file),
    })?;
    Ok("ok\n".to_owned())
}

/// Reads a configuration and checks all of it that can be checked without starting anything. Every
/// role reads its own so: what one refuses, the other does.
///
/// # Errors
/// What is wrong.
pub fn load(sources: &Sources) -> Result<Config, CheckError> {
    let config = Config::load(sources)?;
    telemetry::check(&config.log)?;
    // Only its user knows what makes sense in a policy.
    Media::new(config.media.clone())?;
    Ok(config)
}
