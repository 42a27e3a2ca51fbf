//! A page of an agent, an engine or etcd, asked for once.

use std::time::Duration;

use ::http::header::DATE;
use ::http::{Request, StatusCode};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::commands::doctor::clock::Skew;
use crate::commands::doctor::millis;
use crate::dispatch::{DispatchError, EngineClient};
use crate::id::WorkerId;
use crate::telemetry::causes::told;

/// Largest page that is read: the largest record, some times over.
const PAGE_BYTES_MAX: usize = 256 << 10;

/// A page that came.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) body: Bytes,
    /// Time from asking to its end, connecting included.
    pub(super) took: Duration,
    /// `None` where it does not tell its time.
    pub(super) skew: Option<Skew>,
}

/// Why none came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoPage {
    /// It asks for another key, or for one.
    Key,
    Status(StatusCode),
    /// Nothing came within the time.
    Silent(Duration),
    Unreachable(String),
    TooLarge,
}

impl NoPage {
    /// For a person.
    pub(super) fn seen(&self) -> String {
        match self {
            Self::Key => "it answered 401: it does not take our key".to_owned(),
            Self::Status(status) => format!("it answered {status}"),
            Self::Silent(waited) => format!("no answer within {}", millis(*waited)),
            Self::Unreachable(cause) => cause.clone(),
            Self::TooLarge => format!("its answer is over {PAGE_BYTES_MAX} bytes"),
        }
    }
}

/// Asks for a page, and waits no longer than told.
pub(super) async fn page(
    client: &EngineClient,
    address: &str,
    path: &str,
    wait: Duration,
) -> Result<Page, NoPage> {
    let asked = timeout(wait, ask(client, address, path));
    asked.await.unwrap_or(Err(NoPage::Silent(wait)))
}

/// Asks a worker's engine for a page over the bus, where no clock is told, and waits no longer than
/// told.
pub(super) async fn look(
    client: &EngineClient,
    (worker, address): (&WorkerId, &str),
    path: &str,
    wait: Duration,
) -> Result<Page, NoPage> {
    let asked = Instant::now();
    let (status, body) = match client.look((worker, address), path, wait).await {
        Ok(answer) => answer,
        Err(DispatchError::Timeout { .. }) => return Err(NoPage::Silent(wait)),
        Err(error) => return Err(NoPage::Unreachable(told(&error))),
    };
    judged(status)?;
    Ok(Page {
        body,
        took: asked.elapsed(),
        skew: None,
    })
}

fn judged(status: StatusCode) -> Result<(), NoPage> {
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(NoPage::Key),
        status => Err(NoPage::Status(status)),
    }
}

async fn ask(client: &EngineClient, address: &str, path: &str) -> Result<Page, NoPage> {
    // The address stands beside it already.
    let cause = |error: DispatchError| told(&error).replace(&format!("{address} "), "");
    let unreachable = |error| NoPage::Unreachable(cause(error));
    let asked = Instant::now();
    let request = Request::new(Bytes::new());
    let answer = client.forward(address, path, request).await;
    let mut answer = answer.map_err(unreachable)?;
    let date = answer.headers.get(DATE).map(|date| date.as_bytes());
    let skew = Skew::of(address, date, Timestamp::now());
    judged(answer.status)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await {
        body.extend_from_slice(&chunk.map_err(unreachable)?);
        if body.len() > PAGE_BYTES_MAX {
            return Err(NoPage::TooLarge);
        }
    }
    Ok(Page {
        body: body.freeze(),
        took: asked.elapsed(),
        skew,
    })
}
