//! `[nats]`: the bus between agents, routers and frontends.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The bus between agents, routers and frontends. Unset, routers read each agent's feed over HTTP,
/// and every frontend has a router of its own that knows of no other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsConfig {
    /// Addresses of the servers, as `nats://127.0.0.1:4222` or `tls://…`; none of them turns NATS
    /// off.
    pub servers: Vec<String>,
    /// File of an nkey's seed, not readable for everybody.
    pub nkey_file: Option<PathBuf>,
    /// File of credentials, as `nsc` writes them, not readable for everybody.
    pub creds_file: Option<PathBuf>,
    /// Name of the user to authenticate as.
    pub user: Option<String>,
    /// File whose first line is the user's password, not readable for everybody.
    pub password_file: Option<PathBuf>,
    /// Below which subject answers come to us; unset, `_INBOX.` and the user's name where there is one,
    /// so that the servers' rules can let each user hear its own answers alone.
    pub inbox_prefix: Option<String>,
    /// File of the PEM certificates that sign the servers' own; unset trusts the system's.
    pub ca_file: Option<PathBuf>,
    /// File of our PEM certificate, where the servers ask for one.
    pub cert_file: Option<PathBuf>,
    /// File of its PEM key, not readable for everybody.
    pub cert_key_file: Option<PathBuf>,
}

impl NatsConfig {
    /// Whether NATS is used.
    pub fn is_used(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Below which subject answers come to us.
    pub(crate) fn inbox(&self) -> String {
        let is_token = |name: &&String| {
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
            !name.is_empty() && name.bytes().all(legal)
        };
        match (&self.inbox_prefix, self.user.as_ref().filter(is_token)) {
            (Some(prefix), _) => prefix.clone(),
            (None, Some(user)) => format!("_INBOX.{user}"),
            (None, None) => "_INBOX".to_owned(),
        }
    }

    /// Whether the servers are told who we are.
    pub fn has_credentials(&self) -> bool {
        let files = [&self.nkey_file, &self.creds_file, &self.cert_file];
        self.user.is_some() || files.iter().any(|file| file.is_some())
    }

    /// Keys that cannot hold together.
    pub(crate) fn contradictions(&self) -> [(bool, &'static str); 3] {
        [
            (
                self.user.is_some() != self.password_file.is_some(),
                "nats.user and nats.password_file go together, and one of them is unset",
            ),
            (
                self.cert_file.is_some() != self.cert_key_file.is_some(),
                "nats.cert_file and nats.cert_key_file go together, and one of them is unset",
            ),
            (
                self.nkey_file.is_some() && self.creds_file.is_some(),
                "nats.nkey_file and nats.creds_file are both set: one of them says who we are",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_an_inbox_of_its_own() {
        for (user, prefix, inbox) in [
            (None, None, "_INBOX"),
            (Some("router-a"), None, "_INBOX.router-a"),
            (Some("router-a"), Some("mine"), "mine"),
            (Some("*"), None, "_INBOX"),
            (Some("a.b"), None, "_INBOX"),
        ] {
            let config = NatsConfig {
                user: user.map(str::to_owned),
                inbox_prefix: prefix.map(str::to_owned),
                ..NatsConfig::default()
            };
            assert_eq!(config.inbox(), inbox);
        }
    }
}
