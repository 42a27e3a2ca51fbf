//! Tasks that are to run until they are told to stop: one that ends by itself is a fault.

use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinSet};

/// Tasks with names. Dropped, they end as they are.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, String>,
}

/// A task that ended when nobody had told it to, or by a panic.
#[derive(Debug, thiserror::Error)]
#[error("{task} ended by itself")]
pub struct TaskEnd {
    pub task: String,
    /// Its panic; `None` where it returned.
    pub source: Option<JoinError>,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name.into());
    }

    /// Waits for the next task to end; without tasks, without end.
    pub async fn next_end(&mut self) -> TaskEnd {
        match self.running.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, ()))) => self.end_of(id, None),
            Some(Err(panic)) => self.end_of(panic.id(), Some(panic)),
        }
    }

    /// Waits until all have ended, as they were told to.
    ///
    /// # Errors
    /// The first that panicked.
    pub async fn end(mut self) -> Result<(), TaskEnd> {
        let mut outcome = Ok(());
        while !self.running.is_empty() {
            let end = self.next_end().await;
            if end.source.is_some() {
                outcome = outcome.and(Err(end));
            }
        }
        outcome
    }

    fn end_of(&mut self, id: Id, source: Option<JoinError>) -> TaskEnd {
        TaskEnd {
            task: self.names.remove(&id).unwrap_or_default(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn panicking() -> Tasks {
        let mut tasks = Tasks::default();
        tasks.spawn("the clock", std::future::ready(()));
        tasks.spawn("the bell", async { panic!("cracked") });
        tasks
    }

    #[tokio::test]
    async fn an_end_says_whose_it_was_and_why() {
        let mut tasks = panicking();
        let mut ends = [tasks.next_end().await, tasks.next_end().await];
        ends.sort_by_key(|end| end.task.clone());
        let [bell, clock] = ends;
        assert_eq!(clock.to_string(), "the clock ended by itself");
        assert!(clock.source().is_none());
        assert_eq!(bell.task, "the bell");
        let cause = bell.source().unwrap().to_string();
        assert!(cause.contains("cracked"), "{cause}");
    }

    #[tokio::test]
    async fn told_to_end_only_a_panic_is_a_fault() {
        assert_eq!(panicking().end().await.unwrap_err().task, "the bell");
        let mut tasks = Tasks::default();
        tasks.spawn("the clock", std::future::ready(()));
        assert!(tasks.end().await.is_ok());
    }
}
