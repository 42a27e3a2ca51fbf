//! Our clock beside those of the hosts that were reached, by the `Date` of their answers.

use jiff::Timestamp;
use jiff::fmt::rfc2822;

use crate::commands::doctor::finding::{Check, Finding};

/// Clocks that differ by more are told of; a `Date` has whole seconds and is some old.
const SKEW_SECS_MAX: i64 = 5;

const SUBJECT: &str = "our clock";

/// What a clock that is off does.
const EFFECT: &str = "the times of logs do not fit together, and TLS certificates may count as out of \
                      date; leases and time-outs do not depend on it";

const NEXT: &str = "`timedatectl` on both hosts, and turn time synchronisation on where it is off";

/// How far another host's clock is ahead of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skew {
    pub(super) host: String,
    pub(super) secs: i64,
}

impl Skew {
    /// By the `Date` header of an answer that came at `now`; `None` where it has none.
    pub(super) fn of(host: &str, date: Option<&[u8]>, now: Timestamp) -> Option<Self> {
        let text = std::str::from_utf8(date?).ok()?;
        let theirs = rfc2822::parse(text).ok()?.timestamp();
        Some(Self {
            host: host.to_owned(),
            secs: theirs.as_second() - now.as_second(),
        })
    }
}

/// What the clocks of all hosts that answered say.
pub(super) fn check(skews: &[Skew]) -> Vec<Finding> {
    if skews.is_empty() {
        let seen = "no host answered with its time; `timedatectl` says whether it is kept in step";
        return vec![Finding::skip(Check::Clock, SUBJECT, seen)];
    }
    let is_off = |skew: &&Skew| skew.secs.abs() > SKEW_SECS_MAX;
    let off: Vec<_> = skews.iter().filter(is_off).collect();
    if off.is_empty() {
        let seen = format!("{} hosts agree within {SKEW_SECS_MAX} s", skews.len());
        return vec![Finding::ok(Check::Clock, SUBJECT, seen)];
    }
    // Where all others are off the same way, it is ours that is.
    let nearest = skews.iter().map(|skew| skew.secs.abs()).min();
    let are_ahead = skews.iter().all(|skew| skew.secs > SKEW_SECS_MAX);
    let are_behind = skews.iter().all(|skew| skew.secs < -SKEW_SECS_MAX);
    match (skews, nearest) {
        ([_, _, ..], Some(secs)) if are_ahead || are_behind => {
            let which = if are_ahead { "behind" } else { "ahead of" };
            let seen = format!(
                "{secs} s or more {which} all {} others: {EFFECT}",
                skews.len()
            );
            vec![Finding::warn(Check::Clock, SUBJECT, seen, NEXT)]
        }
        _ => off.into_iter().map(apart).collect(),
    }
}

fn apart(skew: &Skew) -> Finding {
    let Skew { host, secs } = skew;
    let which = if *secs > 0 { "ahead of" } else { "behind" };
    let secs = secs.unsigned_abs();
    let seen = format!("its clock is {secs} s {which} ours: {EFFECT}");
    Finding::warn(Check::Clock, host, seen, NEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn a_date_is_compared_with_our_time() {
        let now: Timestamp = "2026-11-28T12:00:00.9Z".parse().unwrap();
        for (date, secs) in [
            (Some("Sat, 28 Nov 2026 12:00:00 GMT"), Some(0)),
            (Some("Sat, 28 Nov 2026 11:59:50 GMT"), Some(-10)),
            (Some("Sat, 28 Nov 2026 13:00:00 GMT"), Some(3_600)),
            (Some("yesterday"), None),
            (None, None),
        ] {
            let found = Skew::of("h", date.map(str::as_bytes), now);
            assert_eq!(found.map(|skew| skew.secs), secs, "{date:?}");
        }
    }

    #[test]
    fn a_clock_that_is_off_is_told_of_with_what_it_does_not_matter_for() {
        let skew = |secs| Skew {
            host: "http://a:1".to_owned(),
            secs,
        };
        assert_eq!(check(&[])[0].status, Status::Skip);
        let agreed = check(&[skew(-5), skew(5)]);
        assert_eq!(agreed[0].status, Status::Ok);
        assert_eq!(agreed.len(), 1);
        for (secs, part) in [(-6, "6 s behind ours"), (3_600, "3600 s ahead of ours")] {
            let found = check(&[skew(0), skew(secs)]);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].status, Status::Warn);
            assert!(found[0].seen.contains(part), "{found:?}");
            assert!(found[0].seen.contains("leases and time-outs do not"));
        }
        for (secs, part) in [
            (6, "6 s or more behind all 2"),
            (-6, "6 s or more ahead of all 2"),
        ] {
            let found = check(&[skew(secs), skew(secs * 2)]);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].subject, SUBJECT);
            assert!(found[0].seen.contains(part), "{found:?}");
        }
    }
}
