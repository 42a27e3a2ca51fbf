//! What the system allows a process here: open files, queues of connections, memory for images.

use std::fs;

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use crate::commands::doctor::finding::{Check, Finding};
use crate::config::Config;
use crate::config::media::Transfer;
use crate::http::listener::BACKLOG;
use crate::lifecycle::raise_fd_limit;

/// Where engines' folders of images are, unless an operator puts them elsewhere.
const SHM: &str = "/dev/shm";

const SOMAXCONN: &str = "net.core.somaxconn";
const MIGRATE: &str = "net.ipv4.tcp_migrate_req";

/// Checks the limits that are of use with this configuration.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let before = getrlimit(Resource::Nofile).current;
    let most = raise_fd_limit();
    // A stream takes two files: the client's connection and the engine's.
    let needed = config.frontend.limits.connections_max as u64 * 2;
    let mut findings = vec![open_files(before, most, needed), queue(setting(SOMAXCONN))];
    if config.frontend.hand_over {
        findings.push(migration(setting(MIGRATE)));
    }
    if config.media.transfer == Transfer::Shm {
        let wanted = config.media.shm_bytes_max as u64;
        let free = statvfs(SHM).ok();
        let free = free.map(|found| found.f_bavail.saturating_mul(found.f_frsize));
        findings.push(room(SHM, free, wanted));
        findings.push(room("memory", available_memory(), wanted));
    }
    findings
}

fn open_files(before: Option<u64>, most: Option<u64>, needed: u64) -> Finding {
    const SUBJECT: &str = "open files";
    let number = |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    let seen = format!(
        "soft limit {} here, which each role raises to {}",
        number(before),
        number(most)
    );
    match most.is_some_and(|most| most < needed) {
        true => Finding::warn(
            Check::Limits,
            SUBJECT,
            format!(
                "{seen}; frontend.limits.connections_max streams take {needed}, and more than the \
                 limit are refused"
            ),
            format!("set LimitNOFILE={needed} in the unit, or `ulimit -Hn {needed}` as root"),
        ),
        false => Finding::ok(Check::Limits, SUBJECT, seen),
    }
}

fn queue(found: Option<u64>) -> Finding {
    let needed = u64::from(BACKLOG);
    match found {
        None => unknown(SOMAXCONN),
        Some(found) if found < needed => Finding::warn(
            Check::Limits,
            SOMAXCONN,
            format!("{found}, and listeners ask for {needed}: clients wait in a burst"),
            format!("sysctl -w {SOMAXCONN}=4096"),
        ),
        Some(found) => Finding::ok(Check::Limits, SOMAXCONN, found.to_string()),
    }
}

fn migration(found: Option<u64>) -> Finding {
    match found {
        None => unknown(MIGRATE),
        Some(0) => Finding::warn(
            Check::Limits,
            MIGRATE,
            "0: who connects in the moment in which a frontend hands over is reset",
            format!("sysctl -w {MIGRATE}=1"),
        ),
        Some(found) => Finding::ok(Check::Limits, MIGRATE, found.to_string()),
    }
}

fn room(what: &str, free: Option<u64>, wanted: u64) -> Finding {
    let mib = |bytes: u64| bytes >> 20;
    match free {
        None => unknown(what),
        Some(free) if free < wanted => Finding::warn(
            Check::Limits,
            what,
            format!(
                "{} MiB free, and media.shm_bytes_max is {} MiB: images that find no room go inside \
                 requests",
                mib(free),
                mib(wanted)
            ),
            "free some, or lower media.shm_bytes_max",
        ),
        Some(free) => Finding::ok(Check::Limits, what, format!("{} MiB free", mib(free))),
    }
}

fn unknown(what: &str) -> Finding {
    Finding::skip(Check::Limits, what, "the system does not say")
}

/// A setting of the kernel, as `net.core.somaxconn`.
fn setting(name: &str) -> Option<u64> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Bytes that programs may still take.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn what_is_too_small_is_a_warning_with_its_remedy() {
        let few = open_files(Some(1_024), Some(4_096), 32_768);
        assert!(
            few.next
                .as_deref()
                .unwrap_or_default()
                .contains("LimitNOFILE=32768")
        );
        for (finding, status, part) in [
            (
                few,
                Status::Warn,
                "soft limit 1024 here, which each role raises to 4096",
            ),
            (
                open_files(Some(1_024), None, 32_768),
                Status::Ok,
                "raises to none",
            ),
            (open_files(None, Some(32_768), 32_768), Status::Ok, "32768"),
            (queue(Some(128)), Status::Warn, "128"),
            (queue(Some(4_096)), Status::Ok, "4096"),
            (queue(None), Status::Skip, "does not say"),
            (migration(Some(0)), Status::Warn, "is reset"),
            (migration(Some(1)), Status::Ok, "1"),
            (
                room("m", Some(5 << 20), 6 << 20),
                Status::Warn,
                "5 MiB free",
            ),
            (room("m", Some(6 << 20), 6 << 20), Status::Ok, "6 MiB free"),
            (room("m", None, 1), Status::Skip, "does not say"),
        ] {
            assert_eq!(finding.status, status, "{finding:?}");
            assert!(finding.seen.contains(part), "{finding:?}");
        }
    }

    #[test]
    fn only_what_is_used_is_looked_at() {
        let mut config = Config::default();
        let subjects = |config: &Config| -> Vec<String> {
            check(config)
                .into_iter()
                .map(|finding| finding.subject)
                .collect()
        };
        assert_eq!(subjects(&config), ["open files", SOMAXCONN]);
        config.frontend.hand_over = true;
        config.media.transfer = Transfer::Shm;
        assert_eq!(
            subjects(&config),
            ["open files", SOMAXCONN, MIGRATE, SHM, "memory"]
        );
    }
}
