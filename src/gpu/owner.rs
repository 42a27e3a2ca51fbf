//! Whose a process is, by its control group.

use std::fs;

/// The control group whose processes are the engine's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// A path below the root of control groups. `None` where it is not known, so that of no process it
    /// can be said whose it is.
    pub cgroup: Option<String>,
}

impl Owner {
    /// The owner of all that runs in the control group of process `pid`.
    pub fn of_process(pid: u32) -> Self {
        Self {
            cgroup: cgroup_of(pid).filter(|cgroup| cgroup != "/"),
        }
    }

    /// Whether process `pid` is the owner's; `None` where that is not known, as for a process that is
    /// gone.
    pub(crate) fn owns(&self, pid: u32) -> Option<bool> {
        Some(is_within(&cgroup_of(pid)?, self.cgroup.as_deref()?))
    }
}

fn cgroup_of(pid: u32) -> Option<String> {
    cgroup_in(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?).map(str::to_owned)
}

/// The control group in the text of `/proc/PID/cgroup`: that of the unified hierarchy, or systemd's own
/// where the kernel has the older ones, in which the unified one is empty.
fn cgroup_in(text: &str) -> Option<&str> {
    let path = |hierarchy| {
        let mut lines = text.lines();
        lines.find_map(|line| line.split_once(':')?.1.strip_prefix(hierarchy))
    };
    let unified = path(":");
    match unified {
        None | Some("/") => path("name=systemd:").or(unified),
        Some(_) => unified,
    }
}

fn is_within(cgroup: &str, owner: &str) -> bool {
    let rest = cgroup.strip_prefix(owner);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_hierarchies_are_read() {
        let unit = Some("/system.slice/engine.service");
        for (text, cgroup) in [
            ("0::/system.slice/engine.service\n", unit),
            (
                "12:devices:/system.slice\n1:name=systemd:/system.slice/engine.service\n0::/\n",
                unit,
            ),
            (
                "4:cpu:/a:b\n1:name=systemd:/system.slice/engine.service\n",
                unit,
            ),
            ("0::/a:b/c\n", Some("/a:b/c")),
            ("0::/\n", Some("/")),
            ("4:cpu:/a\n", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(cgroup_in(text), cgroup, "{text:?}");
        }
    }

    #[test]
    fn a_group_has_those_below_it() {
        for (cgroup, owner, is_own) in [
            ("/a/b", "/a/b", true),
            ("/a/b/c", "/a/b", true),
            ("/a/bc", "/a/b", false),
            ("/a", "/a/b", false),
        ] {
            assert_eq!(is_within(cgroup, owner), is_own, "{cgroup} in {owner}");
        }
    }

    #[test]
    fn without_a_group_nobody_is_known() {
        assert_eq!(Owner::default().owns(std::process::id()), None);
        let nobody = Owner {
            cgroup: Some("/nobody".to_owned()),
        };
        // No process has the number 0.
        assert_eq!(nobody.owns(0), None);
        assert_eq!(Owner::of_process(0), Owner::default());
    }
}
