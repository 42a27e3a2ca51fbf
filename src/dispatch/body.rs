//! The body of an engine's answer, whichever way it comes.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::dispatch::plane::BusAnswer;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// What is left of an answer after its head.
#[derive(Debug)]
pub(super) enum AnswerBody {
    Http(Incoming),
    Bus(Box<BusAnswer>),
}

impl AnswerBody {
    /// What comes next, as it came; `None` at the proper end.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, Fault>> {
        let body = match self {
            Self::Http(body) => body,
            Self::Bus(answer) => return Some(answer.chunk().await?.map_err(Fault::from)),
        };
        loop {
            match body.frame().await? {
                // Trailers say nothing that a client needs.
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(_) => continue,
                },
                Err(source) => return Some(Err(source.into())),
            }
        }
    }

    /// All of it, up to `bytes_max`.
    pub(super) async fn whole(mut self, bytes_max: usize) -> Result<Bytes, Fault> {
        if let Self::Http(body) = self {
            return Ok(Limited::new(body, bytes_max).collect().await?.to_bytes());
        }
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > bytes_max {
                return Err(format!("an answer of over {bytes_max} bytes").into());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}
