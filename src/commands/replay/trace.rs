//! Traces: which request comes when, read from a file of JSON lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::commands::replay::line::{self, LineError};
use crate::commands::replay::prompt::Prompt;

/// Longest line: names of 40 M tokens, far beyond what any model takes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Most names and parts of all requests together, so that a trace needs half a GiB at most.
const PIECES_MAX: usize = 1 << 25;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// Since the trace began.
    pub(crate) arrival: Duration,
    /// Whose it is; prompts of two tenants share no blocks.
    pub(crate) tenant: Arc<str>,
    pub(crate) prompt: Prompt,
    pub(crate) output_tokens: u32,
}

/// Requests in the order in which they come.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) requests: Vec<Request>,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("trace {path} cannot be opened")]
    Open { path: PathBuf, source: io::Error },
    #[error("line {line} of trace {path} cannot be read")]
    Read {
        path: PathBuf,
        line: usize,
        source: io::Error,
    },
    #[error("line {line} of trace {path}")]
    Line {
        path: PathBuf,
        line: usize,
        source: LineError,
    },
    #[error("line {line} of trace {path} is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong { path: PathBuf, line: usize },
    #[error("trace {path} has more than {PIECES_MAX} names and parts at line {line}")]
    TooLarge { path: PathBuf, line: usize },
    #[error("trace {path} has no requests")]
    Empty { path: PathBuf },
}

impl Trace {
    /// Reads the first `requests_max` requests of a file; empty lines count for nothing.
    ///
    /// # Errors
    /// When it cannot be read, has no requests, is too large, or has a line that is no request.
    pub(crate) fn read(path: &Path, requests_max: usize) -> Result<Self, TraceError> {
        let opened = File::open(path).map_err(|source| TraceError::Open {
            path: path.to_owned(),
            source,
        });
        let requests = read_lines(path, BufReader::new(opened?), requests_max)?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self::new(name.to_string_lossy().into_owned(), requests))
    }

    /// Puts requests in the order of their arrival, the first at zero.
    pub(crate) fn new(name: String, mut requests: Vec<Request>) -> Self {
        requests.sort_by_key(|request| request.arrival);
        let first = requests.first().map(|request| request.arrival);
        for request in &mut requests {
            request.arrival -= first.unwrap_or_default();
        }
        Self { name, requests }
    }

    /// Lets requests of one time come evenly until the next time, the last ones all at once: many
    /// traces have rounded times.
    pub(crate) fn spread(mut self) -> Self {
        let mut from = 0;
        let arrivals: Vec<_> = self.requests.iter().map(|r| r.arrival).collect();
        while let Some(at) = arrivals.get(from) {
            let to = arrivals.partition_point(|other| other <= at);
            let gap = arrivals.get(to).map_or(Duration::ZERO, |next| *next - *at);
            let same = &mut self.requests[from..to];
            let count = same.len() as f64;
            for (number, request) in same.iter_mut().enumerate() {
                request.arrival += gap.mul_f64(number as f64 / count);
            }
            from = to;
        }
        self
    }

    /// Lets the requests come `speed` times as fast.
    pub(crate) fn sped_up(mut self, speed: f64) -> Self {
        for request in &mut self.requests {
            request.arrival = request.arrival.div_f64(speed);
        }
        self
    }
}

fn read_lines(
    path: &Path,
    mut file: impl BufRead,
    requests_max: usize,
) -> Result<Vec<Request>, TraceError> {
    let mut requests = Vec::new();
    let mut pieces = 0;
    let mut text = Vec::new();
    for line in 1.. {
        let path = || path.to_owned();
        text.clear();
        // One byte more than a line may have shows that it has more.
        let read = file
            .by_ref()
            .take(LINE_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut text);
        if read.map_err(|source| {
            let path = path();
            TraceError::Read { path, line, source }
        })? == 0
            || requests.len() == requests_max
        {
            break;
        }
        if text.len() > LINE_BYTES_MAX {
            return Err(TraceError::LineTooLong { path: path(), line });
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let request = line::parse(&text).map_err(|source| {
            let path = path();
            TraceError::Line { path, line, source }
        })?;
        pieces += match &request.prompt {
            Prompt::Named { ids, .. } => ids.len(),
            Prompt::Parts(parts) => parts.len(),
        };
        if pieces > PIECES_MAX {
            return Err(TraceError::TooLarge { path: path(), line });
        }
        requests.push(request);
    }
    if requests.is_empty() {
        let path = path.to_owned();
        return Err(TraceError::Empty { path });
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(trace: &Trace) -> Vec<u64> {
        let millis = |request: &Request| request.arrival.as_millis() as u64;
        trace.requests.iter().map(millis).collect()
    }

    #[test]
    fn times_begin_at_zero_and_can_be_spread_and_sped_up() {
        let request = |arrival_ms| Request {
            arrival: Duration::from_millis(arrival_ms),
            tenant: Arc::default(),
            prompt: Prompt::Parts(Box::default()),
            output_tokens: 1,
        };
        let requests = [3_100, 100, 100, 100, 6_100, 6_100].map(request);
        let trace = Trace::new("t".to_owned(), requests.into());
        assert_eq!(arrivals(&trace), [0, 0, 0, 3_000, 6_000, 6_000]);
        let trace = trace.spread();
        assert_eq!(arrivals(&trace), [0, 1_000, 2_000, 3_000, 6_000, 6_000]);
        let trace = trace.sped_up(2.0);
        assert_eq!(arrivals(&trace), [0, 500, 1_000, 1_500, 3_000, 3_000]);
    }
}
