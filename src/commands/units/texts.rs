//! The texts of units, as they are shipped and filled in for a host.

use crate::commands::units::programs::Found;
use crate::config::Config;
use crate::config::units::CONFIG_DIR;

/// A shipped text, by its name.
macro_rules! shipped {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../systemd/", $name)))
    };
}

/// What a stop may take beyond what a role drains, in seconds.
const STOP_MARGIN_SECS: u64 = 5;

/// Every unit, by the name of its file.
pub(crate) const UNITS: [(&str, &str); 10] = [
    shipped!("kvlens.target"),
    shipped!("kvlens-etcd.service"),
    shipped!("kvlens-nats.service"),
    shipped!("kvlens-router.service"),
    shipped!("kvlens-frontend.socket"),
    shipped!("kvlens-frontend-admin.socket"),
    shipped!("kvlens-frontend.service"),
    shipped!("kvlens-engine@.service"),
    shipped!("kvlens-engine-podman@.service"),
    shipped!("kvlens-worker@.service"),
];

/// The user that agents and engines share.
pub(crate) const SYSUSERS: &str = include_str!("../../../systemd/kvlens.sysusers");

/// A configuration to begin with.
pub(crate) const EXAMPLE: &str = include_str!("../../../systemd/kvlens.toml");

/// NATS for many hosts, with a user for each part of kvlens.
pub(crate) const NATS_RACK: &str = include_str!("../../../systemd/nats.conf");

/// Where in [`NATS_RACK`] begins what a host by itself does without.
const USERS: &str = "\nauthorization {";

/// What stands in its place there.
const NO_USERS: &str = "
# There are no users: only this host reaches the server. Before it listens for others, give each part of
# kvlens a user of its own, as in nats-rack.conf of `kvlens units render --to DIR`.
";

/// What a text's placeholders stand for.
#[derive(Clone, Debug)]
pub(crate) struct Values(Vec<(&'static str, String)>);

impl Values {
    pub(crate) fn new(config: &Config, programs: &Found) -> Self {
        let frontend = config.frontend.settle() + config.frontend.drain();
        let engine = config.engine.drain() + config.engine.grace();
        let stop = |drains: std::time::Duration| (drains.as_secs() + STOP_MARGIN_SECS).to_string();
        Self(vec![
            ("@kvlens@", programs.kvlens.clone()),
            ("@etcd@", programs.etcd.clone()),
            ("@nats_server@", programs.nats_server.clone()),
            ("@config_dir@", CONFIG_DIR.to_owned()),
            ("@public_listen@", config.frontend.address().to_string()),
            (
                "@admin_listen@",
                config.frontend.admin_address().to_string(),
            ),
            ("@frontend_stop_secs@", stop(frontend)),
            ("@engine_stop_secs@", stop(engine)),
        ])
    }

    /// The text with its placeholders filled in.
    pub(crate) fn fill(&self, text: &str) -> String {
        let put = |text: String, (name, value): &(&str, String)| text.replace(name, value);
        self.0.iter().fold(text.to_owned(), put)
    }
}

/// NATS for a host by itself.
pub(crate) fn nats_alone() -> String {
    let (kept, _) = NATS_RACK.split_once(USERS).unwrap_or((NATS_RACK, ""));
    let from = kept.find("server_name:").unwrap_or(0);
    let kept = kept[from..].replace("@server@", "kvlens");
    let head = "# The bus of kvlens on this host: NATS core, which keeps nothing.\n\n";
    head.to_owned() + &kept.replace("@listen@", "127.0.0.1") + NO_USERS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nats_alone_has_neither_users_nor_gaps() {
        let text = nats_alone();
        assert!(text.contains("listen: \"127.0.0.1:4222\""), "{text}");
        assert!(text.contains("max_payload: 1MB"), "{text}");
        assert!(!text.contains('@') && !text.contains("password"), "{text}");
    }
}
