//! `[etcd]`: where agents register their workers, and routers find them.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where agents register their workers, and routers find them. Unset, workers are named in
/// `[discovery]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdConfig {
    /// Addresses of the cluster's members, as `http://127.0.0.1:2379` or `https://…`; none of them
    /// turns etcd off.
    pub endpoints: Vec<String>,
    /// Name of the user to authenticate as.
    pub user: Option<String>,
    /// File whose first line is the user's password, not readable for everybody.
    pub password_file: Option<PathBuf>,
    /// File of the PEM certificates that sign the members' own; unset trusts the public ones.
    pub ca_file: Option<PathBuf>,
    /// File of our PEM certificate, where the members ask for one.
    pub cert_file: Option<PathBuf>,
    /// File of its PEM key, not readable for everybody.
    pub cert_key_file: Option<PathBuf>,
    /// Time after which a worker whose agent is silent leaves etcd, in seconds. Routers take that
    /// for a suspicion, not for its end.
    #[schemars(range(min = 2, max = 600))]
    pub lease_secs: u64,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            user: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            cert_key_file: None,
            lease_secs: 10,
        }
    }
}

impl EtcdConfig {
    /// Whether etcd is used.
    pub fn is_used(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Time after which a worker whose agent is silent leaves etcd.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_secs)
    }

    /// What cannot hold together, and whether it is so.
    pub(crate) fn contradictions(&self) -> [(bool, &'static str); 5] {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        [
            (
                self.is_used() && !cfg!(feature = "etcd"),
                "etcd.endpoints is set, and this program was built without etcd: unset it, or build \
                 with --features etcd",
            ),
            (
                !self.endpoints.iter().all(is_url),
                "etcd.endpoints has an entry that is neither http://host:port nor https://host:port",
            ),
            (
                self.user.is_some() != self.password_file.is_some(),
                "etcd.user and etcd.password_file go together, and one of them is unset",
            ),
            (
                self.cert_file.is_some() != self.cert_key_file.is_some(),
                "etcd.cert_file and etcd.cert_key_file go together, and one of them is unset",
            ),
            (
                (self.ca_file.is_some() || self.cert_file.is_some())
                    && !self.endpoints.iter().all(|url| url.starts_with("https://")),
                "etcd.ca_file or etcd.cert_file is set, and etcd.endpoints has an entry that is not \
                 https://…: nothing there would be encrypted",
            ),
        ]
    }
}
