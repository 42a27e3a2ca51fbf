//! One fetch for all who ask for the same URL at the same time.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::media::{Image, MediaError, UrlKey};

type Fetch = BoxFuture<'static, Result<Image, MediaError>>;

/// The fetches in flight. There are never more than requests that wait for one.
#[derive(Default)]
pub(crate) struct Flights {
    by_key: Mutex<HashMap<UrlKey, Flight>>,
}

/// A fetch that whoever waits for it drives; it ends when the last of them goes away.
struct Flight {
    number: u64,
    fetch: WeakShared<Fetch>,
}

/// Takes a flight from the map when its fetch is over or dropped.
struct Landing {
    flights: Arc<Flights>,
    key: UrlKey,
    number: u64,
}

impl Flights {
    /// What `fetch` gives, or what a fetch for `key` that is already in flight gives.
    pub(crate) async fn join<F>(
        self: &Arc<Self>,
        key: UrlKey,
        fetch: impl FnOnce() -> F,
    ) -> Result<Image, MediaError>
    where
        F: Future<Output = Result<Image, MediaError>> + Send + 'static,
    {
        self.board(key, fetch).await
    }

    fn board<F>(self: &Arc<Self>, key: UrlKey, fetch: impl FnOnce() -> F) -> Shared<Fetch>
    where
        F: Future<Output = Result<Image, MediaError>> + Send + 'static,
    {
        let mut by_key = self.lock();
        let held = by_key.get(&key);
        if let Some(fetch) = held.and_then(|flight| flight.fetch.upgrade()) {
            return fetch;
        }
        // The former flight has been dropped but has not landed yet: the next number keeps its
        // landing from taking this one away.
        let number = held.map_or(0, |flight| flight.number + 1);
        let landing = Landing {
            flights: Arc::clone(self),
            key,
            number,
        };
        let fetch = fetch();
        let shared = async move {
            let _landing = landing;
            fetch.await
        }
        .boxed()
        .shared();
        if let Some(fetch) = shared.downgrade() {
            by_key.insert(key, Flight { number, fetch });
        }
        shared
    }

    /// The fetches in flight.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UrlKey, Flight>> {
        // Nothing under the lock leaves the map half changed.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut by_key = self.flights.lock();
        if by_key
            .get(&self.key)
            .is_some_and(|flight| flight.number == self.number)
        {
            by_key.remove(&self.key);
        }
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    const KEY: UrlKey = UrlKey([1; 32]);

    #[tokio::test]
    async fn those_who_ask_at_once_share_one_fetch() {
        let flights = Arc::new(Flights::default());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let first = flights.board(KEY, || async {
            answered.await.unwrap_or(Err(MediaError::Empty))
        });
        let second = flights.board(KEY, || ready(Err(MediaError::BadRedirect)));
        let other = flights.board(UrlKey([2; 32]), || ready(Err(MediaError::Encoded)));
        assert_eq!(flights.count(), 2);
        answer.send(Err(MediaError::Unreachable)).unwrap();
        assert_eq!(first.await.unwrap_err(), MediaError::Unreachable);
        assert_eq!(second.await.unwrap_err(), MediaError::Unreachable);
        assert_eq!(other.await.unwrap_err(), MediaError::Encoded);
        assert_eq!(flights.count(), 0);
        let later = flights.join(KEY, || ready(Err(MediaError::Empty))).await;
        assert_eq!(later.unwrap_err(), MediaError::Empty);
    }

    #[tokio::test]
    async fn a_fetch_outlives_the_first_who_asked_but_not_the_last() {
        let flights = Arc::new(Flights::default());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let first = flights.board(KEY, || async {
            answered.await.unwrap_or(Err(MediaError::Empty))
        });
        let second = flights.board(KEY, || ready(Err(MediaError::BadRedirect)));
        drop(first);
        answer.send(Err(MediaError::Unreachable)).unwrap();
        assert_eq!(second.await.unwrap_err(), MediaError::Unreachable);

        let third = flights.board(KEY, std::future::pending);
        assert_eq!(flights.count(), 1);
        drop(third);
        assert_eq!(flights.count(), 0);
    }
}
