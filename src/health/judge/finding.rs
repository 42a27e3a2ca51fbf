//! What one observation shows to be wrong.

use std::time::Duration;

use crate::health::incident::{Incident, Severity};
use crate::health::limits::Limits;
use crate::health::signal::Signal;

/// By what incidents are told apart.
pub(super) type Key = (Signal, u64);

/// A fault in one observation. An incident keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) signal: Signal,
    pub(super) code: u64,
    pub(super) severity: Severity,
    pub(super) text: String,
    pub(super) action: &'static str,
}

impl Finding {
    pub(super) fn new(signal: Signal, severity: Severity, text: impl Into<String>) -> Self {
        Self {
            signal,
            code: 0,
            severity,
            text: text.into(),
            action: signal.row().action,
        }
    }

    pub(super) fn with_code(self, code: impl Into<u64>) -> Self {
        let code = code.into();
        Self { code, ..self }
    }

    /// Another action than the table's.
    pub(super) fn with_action(self, action: &'static str) -> Self {
        Self { action, ..self }
    }

    /// With the severity that is configured for it, if one is.
    pub(super) fn weighed(self, limits: &Limits) -> Self {
        let severity = limits.severity(self.signal, self.code);
        let severity = severity.unwrap_or(self.severity);
        Self { severity, ..self }
    }

    pub(super) fn key(&self) -> Key {
        (self.signal, self.code)
    }

    /// The incident that it opens.
    pub(super) fn incident(self, since: Duration) -> Incident {
        Incident {
            signal: self.signal,
            code: self.code,
            severity: self.severity,
            text: self.text,
            action: self.action.to_owned(),
            // 64 bits of milliseconds outlast the sun.
            since_millis: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
