//! One connection to one member of etcd, and a watch over it that notices silence.

use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error as EtcdError, Identity, KvClient, LeaseClient,
    MaintenanceClient, TlsOptions, WatchOptions, WatchResponse, WatchStream,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::config::etcd::EtcdConfig;
use crate::config::named_file::{read_public, read_secret};
use crate::discovery::etcd::fault::Fault;

/// Time to connect: a member that is back is to be found within two seconds, with the wait before.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Time for an answer. A member whose disk is slow may need seconds; one that is gone shows by pings.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Time between two pings of a connection, and for a ping's answer.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Time between two questions to a watch how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Time after which a watch that says nothing is given up: its connection may answer pings while
/// nothing stands behind it.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Largest message: a page of a listing, each value as large as etcd takes one.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Largest file of certificates, keys or a password.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One connection to one member.
pub(crate) struct Link {
    client: Client,
    pub(crate) endpoint: String,
}

impl Link {
    /// Connects to the member whose turn it is. Files are read each time, so that they can change.
    pub(crate) async fn connect(config: &EtcdConfig, turn: usize) -> Result<Self, Fault> {
        let number = turn % config.endpoints.len().max(1);
        let endpoint = config.endpoints.get(number).cloned().unwrap_or_default();
        let options = options(config, &endpoint)?;
        let connecting = Client::connect([&endpoint], Some(options));
        let client = within(&endpoint, connecting).await?;
        Ok(Self { client, endpoint })
    }

    pub(crate) fn kv(&self) -> KvClient {
        let client = self.client.kv_client();
        client.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient {
        self.client.maintenance_client()
    }

    /// An answer, or the fault that none came.
    pub(crate) async fn call<T>(
        &self,
        answer: impl Future<Output = Result<T, EtcdError>>,
    ) -> Result<T, Fault> {
        within(&self.endpoint, answer).await
    }

    /// Watches `key` from `revision` on; what lies before is known.
    pub(crate) async fn watch(
        &self,
        key: &str,
        options: WatchOptions,
        revision: i64,
    ) -> Result<Watched, Fault> {
        let client = self.client.watch_client();
        let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        let options = options
            .with_start_revision(revision + 1)
            .with_progress_notify()
            .with_fragment();
        let stream = self.call(client.watch(key, Some(options))).await?;
        let mut asking = interval(ASK_EVERY);
        asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watched = Watched {
            endpoint: self.endpoint.clone(),
            stream,
            asking,
            heard: Instant::now(),
            revision,
        };
        // The first response says that the watch is there, or that it cannot be.
        watched.response().await?;
        Ok(watched)
    }
}

/// A watch that ends rather than stay silent.
pub(crate) struct Watched {
    endpoint: String,
    stream: WatchStream,
    asking: Interval,
    heard: Instant,
    /// The last revision that it is known to have reached.
    revision: i64,
}

impl Watched {
    /// The next response with events. May be dropped at any await: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Fault> {
        loop {
            let response = self.response().await?;
            if !response.events().is_empty() {
                return Ok(response);
            }
        }
    }

    async fn response(&mut self) -> Result<WatchResponse, Fault> {
        loop {
            tokio::select! {
                message = self.stream.message() => {
                    let message = message.map_err(|error| Fault::of(&self.endpoint, &error))?;
                    let Some(response) = message else {
                        return Err(self.ended("etcd closed it"));
                    };
                    self.take(&response)?;
                    return Ok(response);
                }
                _ = self.asking.tick() => self.ask().await?,
            }
        }
    }

    /// Checks what every response says.
    fn take(&mut self, response: &WatchResponse) -> Result<(), Fault> {
        self.heard = Instant::now();
        if response.compact_revision() > 0 {
            let from = response.compact_revision();
            return Err(self.ended(&format!("history before revision {from} is compacted")));
        }
        if response.canceled() {
            return Err(match response.cancel_reason() {
                "" => self.ended("etcd cancelled it"),
                reason => Fault::said(self.endpoint.clone(), reason.to_owned()),
            });
        }
        // Held against where the watch began: word of the progress may overtake an event before it.
        let now = response.header().map_or(self.revision, |h| h.revision());
        if now < self.revision {
            return Err(Fault::WentBack {
                endpoint: self.endpoint.clone(),
                before: self.revision,
                now,
            });
        }
        Ok(())
    }

    /// Asks how far it is, which it answers even where nothing happens.
    async fn ask(&mut self) -> Result<(), Fault> {
        let waited = self.heard.elapsed();
        if waited > SILENCE_MAX {
            return Err(Fault::Silent {
                endpoint: self.endpoint.clone(),
                waited: SILENCE_MAX,
            });
        }
        let asked = self.stream.request_progress().await;
        asked.map_err(|error| Fault::of(&self.endpoint, &error))
    }

    fn ended(&self, cause: &str) -> Fault {
        Fault::WatchEnded {
            endpoint: self.endpoint.clone(),
            cause: cause.to_owned(),
        }
    }
}

async fn within<T>(
    endpoint: &str,
    answer: impl Future<Output = Result<T, EtcdError>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(answer) => answer.map_err(|error| Fault::of(endpoint, &error)),
        Err(_) => Err(Fault::Silent {
            endpoint: endpoint.to_owned(),
            waited: ANSWER_MAX,
        }),
    }
}

fn options(config: &EtcdConfig, endpoint: &str) -> Result<ConnectOptions, Fault> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_MAX)
        .with_timeout(ANSWER_MAX)
        .with_keep_alive(PING_EVERY, PING_EVERY)
        .with_keep_alive_while_idle(true)
        .with_auto_token_refresh(true)
        // A member cut off from the others would answer from what it knew.
        .with_require_leader(true);
    if let (Some(user), Some(file)) = (&config.user, &config.password_file) {
        let text = read_secret("etcd password file", file, FILE_BYTES_MAX)?;
        let password = text.lines().next().unwrap_or_default();
        options = options.with_user(user.as_str(), password);
    }
    match endpoint.starts_with("https://") {
        true => Ok(options.with_tls(tls(config)?)),
        false => Ok(options),
    }
}

fn tls(config: &EtcdConfig) -> Result<TlsOptions, Fault> {
    let mut tls = TlsOptions::new();
    tls = match &config.ca_file {
        Some(file) => tls.ca_certificate(Certificate::from_pem(certificates(file)?)),
        None => tls.trust_anchors(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    };
    let (Some(cert), Some(key)) = (&config.cert_file, &config.cert_key_file) else {
        return Ok(tls);
    };
    let what = "etcd certificate key file";
    let pem = read_secret(what, key, FILE_BYTES_MAX)?;
    if PrivateKeyDer::from_pem_slice(pem.as_bytes()).is_err() {
        return Err(broken(what, key));
    }
    Ok(tls.identity(Identity::from_pem(certificates(cert)?, pem)))
}

/// The certificates in a file, whole: the client would pass over what it cannot read.
fn certificates(file: &Path) -> Result<String, Fault> {
    let what = "etcd certificate file";
    let pem = read_public(what, file, FILE_BYTES_MAX)?;
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes()).peekable();
    match found.peek().is_some() && found.all(|item| item.is_ok()) {
        true => Ok(pem),
        false => Err(broken(what, file)),
    }
}

fn broken(what: &'static str, file: &Path) -> Fault {
    Fault::Pem {
        what,
        path: file.display().to_string(),
    }
}
