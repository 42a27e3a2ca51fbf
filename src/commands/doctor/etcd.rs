//! Each member of etcd: whether it lets us read, and which workers are registered there.

use crate::commands::doctor::clock::Skew;
use crate::commands::doctor::finding::{Check, Finding};
use crate::commands::doctor::workers::Candidate;
use crate::config::etcd::EtcdConfig;

/// What etcd told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) findings: Vec<Finding>,
    pub(super) registered: Vec<Candidate>,
    pub(super) skews: Vec<Skew>,
}

/// Asks every member that is named, all at once.
pub(super) async fn check(config: &EtcdConfig) -> Told {
    match config.is_used() {
        true => asked(config).await,
        false => Told {
            findings: vec![Finding::skip(
                Check::Etcd,
                "etcd.endpoints",
                "unset: workers are those that [discovery] names",
            )],
            ..Told::default()
        },
    }
}

/// Without it, the configuration that names it is refused.
#[cfg(not(feature = "etcd"))]
async fn asked(_config: &EtcdConfig) -> Told {
    Told::default()
}

#[cfg(feature = "etcd")]
use members::asked;

#[cfg(feature = "etcd")]
mod members {
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use crate::commands::doctor::etcd::Told;
    use crate::commands::doctor::finding::{Check, Finding};
    use crate::commands::doctor::page::page;
    use crate::commands::doctor::workers::Candidate;
    use crate::commands::doctor::{ETCD_MAX, millis};
    use crate::config::etcd::EtcdConfig;
    use crate::discovery::etcd::fault::{Fault, FaultKind};
    use crate::discovery::etcd::probe::{self, Lease, Member};
    use crate::discovery::membership::WORKERS_PREFIX;
    use crate::dispatch::EngineClient;

    pub(super) async fn asked(config: &EtcdConfig) -> Told {
        let mut asking = JoinSet::new();
        for (number, endpoint) in config.endpoints.iter().cloned().enumerate() {
            let config = config.clone();
            asking.spawn(async move {
                let member = async {
                    let answer = timeout(ETCD_MAX, probe::ask(&config, number)).await;
                    answer.unwrap_or_else(|_| {
                        Err(Fault::Silent {
                            endpoint: endpoint.clone(),
                            waited: ETCD_MAX,
                        })
                    })
                };
                // The same listener tells its version over plain HTTP, and with it its clock. It is
                // shown no key of ours.
                let client = EngineClient::new();
                let clock = page(&client, &endpoint, "/version", ETCD_MAX);
                let (member, clock) = tokio::join!(member, clock);
                let skew = clock.ok().and_then(|page| page.skew);
                (number, endpoint, member, skew)
            });
        }
        let mut answers = asking.join_all().await;
        answers.sort_by_key(|(number, ..)| *number);
        let mut told = Told::default();
        // All members tell the same; the first that answers is believed.
        let mut is_listed = false;
        for (_, endpoint, answer, skew) in answers {
            told.skews.extend(skew);
            match answer {
                Ok(member) => {
                    told.findings.push(reached(&endpoint, &member));
                    if !std::mem::replace(&mut is_listed, true) {
                        list(&mut told, member);
                    }
                }
                Err(fault) => told.findings.push(refused(config, &endpoint, &fault)),
            }
        }
        told
    }

    fn reached(endpoint: &str, member: &Member) -> Finding {
        let version = member.version.as_deref();
        let version =
            version.map_or_else(|| "version not told".to_owned(), |v| format!("version {v}"));
        let took = millis(member.round_trip);
        let workers = member.workers.len();
        let seen = format!("{version}, {took}; {workers} workers under {WORKERS_PREFIX}");
        match workers {
            0 => Finding::warn(
                Check::Etcd,
                endpoint,
                seen,
                "start `kvlens worker --etcd …` beside each engine, or see why its log says that it \
                 cannot register",
            ),
            _ => Finding::ok(Check::Etcd, endpoint, seen),
        }
    }

    fn list(told: &mut Told, member: Member) {
        for (key, error) in &member.bad {
            told.findings.push(Finding::fail(
                Check::Etcd,
                key,
                format!("bad record: {error}"),
                format!(
                    "bring its agent and this program to the same release, or `etcdctl del {key}` if \
                     no agent put it there"
                ),
            ));
        }
        for (record, lease) in member.workers {
            let left = match lease {
                Lease::Absent => {
                    told.findings.push(forever(record.worker.as_str()));
                    "no lease".to_owned()
                }
                Lease::Left(left) => format!("lease {} s left", left.as_secs()),
                Lease::Unknown => "lease not told".to_owned(),
            };
            told.registered.push(Candidate::registered(record, left));
        }
    }

    fn forever(worker: &str) -> Finding {
        Finding::warn(
            Check::Etcd,
            worker,
            "its record has no lease: it stays when its agent is gone",
            format!("`etcdctl del {WORKERS_PREFIX}{worker}` if no agent of this name runs"),
        )
    }

    fn refused(config: &EtcdConfig, endpoint: &str, fault: &Fault) -> Finding {
        let next = match fault.kind() {
            FaultKind::File => {
                "correct the file that is named, which this user must be able to read".to_owned()
            }
            FaultKind::Unreachable => {
                format!(
                    "start etcd there, open the way to it, or correct etcd.endpoints ({endpoint})"
                )
            }
            FaultKind::Certificate => {
                "check etcd.ca_file, etcd.cert_file and etcd.cert_key_file, and the clock"
                    .to_owned()
            }
            FaultKind::Credentials => match (&config.user, &config.password_file) {
                (Some(user), Some(file)) => {
                    format!(
                        "check etcd.user ({user}) and etcd.password_file ({})",
                        file.display()
                    )
                }
                _ => "set etcd.user and etcd.password_file: this etcd asks for a user".to_owned(),
            },
            FaultKind::Forbidden => {
                format!("`etcdctl role grant-permission ROLE read --prefix=true {WORKERS_PREFIX}`")
            }
            FaultKind::Broken | FaultKind::Taken => {
                format!("`etcdctl --endpoints {endpoint} endpoint status`, and see etcd's own log")
            }
        };
        Finding::fail(Check::Etcd, endpoint, fault.cause(), next)
    }
}
