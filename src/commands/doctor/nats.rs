//! Each NATS server: whether it lets us in, what it takes, and which routers are heard there.

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bus::BusError;
use crate::bus::probe::{self, BusFault, ServerFacts};
use crate::bus::subjects::ALL_ALIVE;
use crate::commands::doctor::finding::{Check, Finding};
use crate::commands::doctor::{NATS_MAX, millis};
use crate::config::Config;
use crate::config::frontend::RouterPlace;
use crate::config::nats::NatsConfig;
use crate::telemetry::causes::told;

/// Largest message that a server must take: its default, which snapshots are cut for.
const MESSAGE_BYTES_MIN: usize = 1 << 20;

/// Asks every server that is named, all at once.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    if !config.nats.is_used() {
        let seen = "unset: routers read each agent's feed over HTTP";
        return vec![Finding::skip(Check::Nats, "nats.servers", seen)];
    }
    let is_asked = config.frontend.router == RouterPlace::Remote;
    let mut asking = JoinSet::new();
    for (number, server) in config.nats.servers.iter().cloned().enumerate() {
        let nats = config.nats.clone();
        asking.spawn(async move {
            let answer = timeout(NATS_MAX, probe::ask(&nats, &server)).await;
            let findings = match answer {
                Ok(Ok(facts)) => judge(&server, &facts, is_asked),
                Ok(Err(error)) => vec![unanswered(&nats, &server, &error)],
                Err(_) => vec![silent(&server)],
            };
            (number, findings)
        });
    }
    let mut findings = asking.join_all().await;
    findings.sort_by_key(|(number, _)| *number);
    findings.into_iter().flat_map(|(_, found)| found).collect()
}

fn judge(server: &str, facts: &ServerFacts, is_asked: bool) -> Vec<Finding> {
    let warn = |seen: String, next: &str| Finding::warn(Check::Nats, server, seen, next);
    let fail = |seen: String, next: &str| Finding::fail(Check::Nats, server, seen, next);
    let bytes_max = facts.message_bytes_max;
    let version = &facts.version;
    let of_inbox = |refusal: &&String| refusal.to_ascii_lowercase().contains("_inbox");
    let is_closed = facts.refusals.iter().any(|refusal| of_inbox(&refusal));
    let about = format!("version {version}, takes {bytes_max} bytes");
    let mut findings = match facts.round_trip {
        Some(took) => {
            let seen = format!("{about}, a message to us took {}", millis(took));
            vec![Finding::ok(Check::Nats, server, seen)]
        }
        None if is_closed => vec![Finding::ok(Check::Nats, server, about)],
        None => vec![fail(
            format!("{about}: a message of ours to our own inbox did not come back"),
            "restart the server if it stays so, and see its log",
        )],
    };
    for refusal in &facts.refusals {
        // Users of a guarded bus may do what their role needs, and no more: hardly one may write to
        // itself, and an agent's hears no routers.
        findings.push(match is_asked && !of_inbox(&refusal) {
            true => fail(
                format!("it refused: {refusal}"),
                "let the frontend's user subscribe kvlens.router.*.alive in the server's configuration",
            ),
            false => Finding::skip(
                Check::Nats,
                server,
                format!("our user may not, so it was not tried: {refusal}"),
            ),
        });
    }
    if bytes_max < MESSAGE_BYTES_MIN {
        findings.push(warn(
            format!(
                "it takes messages of {bytes_max} bytes, and snapshots may have {MESSAGE_BYTES_MIN}"
            ),
            "max_payload: 1MB in the server's configuration",
        ));
    }
    findings.push(match (&facts.routers[..], is_asked) {
        ([], true) => fail(
            format!("no router was heard on {ALL_ALIVE}, and frontend.router is remote"),
            "start `kvlens router --id NAME` with these servers; until then frontends take turns",
        ),
        ([], false) => Finding::skip(
            Check::Nats,
            server,
            "no router was heard, and none is needed: frontend.router is embedded",
        ),
        (routers, _) => {
            let seen = format!("routers heard: {}", routers.join(", "));
            Finding::ok(Check::Nats, server, seen)
        }
    });
    findings
}

fn unanswered(nats: &NatsConfig, server: &str, error: &BusError) -> Finding {
    let next = match (error.fault(), &nats.user) {
        (BusFault::Configuration, _) => {
            "correct nats.servers, or the file that is named".to_owned()
        }
        (BusFault::Credentials, Some(user)) => {
            format!(
                "check nats.user ({user}) and nats.password_file against the server's configuration"
            )
        }
        (BusFault::Credentials, None) => {
            "check nats.creds_file, nats.nkey_file, or nats.user and nats.password_file".to_owned()
        }
        (BusFault::Certificate, _) => {
            "check nats.ca_file, nats.cert_file and nats.cert_key_file, and the clock".to_owned()
        }
        (BusFault::Away, _) => {
            format!(
                "start nats-server there, open the way to it, or correct nats.servers ({server})"
            )
        }
    };
    Finding::fail(Check::Nats, server, told(error), next)
}

fn silent(server: &str) -> Finding {
    let next = "is it a NATS server? restart it, or correct nats.servers";
    let seen = format!("it accepted and said nothing within {}", millis(NATS_MAX));
    Finding::fail(Check::Nats, server, seen, next)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::commands::doctor::finding::Status;

    fn facts() -> ServerFacts {
        ServerFacts {
            version: "2.9.10".to_owned(),
            message_bytes_max: 1 << 20,
            round_trip: Some(Duration::from_millis(3)),
            routers: vec!["r1".to_owned(), "r2".to_owned()],
            refusals: Vec::new(),
        }
    }

    #[test]
    fn a_server_is_judged_by_what_it_said() {
        let with = |change: fn(&mut ServerFacts)| {
            let mut facts = facts();
            change(&mut facts);
            facts
        };
        let closed = |f: &mut ServerFacts| {
            f.round_trip = None;
            f.refusals.push("Publish to \"_INBOX.x\"".to_owned());
        };
        let denied = |f: &mut ServerFacts| f.refusals.push("permissions violation".to_owned());
        for (facts, is_asked, status, part) in [
            (facts(), true, Status::Ok, "routers heard: r1, r2"),
            (
                facts(),
                false,
                Status::Ok,
                "version 2.9.10, takes 1048576 bytes",
            ),
            (
                with(|f| f.routers.clear()),
                true,
                Status::Fail,
                "no router was heard",
            ),
            (
                with(|f| f.routers.clear()),
                false,
                Status::Skip,
                "none is needed",
            ),
            (
                with(|f| f.message_bytes_max = 65_536),
                false,
                Status::Warn,
                "65536 bytes, and",
            ),
            (
                with(|f| f.round_trip = None),
                false,
                Status::Fail,
                "did not come back",
            ),
            (with(denied), false, Status::Skip, "permissions violation"),
            (with(denied), true, Status::Fail, "permissions violation"),
            (with(closed), true, Status::Skip, "Publish to \"_INBOX.x\""),
            (with(closed), true, Status::Ok, "takes 1048576 bytes"),
        ] {
            let found = judge("nats://a:1", &facts, is_asked);
            let named = found.iter().find(|found| found.seen.contains(part));
            assert_eq!(
                named.map(|found| found.status),
                Some(status),
                "{part}: {found:?}"
            );
            assert!(found.len() <= 3, "{found:?}");
        }
    }
}
