//! The body of an engine's answer, whichever way it comes.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::bus::BusError;
use crate::dispatch::DispatchError;
use crate::dispatch::plane::{AnswerFault, BusAnswer};

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Why an answer has no proper end.
#[derive(Debug)]
pub(super) enum Cut {
    /// What carried it went away.
    Plane(BusError),
    Engine(Fault),
}

impl Cut {
    /// The same of the engine at `address`.
    pub(super) fn at(self, address: &str) -> DispatchError {
        match self {
            Self::Plane(source) => DispatchError::CutPlane { source },
            Self::Engine(source) => DispatchError::CutAnswer {
                address: address.to_owned(),
                source,
            },
        }
    }
}

impl From<AnswerFault> for Cut {
    fn from(fault: AnswerFault) -> Self {
        match fault {
            AnswerFault::Bus(source @ BusError::Away { .. }) => Self::Plane(source),
            fault => Self::Engine(fault.into()),
        }
    }
}

/// What is left of an answer after its head.
#[derive(Debug)]
pub(super) enum AnswerBody {
    Http(Incoming),
    Bus(Box<BusAnswer>),
}

impl AnswerBody {
    /// What comes next, as it came; `None` at the proper end.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, Cut>> {
        let body = match self {
            Self::Http(body) => body,
            Self::Bus(answer) => return Some(answer.chunk().await?.map_err(Cut::from)),
        };
        loop {
            match body.frame().await? {
                // Trailers say nothing that a client needs.
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(_) => continue,
                },
                Err(source) => return Some(Err(Cut::Engine(source.into()))),
            }
        }
    }

    /// All of it, up to `bytes_max`.
    pub(super) async fn whole(mut self, bytes_max: usize) -> Result<Bytes, Cut> {
        if let Self::Http(body) = self {
            let collected = Limited::new(body, bytes_max).collect().await;
            return Ok(collected.map_err(Cut::Engine)?.to_bytes());
        }
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > bytes_max {
                let fault = format!("an answer of over {bytes_max} bytes");
                return Err(Cut::Engine(fault.into()));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}
