//! By what we show the bus who we are: files that nobody else can read.

use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;

use crate::config::nats::NatsConfig;
use crate::http::keys::{KeyFileError, secret};

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("{path} is not a file of NATS credentials")]
    Creds {
        path: String,
        source: std::io::Error,
    },
    #[error("nats.user and nats.password_file are set together or not at all")]
    HalfUser,
    #[error("nats.cert_file and nats.cert_key_file are set together or not at all")]
    HalfCertificate,
}

/// What a connection shows and trusts.
pub(super) fn options(config: &NatsConfig) -> Result<ConnectOptions, CredentialError> {
    let mut options = ConnectOptions::new();
    if let Some(path) = &config.nkey_file {
        options = options.nkey(first_line(path)?);
    }
    if let Some(path) = &config.creds_file {
        let text = secret(path)?;
        options = options
            .credentials(&text)
            .map_err(|source| CredentialError::Creds {
                path: path.display().to_string(),
                source,
            })?;
    }
    options = match (&config.user, &config.password_file) {
        (None, None) => options,
        (Some(user), Some(path)) => options.user_and_password(user.clone(), first_line(path)?),
        _ => return Err(CredentialError::HalfUser),
    };
    if let Some(path) = &config.ca_file {
        options = options
            .add_root_certificates(path.clone())
            .require_tls(true);
    }
    match (&config.cert_file, &config.cert_key_file) {
        (None, None) => Ok(options),
        (Some(certificate), Some(key)) => {
            secret(key)?;
            let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
            Ok(options.add_client_certificate(certificate, key))
        }
        _ => Err(CredentialError::HalfCertificate),
    }
}

fn first_line(path: &Path) -> Result<String, KeyFileError> {
    let text = secret(path)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
