//! The end of what an engine wrote, kept to explain why it ended.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::id::WorkerId;

/// The last lines of a stream, each cut at a longest length.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: Mutex<VecDeque<String>>,
    lines_max: usize,
    line_bytes_max: usize,
}

impl Tail {
    pub(crate) fn new(lines_max: usize, line_bytes_max: usize) -> Self {
        Self {
            lines: Mutex::default(),
            lines_max,
            line_bytes_max,
        }
    }

    /// The lines kept, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }

    fn push(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == self.lines_max {
            lines.pop_front();
        }
        lines.push_back(text);
    }

    /// Reads `stream` to its end. A line longer than the limit is cut: its rest is read and left
    /// out, so that the engine never waits for us and we never hold more than the limit.
    pub(crate) async fn read<R: AsyncRead + Unpin>(&self, stream: R, worker: &WorkerId) {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while let Ok(chunk) = stream.fill_buf().await {
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = self.line_bytes_max.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            stream.consume(used);
            if end.is_some() {
                self.finish(&mut line, worker);
            }
        }
        if !line.is_empty() {
            self.finish(&mut line, worker);
        }
    }

    fn finish(&self, line: &mut Vec<u8>, worker: &WorkerId) {
        tracing::debug!(%worker, line = %String::from_utf8_lossy(line), "engine wrote");
        self.push(line);
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tail(text: &[u8]) -> Vec<String> {
        let tail = Tail::new(3, 8);
        tail.read(text, &WorkerId::new("w").unwrap()).await;
        tail.lines()
    }

    #[tokio::test]
    async fn the_last_lines_are_kept_and_long_ones_cut() {
        for (text, lines) in [
            ("", &[] as &[&str]),
            ("a\nb\n", &["a", "b"]),
            ("a\r\nb", &["a", "b"]),
            ("a\n\nb\nc\n", &["", "b", "c"]),
            ("123456789abc\nx\n", &["12345678", "x"]),
        ] {
            assert_eq!(tail(text.as_bytes()).await, lines, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_read_and_cut() {
        let long = vec![b'x'; 1_000_000];
        assert_eq!(tail(&long).await, ["x".repeat(8)]);
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(tail(b"a\xffb\n").await, ["a\u{fffd}b"]);
    }
}
