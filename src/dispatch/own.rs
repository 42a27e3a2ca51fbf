//! A role's own listener, asked as anybody asks it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::dispatch::EngineClient;
use crate::lifecycle::tasks::Tasks;
use crate::lifecycle::watchdog::Watchdog;

/// A page that needs no key and looks at what requests need, whatever it then says.
const PATH: &str = "/ready";

/// A listener that has taken so long to answer is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Between two questions to a listener that has not begun.
const PAUSE: Duration = Duration::from_millis(10);

/// A listener of this process.
#[derive(Clone, Debug)]
pub struct OwnListener {
    client: EngineClient,
    address: String,
}

impl OwnListener {
    /// The listener that is bound to `address`.
    pub fn at(mut address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Self {
            client: EngineClient::new(),
            address: format!("http://{address}"),
        }
    }

    /// Whether it answers within `deadline`. The connection is kept for the next question.
    pub async fn answers(&self, deadline: Duration) -> bool {
        self.client.get(&self.address, PATH, deadline).await.is_ok()
    }

    /// Waits until it answers.
    pub async fn begun(&self) {
        while !self.answers(ANSWER_MAX).await {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Feeds systemd's watchdog with its answers, where there is one, from the first answer on and until
    /// `stop`.
    pub fn watched(&self, tasks: &mut Tasks, stop: &CancellationToken) {
        let Some(watchdog) = Watchdog::asked() else {
            return;
        };
        let (own, stop) = (self.clone(), stop.clone());
        tasks.spawn("the watchdog", async move {
            if stop.run_until_cancelled(own.begun()).await.is_some() {
                watchdog.feed(stop, |deadline| own.answers(deadline)).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_at_loopback() {
        for (bound, asked) in [
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
            ("10.0.0.5:80", "http://10.0.0.5:80"),
        ] {
            let listener = OwnListener::at(bound.parse().unwrap());
            assert_eq!(listener.address, asked);
        }
    }
}
