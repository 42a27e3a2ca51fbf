//! Logs to standard error, what errors say in them, and the list of metrics.

pub mod causes;
pub mod labels;
pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::log::{LogConfig, LogFormat};

/// What may stand for all modules.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log.level is {level:?}, which is no level and no list of module=level")]
    Level { level: String, source: ParseError },
    #[error("log.level has {word:?}, which is none of error, warn, info, debug, trace and off")]
    Word { word: String },
    #[error("logs are set up already")]
    Twice(#[from] TryInitError),
}

/// Sends log lines to standard error from now on, so that standard output stays free for results.
///
/// # Errors
/// When the level cannot be read, or when logs are set up already.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(config)?)
        // Told on standard error itself, a line that cannot be written there would be a panic.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    if writes_text(config.format, std::io::stderr().is_terminal()) {
        let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        lines.with_ansi(coloured).finish().try_init()?;
    } else {
        lines.json().flatten_event(true).finish().try_init()?;
    }
    Ok(())
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

fn writes_text(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
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
    fn text_goes_to_terminals() {
        for (format, terminal, text) in [
            (LogFormat::Auto, true, true),
            (LogFormat::Auto, false, false),
            (LogFormat::Text, false, true),
            (LogFormat::Json, true, false),
        ] {
            assert_eq!(writes_text(format, terminal), text, "{format:?} {terminal}");
        }
    }
}
