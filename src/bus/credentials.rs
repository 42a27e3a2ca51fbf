//! By what we show the bus who we are: files that nobody else can read.

use std::path::Path;

use async_nats::ConnectOptions;

use crate::config::named_file::{NamedFileError, located, read_secret};
use crate::config::nats::NatsConfig;

/// Largest file: some times what `nsc` writes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error(transparent)]
    File(#[from] NamedFileError),
    #[error("{path} is not a file of NATS credentials")]
    Creds {
        path: String,
        source: std::io::Error,
    },
}

/// What a connection shows and trusts.
pub(super) fn options(config: &NatsConfig) -> Result<ConnectOptions, CredentialError> {
    let mut options = ConnectOptions::new();
    if let Some(path) = &config.nkey_file {
        options = options.nkey(first_line("nkey file", path)?);
    }
    if let Some(path) = &config.creds_file {
        let text = read_secret("credentials file", path, FILE_BYTES_MAX)?;
        options = options
            .credentials(&text)
            .map_err(|source| CredentialError::Creds {
                path: path.display().to_string(),
                source,
            })?;
    }
    if let (Some(user), Some(path)) = (&config.user, &config.password_file) {
        options = options.user_and_password(user.clone(), first_line("password file", path)?);
    }
    if let Some(path) = &config.ca_file {
        options = options
            .add_root_certificates(located("authority's certificates", path)?)
            .require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&config.cert_file, &config.cert_key_file) {
        const KEY: &str = "certificate's key file";
        read_secret(KEY, key, FILE_BYTES_MAX)?;
        let certificate = located("certificate file", certificate)?;
        options = options.add_client_certificate(certificate, located(KEY, key)?);
    }
    Ok(options)
}

fn first_line(what: &'static str, path: &Path) -> Result<String, NamedFileError> {
    let text = read_secret(what, path, FILE_BYTES_MAX)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
