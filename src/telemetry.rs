//! Logs to standard error or the journal, what errors say in them, and the list of metrics.

pub mod causes;
pub mod gpu_labels;
mod journal;
pub mod labels;
pub mod metrics;

use std::io::{self, IsTerminal};
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::log::{LogConfig, LogFormat};
use crate::telemetry::journal::Journal;

/// What may stand for all modules.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level is {level:?}, which is no level and no list of module=level")]
    Level { level: String, source: ParseError },
    #[error("log.level has {word:?}, which is none of error, warn, info, debug, trace and off")]
    Word { word: String },
    #[error("log.format is \"journal\", and nobody listens at {}", journal::SOCKET)]
    Journal { source: io::Error },
    #[error("logs are set up already")]
    Twice(#[from] TryInitError),
}

/// How log lines look, all things considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Text,
    Json,
    Journal,
}

/// Sends log lines to standard error or to the journal from now on, so that standard output stays free
/// for results.
///
/// # Errors
/// When the level cannot be read, when there is no journal and it must be there, or when logs are set up
/// already.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let terminal = io::stderr().is_terminal();
    let mut look = look(config.format, terminal, is_journal());
    if look == Look::Journal {
        match Journal::open(Path::new(journal::SOCKET)) {
            Ok(journal) => {
                let lines = tracing_subscriber::registry().with(filter(config)?);
                return Ok(lines.with(journal).try_init()?);
            }
            Err(source) if config.format == LogFormat::Journal => {
                return Err(TelemetryError::Journal { source });
            }
            // Standard error leads there too, if by another way.
            Err(_) => look = Look::Json,
        }
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(config)?)
        // Told on standard error itself, a line that cannot be written there would be a panic.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    if look == Look::Text {
        let coloured = terminal && std::env::var_os("NO_COLOR").is_none();
        lines.with_ansi(coloured).finish().try_init()?;
    } else {
        lines.json().flatten_event(true).finish().try_init()?;
    }
    Ok(())
}

/// Whether what is written to standard error comes to systemd's journal.
pub fn is_journal() -> bool {
    let told = std::env::var("JOURNAL_STREAM").ok();
    journal::is_journal(io::stderr(), told.as_deref())
}

/// Checks what [`init`] would refuse, without setting anything up.
///
/// # Errors
/// When the level cannot be read.
pub fn check(config: &LogConfig) -> Result<(), TelemetryError> {
    filter(config).map(|_| ())
}

fn filter(config: &LogConfig) -> Result<EnvFilter, TelemetryError> {
    // A word alone would be taken for a module, and a slip of the hand turn all logs off.
    let words = config.level.split(',').map(str::trim);
    let mut bare = words.filter(|word| !word.contains('='));
    if let Some(word) = bare.find(|word| !LEVELS.contains(word)) {
        let word = word.to_owned();
        return Err(TelemetryError::Word { word });
    }
    let level = |source| TelemetryError::Level {
        level: config.level.clone(),
        source,
    };
    EnvFilter::builder()
        .parse(directives(&config.level))
        .map_err(level)
}

/// A bare level is ours alone: what libraries say below a warning is of no use to an operator.
fn directives(level: &str) -> String {
    match level {
        "info" | "debug" | "trace" => format!("warn,kvlens={level}"),
        _ => level.to_owned(),
    }
}

fn look(format: LogFormat, is_terminal: bool, is_journal: bool) -> Look {
    match format {
        LogFormat::Auto if is_terminal => Look::Text,
        LogFormat::Auto if is_journal => Look::Journal,
        LogFormat::Auto | LogFormat::Json => Look::Json,
        LogFormat::Text => Look::Text,
        LogFormat::Journal => Look::Journal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for (level, good) in [
            ("info", true),
            ("warn,kvlens::router=debug", true),
            ("info,kvlens=loud", false),
            ("warning", false),
            ("info,loud", false),
            ("", false),
            ("kvlens=debug=trace", false),
        ] {
            let config = LogConfig {
                level: level.to_owned(),
                ..LogConfig::default()
            };
            assert_eq!(check(&config).is_ok(), good, "{level}");
        }
    }

    #[test]
    fn text_goes_to_terminals_and_fields_to_the_journal() {
        for (format, is_terminal, is_journal, expected) in [
            (LogFormat::Auto, true, false, Look::Text),
            (LogFormat::Auto, false, false, Look::Json),
            (LogFormat::Auto, false, true, Look::Journal),
            (LogFormat::Text, false, true, Look::Text),
            (LogFormat::Json, true, true, Look::Json),
            (LogFormat::Journal, true, false, Look::Journal),
        ] {
            let found = look(format, is_terminal, is_journal);
            assert_eq!(found, expected, "{format:?} {is_terminal} {is_journal}");
        }
    }
}
