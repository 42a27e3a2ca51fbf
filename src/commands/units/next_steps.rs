//! What an operator does after an install.

use crate::commands::units::plan::{HostPlan, Unit};
use crate::config::instance::InstanceConfig;
use crate::config::units::{CONFIG_FILE, Role};

/// What an install has left.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) plan: HostPlan,
    /// Units that were planned before.
    pub(crate) stale: Vec<String>,
    /// Units of the distribution's that have the ports of ours.
    pub(crate) rivals: Vec<&'static str>,
    /// Whether agents ask for a key.
    pub(crate) has_agent_keys: bool,
    /// Whether the target starts at boot.
    pub(crate) is_enabled: bool,
    pub(crate) has_changed: bool,
}

/// The steps, in their order.
pub(crate) fn next_steps(installed: &Installed) -> String {
    let plan = &installed.plan;
    let mut text = "\n".to_owned();
    let mut say = |line: &str| text += &format!("{line}\n");
    if plan.is_inference_missing {
        say("Workers are named and none is planned: units.roles has no \"inference\". Add it in");
        say(&format!(
            "{CONFIG_FILE}, and run `kvlens units install` again."
        ));
    } else if !plan.has(Role::Engine) {
        say("No worker is planned: to run engines here name them as [workers.NAME] in");
        say(&format!(
            "{CONFIG_FILE}, and run `kvlens units install` again."
        ));
    }
    let podman = |unit: &Unit| unit.name.starts_with("kvlens-engine-podman@");
    if plan.units.iter().any(podman) {
        say("Podman needs ids for its containers, once: `usermod --add-subuids 524288-589823");
        say("--add-subgids 524288-589823 kvlens`, and the GPUs' description: `nvidia-ctk cdi");
        say("generate --output=/etc/cdi/nvidia.yaml`.");
    }
    if !installed.stale.is_empty() {
        say("What is no longer planned runs until it is stopped:");
        let workers = installed.stale.iter().filter_map(|unit| worker_of(unit));
        for name in workers {
            say(&deregister(name, installed.has_agent_keys));
        }
        say(&format!("  `systemctl stop {}`", installed.stale.join(" ")));
    }
    if !installed.rivals.is_empty() {
        say("The distribution's own have the ports of ours, and are used by nothing of kvlens:");
        let rivals = installed.rivals.join(" ");
        say(&format!("  `systemctl disable --now {rivals}`"));
    }
    match (installed.is_enabled, installed.has_changed) {
        (false, _) => {
            say("Next: `systemctl enable --now kvlens.target`, then `kvlens units status`");
        }
        (true, true) => say("Next: `systemctl restart kvlens.target`, then `kvlens units status`"),
        (true, false) => {
            say("The units are as they were; what has changed in the configuration they take with");
            say("`systemctl restart kvlens.target`.");
        }
    }
    text
}

/// The worker whose agent a unit is.
fn worker_of(unit: &str) -> Option<&str> {
    let name = unit.strip_prefix("kvlens-worker@")?;
    name.strip_suffix(".service")
}

/// How a worker leaves for good. Where its agent listened is no longer known, only where it would have
/// unless told.
fn deregister(name: &str, has_keys: bool) -> String {
    let key = match has_keys {
        true => "-H 'Authorization: Bearer KEY' ",
        false => "",
    };
    let (address, note) = match InstanceConfig::default().agent(name) {
        Some(address) => (
            address.to_string(),
            "; another address where its agent_listen was set",
        ),
        None => ("ADDRESS".to_owned(), ", with what its agent_listen was"),
    };
    format!(
        "  `curl -X POST {key}http://{address}/kvlens/v1/deregister` first, so that routers forget \
         {name}{note}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn installed(config: &Config) -> Installed {
        Installed {
            plan: HostPlan::new(config),
            stale: Vec::new(),
            rivals: Vec::new(),
            has_agent_keys: false,
            is_enabled: true,
            has_changed: true,
        }
    }

    #[test]
    fn what_runs_is_restarted_and_what_does_not_is_started() {
        let base = installed(&Config::default());
        for (is_enabled, has_changed, part) in [
            (false, true, "Next: `systemctl enable --now kvlens.target`"),
            (false, false, "Next: `systemctl enable --now kvlens.target`"),
            (true, true, "Next: `systemctl restart kvlens.target`"),
            (true, false, "The units are as they were"),
        ] {
            let text = next_steps(&Installed {
                plan: base.plan.clone(),
                stale: Vec::new(),
                rivals: vec!["etcd.service"],
                is_enabled,
                has_changed,
                ..base
            });
            assert!(text.contains(part), "{text}");
            assert!(text.contains("No worker is planned: to run"), "{text}");
            assert!(
                text.contains("systemctl disable --now etcd.service"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_worker_leaves_before_it_is_stopped() {
        let mut left = installed(&Config::default());
        left.stale = ["kvlens-engine@a-5.service", "kvlens-worker@a-5.service"]
            .map(str::to_owned)
            .into();
        let text = next_steps(&left);
        let leaves = "`curl -X POST http://127.0.0.1:8205/kvlens/v1/deregister`";
        let stops = "`systemctl stop kvlens-engine@a-5.service kvlens-worker@a-5.service`";
        let at = |part| text.find(part);
        assert!(at(leaves).is_some() && at(leaves) < at(stops), "{text}");
        assert!(at(stops) < at("Next: "), "{text}");
        left.stale = vec!["kvlens-worker@blue.service".to_owned()];
        left.has_agent_keys = true;
        let text = next_steps(&left);
        let leaves =
            "curl -X POST -H 'Authorization: Bearer KEY' http://ADDRESS/kvlens/v1/deregister";
        assert!(text.contains(leaves), "{text}");
    }

    #[test]
    fn workers_that_no_role_runs_are_told_of() {
        let mut config = Config::default();
        config.units.roles.clear();
        let named = ("gpu-0".to_owned(), InstanceConfig::default());
        config.workers.extend([named]);
        let text = next_steps(&installed(&config));
        assert!(text.contains("units.roles has no \"inference\""), "{text}");
    }
}
