//! The models whose prompts can be made here; fetched ones may change while requests run.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::model::Model;

/// Models by base name. A request takes its own hold of one, and keeps it whatever comes after.
#[derive(Debug, Default)]
pub struct Models {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    models: HashMap<String, Arc<Model>>,
    awaited: Awaited,
}

/// Which models cannot be served yet, and what each of them waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Awaited {
    /// By base name.
    pub(crate) models: BTreeMap<String, String>,
    /// While nothing at all is known.
    pub(crate) any: Option<String>,
}

impl Models {
    /// Models that do not change.
    pub fn of(models: impl IntoIterator<Item = (String, Arc<Model>)>) -> Arc<Self> {
        let state = State {
            models: models.into_iter().collect(),
            awaited: Awaited::default(),
        };
        Arc::new(Self {
            state: RwLock::new(state),
        })
    }

    /// What makes the prompts of a model, by its base name.
    pub fn get(&self, base: &str) -> Option<Arc<Model>> {
        self.read().models.get(base).cloned()
    }

    /// Why `name` cannot be served yet; `None` for one that nobody waits for.
    pub(crate) fn awaited(&self, name: &str) -> Option<String> {
        let awaited = &self.read().awaited;
        awaited.models.get(name).or(awaited.any.as_ref()).cloned()
    }

    /// What is waited for first, whichever model it is.
    pub(crate) fn awaited_first(&self) -> Option<String> {
        let awaited = &self.read().awaited;
        awaited
            .models
            .values()
            .next()
            .or(awaited.any.as_ref())
            .cloned()
    }

    /// Counts the models.
    pub(crate) fn count(&self) -> usize {
        self.read().models.len()
    }

    /// Puts a model in the place of the former one of its base name.
    pub(crate) fn put(&self, base: &str, model: Arc<Model>) {
        self.write().models.insert(base.to_owned(), model);
    }

    /// Takes a model out; requests that have begun keep it.
    pub(crate) fn remove(&self, base: &str) {
        self.write().models.remove(base);
    }

    /// Says what is waited for from now on.
    pub(crate) fn wait_for(&self, awaited: Awaited) {
        self.write().awaited = awaited;
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
