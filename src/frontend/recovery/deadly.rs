//! Requests that engines have died of: sent again, they would take one engine after the other.

use std::collections::VecDeque;
use std::time::Duration;

/// How long such a request is refused: longer than clients retry by themselves, and than engines
/// need to load their weights again.
pub const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Most requests that are refused at once; the oldest gives way. Each costs two engines, so that
/// more would be the engines' fault rather than the requests'.
const REQUESTS_MAX: usize = 1_024;

/// What a request is known by: its path and its body as engines get it, images included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestDigest {
    pub blake3: [u8; 32],
    /// Length of the body by which most requests are told apart without reading them.
    pub body_bytes: usize,
}

/// The requests refused now. A time is what has passed since some start.
#[derive(Debug, Default)]
pub struct DeadlyRequests {
    /// By the time from which each is refused.
    refused: VecDeque<(Duration, RequestDigest)>,
}

impl DeadlyRequests {
    /// Refuses a request from now on.
    pub fn note(&mut self, request: RequestDigest, now: Duration) {
        self.forget(now);
        self.refused.retain(|(_, known)| *known != request);
        if self.refused.len() == REQUESTS_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back((now, request));
    }

    /// Whether a request with a body of this length may be one that is refused.
    pub fn knows_length(&mut self, body_bytes: usize, now: Duration) -> bool {
        self.forget(now);
        let mut known = self.refused.iter();
        known.any(|(_, known)| known.body_bytes == body_bytes)
    }

    /// Whether a request is refused.
    pub fn knows(&self, request: &RequestDigest, now: Duration) -> bool {
        let mut known = self.refused.iter();
        known.any(|(since, known)| known == request && is_refused(*since, now))
    }

    fn forget(&mut self, now: Duration) {
        let is_over = |entry: &(Duration, RequestDigest)| !is_refused(entry.0, now);
        while self.refused.front().is_some_and(is_over) {
            self.refused.pop_front();
        }
    }
}

fn is_refused(since: Duration, now: Duration) -> bool {
    now.saturating_sub(since) < REFUSED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u8, body_bytes: usize) -> RequestDigest {
        RequestDigest {
            blake3: [number; 32],
            body_bytes,
        }
    }

    #[test]
    fn a_request_is_refused_for_ten_minutes() {
        let secs = Duration::from_secs;
        let mut deadly = DeadlyRequests::default();
        assert!(!deadly.knows_length(10, secs(0)));
        deadly.note(request(1, 10), secs(0));
        deadly.note(request(2, 20), secs(300));
        for (asked, at, expected) in [
            (request(1, 10), 0, true),
            (request(1, 10), 599, true),
            (request(1, 10), 600, false),
            (request(2, 20), 600, true),
            (request(2, 20), 900, false),
            (request(3, 10), 0, false),
            (request(1, 11), 0, false),
        ] {
            assert_eq!(deadly.knows(&asked, secs(at)), expected, "{asked:?} {at}");
        }
        assert!(deadly.knows_length(20, secs(600)));
        assert!(!deadly.knows_length(10, secs(600)), "it is forgotten");
        // It died again: from then on.
        deadly.note(request(2, 20), secs(800));
        assert!(deadly.knows(&request(2, 20), secs(1_399)));
    }

    #[test]
    fn their_number_is_bounded() {
        let mut deadly = DeadlyRequests::default();
        for number in 0..=REQUESTS_MAX {
            deadly.note(request(0, number), Duration::ZERO);
        }
        assert_eq!(deadly.refused.len(), REQUESTS_MAX);
        assert!(!deadly.knows(&request(0, 0), Duration::ZERO));
        assert!(deadly.knows(&request(0, REQUESTS_MAX), Duration::ZERO));
    }
}
