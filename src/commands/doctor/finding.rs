//! What a check found, and how findings are shown: a line each, or JSON.

use std::path::Path;

use serde::Serialize;

/// Longest text of a finding's part, in characters: what others send is shown, but not at length.
const SHOWN_CHARS_MAX: usize = 400;

/// What was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    Configuration,
    Keys,
    Limits,
    Clock,
    Gpu,
    Model,
    Etcd,
    Nats,
    Agent,
    Engine,
    Worker,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// It works, less well than it could or not for long.
    Warn,
    Fail,
    /// It was not checked, and why is what was seen.
    Skip,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: Check,
    /// Of what: a file, an address, a worker.
    pub subject: String,
    pub status: Status,
    /// What was seen there.
    pub seen: String,
    /// What to do about it; `None` where there is nothing to do.
    pub next: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: Check, subject: &str, seen: impl Into<String>) -> Self {
        Self::new((check, Status::Ok), subject, &seen.into(), None)
    }

    pub(crate) fn skip(check: Check, subject: &str, seen: impl Into<String>) -> Self {
        Self::new((check, Status::Skip), subject, &seen.into(), None)
    }

    pub(crate) fn warn(
        check: Check,
        subject: &str,
        seen: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self::off((check, Status::Warn), subject, seen, next)
    }

    pub(crate) fn fail(
        check: Check,
        subject: &str,
        seen: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self::off((check, Status::Fail), subject, seen, next)
    }

    fn off(
        (check, status): (Check, Status),
        subject: &str,
        seen: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let next = next.into();
        Self::new((check, status), subject, &seen.into(), Some(&next))
    }

    fn new(
        (check, status): (Check, Status),
        subject: &str,
        seen: &str,
        next: Option<&str>,
    ) -> Self {
        Self {
            check,
            subject: shown(subject),
            status,
            seen: shown(seen),
            next: next.map(shown),
        }
    }

    fn line(&self) -> String {
        let (check, status) = (self.check.name(), self.status.name());
        let Self { subject, seen, .. } = self;
        let next = self.next.as_deref();
        let next = next.map_or_else(String::new, |next| format!("; next: {next}"));
        format!("{status:<4}  {check:<13}  {subject}: {seen}{next}\n")
    }
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Keys => "keys",
            Self::Limits => "limits",
            Self::Clock => "clock",
            Self::Gpu => "gpu",
            Self::Model => "model",
            Self::Etcd => "etcd",
            Self::Nats => "nats",
            Self::Agent => "agent",
            Self::Engine => "engine",
            Self::Worker => "worker",
        }
    }
}

impl Status {
    const ALL: [Self; 4] = [Self::Ok, Self::Warn, Self::Fail, Self::Skip];

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// Findings as lines for a person, the count of each kind last.
pub fn page(findings: &[Finding]) -> String {
    let lines: String = findings.iter().map(Finding::line).collect();
    let counts = Status::ALL.map(|status| format!("{} {}", count(findings, status), status.name()));
    format!("{lines}{}\n", counts.join(", "))
}

/// Findings as a JSON array.
pub fn json(findings: &[Finding]) -> String {
    // Strings and names alone: there is nothing in them that JSON could not say.
    let text = serde_json::to_string_pretty(findings).unwrap_or_default();
    format!("{text}\n")
}

/// How many findings are of a kind.
pub fn count(findings: &[Finding], status: Status) -> usize {
    let is = |finding: &&Finding| finding.status == status;
    findings.iter().filter(is).count()
}

/// Whether the configuration itself cannot be used.
pub fn is_unusable(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.check == Check::Configuration && finding.status == Status::Fail)
}

/// A configured path, or that there is none, as a key file is named to an operator.
pub(super) fn key_file(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("discovery.key_file ({})", path.display()),
        None => "discovery.key_file, which is unset".to_owned(),
    }
}

/// Text that a terminal shows and does not obey, on one line: some of it comes from others.
fn shown(text: &str) -> String {
    let text = text.chars().take(SHOWN_CHARS_MAX);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok(Check::Clock, "http://a:1", "0 s apart"),
            Finding::warn(Check::Gpu, "NVIDIA", "no driver", "install it"),
            Finding::fail(Check::Etcd, "http://e:2379", "silent", "start it"),
            Finding::skip(Check::Nats, "nats.servers", "unset"),
        ]
    }

    #[test]
    fn findings_are_a_line_each() {
        let wanted = "ok    clock          http://a:1: 0 s apart\n\
                      warn  gpu            NVIDIA: no driver; next: install it\n\
                      fail  etcd           http://e:2379: silent; next: start it\n\
                      skip  nats           nats.servers: unset\n\
                      1 ok, 1 warn, 1 fail, 1 skip\n";
        assert_eq!(page(&findings()), wanted);
    }

    #[test]
    fn json_has_the_same_names() {
        let value: serde_json::Value = serde_json::from_str(&json(&findings())).unwrap();
        let wanted = serde_json::json!({
            "check": "etcd", "subject": "http://e:2379", "status": "fail",
            "seen": "silent", "next": "start it",
        });
        assert_eq!(value[2], wanted);
        assert_eq!(value[3]["next"], serde_json::Value::Null);
        for (finding, value) in findings().iter().zip(value.as_array().unwrap()) {
            assert_eq!(value["check"], finding.check.name());
            assert_eq!(value["status"], finding.status.name());
        }
    }

    #[test]
    fn what_others_say_stays_on_its_line_and_short() {
        let sent = format!("a\n\u{1b}[2Jb{}", "x".repeat(1_000));
        let finding = Finding::ok(Check::Agent, "u", sent);
        assert!(finding.seen.starts_with("a  [2Jb"), "{}", finding.seen);
        assert_eq!(finding.seen.chars().count(), SHOWN_CHARS_MAX);
        assert_eq!(finding.line().matches('\n').count(), 1);
    }

    #[test]
    fn only_a_configuration_that_fails_is_unusable() {
        for (status, check, unusable) in [
            (Status::Fail, Check::Configuration, true),
            (Status::Ok, Check::Configuration, false),
            (Status::Fail, Check::Etcd, false),
        ] {
            let finding = Finding::new((check, status), "s", "", None);
            assert_eq!(is_unusable(&[finding]), unusable, "{status:?} {check:?}");
        }
    }
}
