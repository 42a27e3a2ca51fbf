//! Bytes that an engine may fetch: each under a token that nobody can guess, for as long as whoever
//! lent them holds on, and no longer.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::http::header::CACHE_CONTROL;
use ::http::{HeaderName, StatusCode};
use bytes::Bytes;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::http::reply::Reply;
use crate::http::{Call, Limits, Routes};
use crate::openai::error::{ApiError, ErrorKind};

/// Where all that is lent lies.
const FOLDER: &str = "/media/";

/// Most that is lent at once: what 4,096 requests with sixteen images each name.
const LENT_MAX: usize = 65_536;

/// Longest time for which a token is good. An engine fetches when a request reaches it, before the
/// request waits there; what is held for longer is a stream that goes on.
const LENT_FOR: Duration = Duration::from_secs(600);

/// Keeps a browser that is led here from taking what it gets for a page.
const CONTENT_TYPE_OPTIONS: HeaderName = HeaderName::from_static("x-content-type-options");

/// Why bytes are not lent.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    #[error("{held} of {max} bytes are lent, which leaves no room for {bytes}")]
    Full {
        bytes: usize,
        held: usize,
        max: usize,
    },
    #[error("{max} tokens are given out")]
    TooMany { max: usize },
    #[error("the system gives no random bits")]
    NoRandom(#[from] rustix::io::Errno),
}

/// All that is lent, bounded together. Clones share it.
#[derive(Clone, Debug)]
pub struct Loans {
    /// What is put before a token, as `http://10.0.0.5:8002/media/`.
    base: Arc<str>,
    bytes_max: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    entries: HashMap<Token, Entry>,
}

#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    mime: &'static str,
    until: Instant,
    was_fetched: Arc<AtomicBool>,
}

/// 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Token(u128);

/// Bytes that may be fetched; dropped, they may not any more.
#[derive(Debug)]
pub struct Lent {
    url: String,
    token: Token,
    was_fetched: Arc<AtomicBool>,
    held: Arc<Mutex<Held>>,
}

impl Lent {
    /// Where they are fetched.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether anybody has fetched them.
    pub fn was_fetched(&self) -> bool {
        self.was_fetched.load(Ordering::Relaxed)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.held).remove(self.token);
    }
}

impl Loans {
    /// Nothing yet; at most `bytes_max` bytes later. Others reach the listener that has
    /// [`Loans::routes`] at `origin`, as `http://10.0.0.5:8002`.
    pub fn new(origin: &str, bytes_max: usize) -> Self {
        Self {
            base: format!("{}{FOLDER}", origin.trim_end_matches('/')).into(),
            bytes_max,
            held: Arc::default(),
        }
    }

    /// Lends bytes of a MIME type.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn lend(&self, bytes: Bytes, mime: &'static str) -> Result<Lent, LendError> {
        let token = Token::random()?;
        let now = Instant::now();
        let was_fetched = Arc::<AtomicBool>::default();
        let mut held = lock(&self.held);
        if held.bytes.saturating_add(bytes.len()) > self.bytes_max || held.entries.len() >= LENT_MAX
        {
            held.remove_old(now);
        }
        if held.bytes.saturating_add(bytes.len()) > self.bytes_max {
            return Err(LendError::Full {
                bytes: bytes.len(),
                held: held.bytes,
                max: self.bytes_max,
            });
        }
        if held.entries.len() >= LENT_MAX {
            return Err(LendError::TooMany { max: LENT_MAX });
        }
        held.bytes += bytes.len();
        let entry = Entry {
            bytes,
            mime,
            until: now + LENT_FOR,
            was_fetched: was_fetched.clone(),
        };
        held.entries.insert(token, entry);
        Ok(Lent {
            url: format!("{}{token}", self.base),
            token,
            was_fetched,
            held: self.held.clone(),
        })
    }

    /// How the address of everything here begins.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The routes of the listener from which engines fetch: nothing is listed, and a token that is
    /// not good is a path that is not there.
    pub fn routes(&self) -> Routes {
        let held = self.held.clone();
        Routes::default().get(&format!("{FOLDER}{{token}}"), move |call: Call| {
            let reply = answer(&held, call.uri.path());
            Box::pin(std::future::ready(reply))
        })
    }
}

/// Limits of that listener: a request has a head and no body, and each engine of a rack may fetch some
/// images at once.
pub fn limits() -> Limits {
    Limits {
        body_bytes_max: 1 << 10,
        bodies_in_flight_bytes_max: 1 << 20,
        header_bytes_max: 8 << 10,
        header_read: Duration::from_secs(10),
        body_read: Duration::from_secs(5),
        connections_max: 2_048,
    }
}

fn answer(held: &Mutex<Held>, path: &str) -> Reply {
    let token = path.strip_prefix(FOLDER).and_then(Token::parse);
    let found = token.and_then(|token| lock(held).get(token, Instant::now()));
    let reply = match found {
        Some((bytes, mime)) => Reply::full(StatusCode::OK, mime, bytes),
        None => {
            let kind = ErrorKind::InvalidRequestError;
            ApiError::new(404, kind, "not_found", "nothing is lent here").into()
        }
    };
    reply
        .with_header(CACHE_CONTROL, "no-store")
        .with_header(CONTENT_TYPE_OPTIONS, "nosniff")
}

impl Held {
    fn get(&self, token: Token, now: Instant) -> Option<(Bytes, &'static str)> {
        let entry = self.entries.get(&token)?;
        if entry.until <= now {
            return None;
        }
        entry.was_fetched.store(true, Ordering::Relaxed);
        Some((entry.bytes.clone(), entry.mime))
    }

    fn remove(&mut self, token: Token) {
        if let Some(entry) = self.entries.remove(&token) {
            self.bytes -= entry.bytes.len();
        }
    }

    /// Lets go of what nobody may fetch any more.
    fn remove_old(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.until > now);
        self.bytes = self.entries.values().map(|entry| entry.bytes.len()).sum();
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    // Nothing panics under it: what it guards is whole.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Token {
    fn random() -> Result<Self, rustix::io::Errno> {
        let mut bytes = [0; 16];
        // So few bytes come whole, or not at all.
        match getrandom(&mut bytes[..], GetRandomFlags::empty())? {
            16 => Ok(Self(u128::from_le_bytes(bytes))),
            _ => Err(rustix::io::Errno::IO),
        }
    }

    /// A token as it is written, and in no other way.
    fn parse(text: &str) -> Option<Self> {
        let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let is_written = text.len() == 32 && text.bytes().all(is_digit);
        let bits = is_written.then(|| u128::from_str_radix(text, 16).ok());
        bits.flatten().map(Self)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Whoever knows a token may fetch: it stays out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(loans: &Loans, path: &str) -> u16 {
        answer(&loans.held, path).status.as_u16()
    }

    fn path(lent: &Lent) -> String {
        lent.url().trim_start_matches("http://host:1").to_owned()
    }

    #[test]
    fn a_token_is_good_while_it_is_held_and_no_other_is() {
        let loans = Loans::new("http://host:1/", 10);
        let lent = loans
            .lend(Bytes::from_static(b"picture"), "image/png")
            .unwrap();
        let path = path(&lent);
        assert!(!lent.was_fetched());
        for wrong in [
            "/media/".to_owned(),
            "/media/0".to_owned(),
            format!("/media/{:032x}", 7),
            path.to_uppercase(),
            format!("{path}0"),
            format!("/media/+{}", &path[8..]),
        ] {
            assert_eq!(status(&loans, &wrong), 404, "{wrong}");
        }
        assert!(!lent.was_fetched());
        let reply = answer(&loans.held, &path);
        assert_eq!(reply.headers["content-type"], "image/png");
        assert_eq!(reply.headers["cache-control"], "no-store");
        assert_eq!(format!("{:?}", reply.body), "Full(7 bytes)");
        assert!(lent.was_fetched());
        assert!(!format!("{lent:?}").contains(&format!("Token({}", lent.token)));
        drop(lent);
        assert_eq!(status(&loans, &path), 404);
        assert_eq!(lock(&loans.held).bytes, 0);
    }

    #[test]
    fn what_is_lent_is_bounded_in_bytes_and_in_time() {
        let loans = Loans::new("http://host:1", 10);
        let seven = || loans.lend(Bytes::from_static(b"picture"), "image/png");
        let first = seven().unwrap();
        let full = seven().unwrap_err();
        assert!(
            matches!(
                full,
                LendError::Full {
                    bytes: 7,
                    held: 7,
                    max: 10
                }
            ),
            "{full}"
        );
        let later = Instant::now() + LENT_FOR;
        let mut held = lock(&loans.held);
        assert!(held.get(first.token, later).is_none());
        held.remove_old(later);
        assert_eq!((held.bytes, held.entries.len()), (0, 0));
        drop(held);
        let second = seven().unwrap();
        drop(first);
        assert_eq!(lock(&loans.held).bytes, 7, "the first was gone already");
        drop(second);
    }

    #[test]
    fn no_two_tokens_are_alike() {
        let loans = Loans::new("http://host:1", 10);
        let lent: Vec<_> = (0..100)
            .map(|_| loans.lend(Bytes::new(), "text/plain"))
            .collect();
        let urls: std::collections::HashSet<_> = lent
            .iter()
            .map(|lent| lent.as_ref().unwrap().url())
            .collect();
        assert_eq!(urls.len(), 100);
    }
}
