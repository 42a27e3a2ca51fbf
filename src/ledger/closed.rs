//! Which of the names that an engine holds are published: those whose ancestors are all held too.

use std::collections::BTreeSet;

use crate::block::{BlockMap, SequenceHash};

/// One name that is held.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The name of the block before it; `None` for a prompt's first.
    parent: Option<SequenceHash>,
    is_published: bool,
}

/// The names that are held. Of them a name is published while every ancestor is held too: an engine
/// looks for a prompt's blocks from the first one on and stops where one is missing, so that what is
/// behind is of no use to it, and whoever is told of a block may take all before it for held.
///
/// A name that comes or goes takes with it the descendants that are held, in time proportional to
/// their number.
#[derive(Debug, Default)]
pub struct Closed {
    held: BlockMap<Node>,
    /// Every held name behind its parent's, whether that is held or not.
    children: BTreeSet<(SequenceHash, SequenceHash)>,
    published: usize,
}

impl Closed {
    /// Counts the names that are published.
    pub fn len(&self) -> usize {
        self.published
    }

    /// Whether no name is published.
    pub fn is_empty(&self) -> bool {
        self.published == 0
    }

    /// Every name that is published.
    pub fn names(&self) -> impl Iterator<Item = SequenceHash> {
        let published = self.held.iter().filter(|(_, node)| node.is_published);
        published.map(|(name, _)| *name)
    }

    /// Whether a name is published.
    pub fn is_published(&self, name: SequenceHash) -> bool {
        self.held.get(&name).is_some_and(|node| node.is_published)
    }

    /// The name before one that is held; `None` for a prompt's first.
    pub fn parent(&self, name: SequenceHash) -> Option<SequenceHash> {
        self.held.get(&name)?.parent
    }

    /// Notes that a name is held from now on; `turned` gets every name that is published by it, parents
    /// first.
    pub fn hold(
        &mut self,
        name: SequenceHash,
        parent: Option<SequenceHash>,
        turned: impl FnMut(SequenceHash),
    ) {
        if self.held.contains_key(&name) {
            return;
        }
        let node = Node {
            parent,
            is_published: false,
        };
        self.held.insert(name, node);
        self.children.extend(parent.map(|parent| (parent, name)));
        if parent.is_none_or(|parent| self.is_published(parent)) {
            self.turn(name, true, turned);
        }
    }

    /// Notes that a name is not held any more; `turned` gets every name that is taken back by it.
    pub fn drop(&mut self, name: SequenceHash, turned: impl FnMut(SequenceHash)) {
        self.turn(name, false, turned);
        if let Some(Node { parent, .. }) = self.held.remove(&name) {
            let link = parent.map(|parent| (parent, name));
            link.map(|link| self.children.remove(&link));
        }
    }

    /// Publishes a name and those behind it, or takes them back, as far as they are held.
    fn turn(
        &mut self,
        name: SequenceHash,
        is_published: bool,
        mut turned: impl FnMut(SequenceHash),
    ) {
        let mut turning = vec![name];
        while let Some(name) = turning.pop() {
            let Some(node) = self.held.get_mut(&name) else {
                continue;
            };
            // Those behind a name are as it is.
            if node.is_published == is_published {
                continue;
            }
            node.is_published = is_published;
            match is_published {
                true => self.published += 1,
                false => self.published -= 1,
            }
            turned(name);
            let all = (name, SequenceHash(0))..=(name, SequenceHash(u64::MAX));
            turning.extend(self.children.range(all).map(|(_, child)| *child));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// A tree: names 0 to 2 start prompts, each other follows a third of itself.
    fn parent(name: u64) -> Option<u64> {
        (name >= 3).then_some(name / 3)
    }

    proptest! {
        /// Published is what is held with all its ancestors, and nothing is left of names that went.
        #[test]
        fn a_name_is_published_while_all_its_ancestors_are_held(
            steps in prop::collection::vec((0..60_u64, any::<bool>()), 0..300),
        ) {
            let mut closed = Closed::default();
            let (mut held, mut told) = (BTreeMap::new(), BTreeSet::new());
            for (name, is_hold) in steps {
                let hash = SequenceHash(name);
                if is_hold {
                    held.insert(name, parent(name));
                    let turned = |name| assert!(told.insert(name), "told twice");
                    closed.hold(hash, parent(name).map(SequenceHash), turned);
                } else {
                    held.remove(&name);
                    closed.drop(hash, |name| assert!(told.remove(&name), "taken back twice"));
                }
                let whole = |name: &&u64| {
                    let mut path = std::iter::successors(Some(**name), |name| parent(*name));
                    path.all(|name| held.contains_key(&name))
                };
                let wanted: BTreeSet<_> = held.keys().filter(whole).copied().map(SequenceHash).collect();
                prop_assert_eq!(&told, &wanted);
                prop_assert_eq!(closed.names().collect::<BTreeSet<_>>(), wanted);
                prop_assert_eq!(closed.len(), told.len());
                let links = held.values().flatten().count();
                prop_assert_eq!((closed.held.len(), closed.children.len()), (held.len(), links));
            }
        }
    }

    #[test]
    fn a_long_prompt_comes_and_goes_with_its_first_block() {
        let mut closed = Closed::default();
        for name in 1..100_000 {
            closed.hold(SequenceHash(name), Some(SequenceHash(name - 1)), |_| {});
        }
        assert!(closed.is_empty());
        closed.hold(SequenceHash(0), None, |_| {});
        assert_eq!(closed.len(), 100_000);
        closed.drop(SequenceHash(0), |_| {});
        assert!(closed.is_empty());
    }
}
