//! What is known of a rank's cache, and from whom.

use serde::{Deserialize, Serialize};

/// From what a rank's overlap is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// From the engine's own KV events.
    #[default]
    Events,
    /// From what it was sent, because events are turned off.
    EventsUnused,
    /// From what it was sent, because nobody follows its events now.
    Unfollowed,
    /// From what it was sent, because its events have named nothing yet.
    NothingNamed,
    /// From what it was sent, because its prompts are not those that we hash.
    Parity,
}

impl Basis {
    /// Whether the overlap is an assumption.
    pub fn is_approximate(self) -> bool {
        self != Self::Events
    }

    /// Why it is, in a word; `None` where it is none.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Events => None,
            Self::EventsUnused => Some("events_unused"),
            Self::Unfollowed => Some("unfollowed"),
            Self::NothingNamed => Some("nothing_named"),
            Self::Parity => Some("parity"),
        }
    }
}
