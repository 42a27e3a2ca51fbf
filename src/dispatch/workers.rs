//! Workers' engines, in whichever way they are reached: the one place where it matters.

use std::time::Duration;

use ::http::{Request, StatusCode};
use bytes::Bytes;

use crate::bus::Bus;
use crate::config::dispatch::{DispatchConfig, RequestPlane};
use crate::dispatch::body::AnswerBody;
use crate::dispatch::plane::BusPlane;
use crate::dispatch::{DispatchError, EngineAnswer, EngineClient, EngineRequest, in_time};
use crate::http::lent::Loans;
use crate::id::WorkerId;
use crate::lifecycle::tasks::Tasks;

/// How workers' engines are reached.
#[derive(Clone, Debug)]
pub(super) enum Plane {
    /// At their addresses.
    Http,
    /// By their workers' names.
    Bus(BusPlane),
}

impl EngineClient {
    /// The same, reaching workers' engines as the configuration says; what that takes runs among
    /// `tasks`. Without a bus there is one way.
    #[must_use]
    pub fn reaching(self, config: &DispatchConfig, bus: Option<&Bus>, tasks: &mut Tasks) -> Self {
        let bus = bus.filter(|_| config.request_plane == RequestPlane::Nats);
        let Some(bus) = bus else {
            return self;
        };
        let (plane, telling) = BusPlane::new(bus.clone());
        tasks.spawn("what engines are told of answers", telling.run());
        self.over(plane)
    }

    /// The same, reaching workers' engines over the bus.
    #[must_use]
    pub fn over(self, plane: BusPlane) -> Self {
        let plane = Plane::Bus(plane);
        Self { plane, ..self }
    }

    /// The same with a listener from which engines fetch bodies that are larger than a message of the
    /// bus; without a bus they need none.
    #[must_use]
    pub fn lending(self, loans: Option<Loans>) -> Self {
        let plane = match self.plane {
            Plane::Http => Plane::Http,
            Plane::Bus(plane) => Plane::Bus(plane.lending(loans)),
        };
        Self { plane, ..self }
    }

    /// Whether workers' engines are reached over the bus, where an address does not say which host
    /// one is on.
    pub fn is_over_bus(&self) -> bool {
        matches!(self.plane, Plane::Bus(_))
    }

    /// Sends a request to a worker's engine, in whichever way those are reached; otherwise as
    /// [`EngineClient::send`].
    ///
    /// # Errors
    /// When the engine cannot be reached or breaks off before its answer.
    pub async fn ask(
        &self,
        (worker, address): (&WorkerId, &str),
        request: EngineRequest<'_>,
    ) -> Result<EngineAnswer, DispatchError> {
        let (path, sent) = (request.path, request.sent());
        self.carry((worker, address), path, sent).await
    }

    /// Asks a worker's engine for a small page, in whichever way those are reached; otherwise as
    /// [`EngineClient::get`].
    ///
    /// # Errors
    /// When the engine cannot be reached, breaks off, or takes longer than `deadline`.
    pub async fn look(
        &self,
        (worker, address): (&WorkerId, &str),
        path: &str,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), DispatchError> {
        let asked = async {
            let request = Request::new(Bytes::new());
            let answer = self.carry((worker, address), path, request).await?;
            Ok((answer.status, answer.whole().await?))
        };
        in_time(address, deadline, asked).await
    }

    async fn carry(
        &self,
        (worker, address): (&WorkerId, &str),
        path: &str,
        request: Request<Bytes>,
    ) -> Result<EngineAnswer, DispatchError> {
        let plane = match &self.plane {
            Plane::Http => return self.forward(address, path, request).await,
            Plane::Bus(plane) => plane,
        };
        let (status, headers, answer) = plane.forward(worker, path, request).await?;
        Ok(EngineAnswer {
            status,
            headers,
            address: worker.to_string(),
            body: AnswerBody::Bus(Box::new(answer)),
        })
    }
}
