//! Fetches one image over HTTP. This is the only client that follows a URL a user sent.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};
use url::Url;

use crate::config::media::MediaConfig;
use crate::media::cache::{PAGE_TEXT_BYTES_MAX, Page, Validator};
use crate::media::gate::Gate;
use crate::media::{Lookup, MediaError, PolicyError};
use crate::telemetry::causes::told;

/// What a fetch brought.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The image is the one already known.
    NotModified,
    Sent {
        bytes: Bytes,
        /// `None` when the server gave nothing to ask again with, or forbade to keep it.
        page: Option<Page>,
    },
}

/// Fetches images under a policy.
#[derive(Debug)]
pub(crate) struct Fetcher {
    client: Client,
    gate: Arc<Gate>,
    turns: Semaphore,
    first_byte: Duration,
    total: Duration,
    redirects_max: usize,
    bytes_max: usize,
}

impl Fetcher {
    pub(crate) fn new(policy: &MediaConfig, lookup: Lookup) -> Result<Self, PolicyError> {
        let gate = Arc::new(Gate::new(policy)?);
        let connect = duration("connect_secs", policy.connect_secs)?;
        let fetches = policy.fetches_max;
        if !(1..=Semaphore::MAX_PERMITS).contains(&fetches) {
            let max = Semaphore::MAX_PERMITS;
            return Err(PolicyError::Fetches { fetches, max });
        }
        Ok(Self {
            client: client(connect, CheckedLookup::new(lookup, Arc::clone(&gate)))?,
            gate,
            turns: Semaphore::new(fetches),
            first_byte: duration("first_byte_secs", policy.first_byte_secs)?,
            total: duration("total_secs", policy.total_secs)?,
            redirects_max: policy.redirects_max,
            bytes_max: policy.image_bytes_max,
        })
    }

    /// Lets `url` pass when it may be asked.
    ///
    /// # Errors
    /// When scheme, user, port or host are refused.
    pub(crate) fn check(&self, url: &Url) -> Result<(), MediaError> {
        self.gate.check(url)
    }

    /// Fetches `url`, or hears that it has not changed since `known`, within the total time.
    ///
    /// # Errors
    /// When the URL or one it redirects to is refused, or the image does not arrive whole.
    pub(crate) async fn fetch(
        &self,
        url: Url,
        known: Option<&Page>,
    ) -> Result<Outcome, MediaError> {
        let fetch = async {
            let _turn = self.turns.acquire().await;
            self.follow(url, known).await
        };
        let late = |_| MediaError::TimedOut { waited: self.total };
        timeout(self.total, fetch).await.map_err(late)?
    }

    async fn follow(&self, mut url: Url, known: Option<&Page>) -> Result<Outcome, MediaError> {
        for _ in 0..=self.redirects_max {
            self.gate.check(&url)?;
            // A validator from one place says nothing about another.
            let validator = known
                .filter(|page| page.url == url.as_str())
                .map(|page| &page.validator);
            let response = self.ask(&url, validator).await?;
            match response.status() {
                StatusCode::OK => return self.read(response, &url).await,
                StatusCode::NOT_MODIFIED if validator.is_some() => return Ok(Outcome::NotModified),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => url = next_hop(&url, response.headers())?,
                status => {
                    let status = status.as_u16();
                    return Err(MediaError::Status { status });
                }
            }
        }
        let max = self.redirects_max;
        Err(MediaError::TooManyRedirects { max })
    }

    async fn ask(&self, url: &Url, validator: Option<&Validator>) -> Result<Response, MediaError> {
        let request = self.client.get(url.clone());
        let request = match validator {
            Some(Validator::Etag(etag)) => request.header(header::IF_NONE_MATCH, etag),
            Some(Validator::LastModified(date)) => request.header(header::IF_MODIFIED_SINCE, date),
            None => request,
        };
        let waited = self.first_byte;
        match timeout(waited, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if is_refused(&error) => Err(MediaError::HostNotAllowed),
            Ok(Err(error)) => {
                // Without the URL, which may carry a key; the client is told no cause at all.
                debug!(host = url.host_str(), error = %told(&error.without_url()), "image host unreachable");
                Err(MediaError::Unreachable)
            }
            Err(_) => Err(MediaError::TimedOut { waited }),
        }
    }

    async fn read(&self, mut response: Response, url: &Url) -> Result<Outcome, MediaError> {
        let headers = response.headers();
        if is_encoded(headers) {
            return Err(MediaError::Encoded);
        }
        let page = page(url, headers);
        let max = self.bytes_max;
        let declared = response.content_length().unwrap_or(0);
        let declared = usize::try_from(declared).unwrap_or(usize::MAX);
        if declared > max {
            return Err(MediaError::TooManyBytes { max });
        }
        let mut bytes = Vec::with_capacity(declared.min(RESERVED_BYTES_MAX));
        loop {
            let read_bytes = bytes.len();
            match response.chunk().await {
                Ok(Some(chunk)) if chunk.len() > max - read_bytes => {
                    return Err(MediaError::TooManyBytes { max });
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => {
                    let error = told(&error.without_url());
                    debug!(host = url.host_str(), error, read_bytes, "image broke off");
                    return Err(MediaError::BrokenOff { read_bytes });
                }
            }
        }
        // What stays in the cache must weigh what the cache counts.
        bytes.shrink_to_fit();
        let bytes = Bytes::from(bytes);
        Ok(Outcome::Sent { bytes, page })
    }
}

/// Most bytes reserved because a server announced them; the rest must arrive first.
const RESERVED_BYTES_MAX: usize = 1 << 20;

fn duration(key: &'static str, secs: f64) -> Result<Duration, PolicyError> {
    match Duration::try_from_secs_f64(secs) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(PolicyError::Seconds { key, secs }),
    }
}

/// A client that does nothing on its own: no proxy, no redirects, no cookies, no decompression, and
/// certificates judged by the roots compiled in, so that a host without any works as well.
fn client(connect: Duration, lookup: CheckedLookup) -> Result<Client, PolicyError> {
    let roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let headers = [
        (header::ACCEPT, HeaderValue::from_static("image/*")),
        (
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        ),
    ];
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("kvlens/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers.into_iter().collect())
        .referer(false)
        .connect_timeout(connect)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE)
        .dns_resolver(lookup)
        .build()?;
    Ok(client)
}

/// Idle connections kept to one host: enough for a request with several images there.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// How long a connection is kept idle. Short, because a kept one skips the look-up, and so the
/// check of what a name has come to mean.
const IDLE: Duration = Duration::from_secs(15);

/// Where a redirect leads.
fn next_hop(from: &Url, headers: &HeaderMap) -> Result<Url, MediaError> {
    let location = headers.get(header::LOCATION).map(HeaderValue::to_str);
    let Some(Ok(location)) = location else {
        return Err(MediaError::BadRedirect);
    };
    let mut to = from.join(location).map_err(|_| MediaError::BadRedirect)?;
    to.set_fragment(None);
    if from.scheme() == "https" && to.scheme() == "http" {
        return Err(MediaError::Downgrade);
    }
    Ok(to)
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// What to ask again with, when the server allows keeping its answer.
fn page(url: &Url, headers: &HeaderMap) -> Option<Page> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::CACHE_CONTROL).is_some_and(|rule| rule.contains("no-store")) {
        return None;
    }
    // A date counts whole seconds: what was changed in the second in which it was sent may change
    // again within it, unseen.
    let settled = |date: &&str| text(header::DATE) != Some(date);
    let validator = match (text(header::ETAG), text(header::LAST_MODIFIED)) {
        (Some(etag), _) => Validator::Etag(etag.to_owned()),
        (None, date) => Validator::LastModified(date.filter(settled)?.to_owned()),
    };
    let (Validator::Etag(asked) | Validator::LastModified(asked)) = &validator;
    let url = url.as_str();
    (url.len() + asked.len() <= PAGE_TEXT_BYTES_MAX).then(|| Page {
        url: url.to_owned(),
        validator,
    })
}

/// A name answered with an address that may not be dialled.
#[derive(Debug, thiserror::Error)]
#[error("name resolves to an address that may not be dialled")]
struct RefusedAddress;

fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<RefusedAddress>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Resolves names through `lookup` and hands on only checked answers. The client dials what it is
/// handed, so between check and connection nothing can change.
struct CheckedLookup {
    lookup: Lookup,
    gate: Arc<Gate>,
}

impl CheckedLookup {
    fn new(lookup: Lookup, gate: Arc<Gate>) -> Self {
        Self { lookup, gate }
    }
}

impl Resolve for CheckedLookup {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let (answer, gate) = ((self.lookup)(name.clone()), Arc::clone(&self.gate));
        async move {
            let addresses = answer.await?;
            // One bad answer among good ones is an attack, not a choice.
            if let Some(address) = addresses.iter().find(|&&ip| !gate.may_dial(&name, ip)) {
                warn!(name, %address, "image host resolves to a closed address, refused");
                return Err(RefusedAddress.into());
            }
            // The client puts the URL's port in the place of 0.
            let dialled = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(dialled) as Addrs)
        }
        .boxed()
    }
}

impl fmt::Debug for CheckedLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedLookup").finish_non_exhaustive()
    }
}

/// The host's own resolver.
pub(crate) fn system_lookup() -> Lookup {
    Arc::new(|name| {
        async move {
            let answers = tokio::net::lookup_host((name, 0)).await?;
            Ok(answers.map(|answer| answer.ip()).collect::<Vec<IpAddr>>())
        }
        .boxed()
    })
}
