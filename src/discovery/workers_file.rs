//! The file that names workers by their agents' addresses, followed as it changes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::named_file::{NamedFileError, read_public};
use crate::discovery::address::{BadAgents, new_agent};
use crate::telemetry::causes::told;

/// How often the file is looked at. Its content is compared: a file that another one replaced may have
/// any time of change, and what replaces a link has its own. A new text counts once it was seen twice:
/// an editor or a copy may write it in pieces, and whoever is missing from a piece would be taken out.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Largest file: the most lines at 64 bytes each.
const BYTES_MAX: u64 = 64 << 10;

/// Most lines, those without an address included: each address costs a follower.
const LINES_MAX: usize = 1_024;

/// Why a file of workers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkersFileError {
    #[error(transparent)]
    File(#[from] NamedFileError),
    #[error("workers file {path} has over {max} lines")]
    TooLong { path: String, max: usize },
    #[error("line {line} of workers file {path}: {fault}")]
    Line {
        path: String,
        line: usize,
        fault: BadAgents,
    },
}

/// The addresses in a file, one a line; empty lines and those that begin with `#` say nothing.
///
/// # Errors
/// When it cannot be read, a line is no address of an agent, or one comes twice.
pub fn read(path: &Path) -> Result<Vec<String>, WorkersFileError> {
    parse(path, &text(path)?)
}

/// Follows the file until `stop`: a new list where it changes, the former one where it cannot be used
/// or has become empty.
pub async fn follow(path: PathBuf, tell: watch::Sender<Vec<String>>, stop: CancellationToken) {
    // What was last seen there: a text, or why there was none.
    let mut seen: Option<Result<String, String>> = None;
    let mut taken = None;
    loop {
        let text = Some(text(&path).map_err(|error| told(&error)));
        if text == seen && text != taken {
            if let Some(text) = &text {
                take(&path, text, &tell);
            }
            taken.clone_from(&text);
        }
        seen = text;
        let wait = tokio::time::sleep(LOOK_EVERY);
        if stop.run_until_cancelled(wait).await.is_none() {
            return;
        }
    }
}

fn take(path: &Path, text: &Result<String, String>, tell: &watch::Sender<Vec<String>>) {
    let list = match text {
        Ok(text) => parse(path, text).map_err(|error| told(&error)),
        Err(error) => Err(error.clone()),
    };
    match list {
        // Mostly it is being written; who means to take out the last workers deregisters them.
        Ok(list) if list.is_empty() && !tell.borrow().is_empty() => {
            let (path, workers) = (path.display(), tell.borrow().len());
            warn!(%path, workers, "workers file names nobody, the former list stays");
        }
        Ok(list) => {
            let is_news = |known: &mut Vec<String>| {
                let is_news = *known != list;
                known.clone_from(&list);
                is_news
            };
            if tell.send_if_modified(is_news) {
                info!(path = %path.display(), workers = list.len(), "workers file read");
            }
        }
        Err(error) => {
            let workers = tell.borrow().len();
            warn!(
                error,
                workers, "workers file cannot be used, the former list stays"
            );
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<String>, WorkersFileError> {
    let shown = || path.display().to_string();
    if text.lines().count() > LINES_MAX {
        return Err(WorkersFileError::TooLong {
            path: shown(),
            max: LINES_MAX,
        });
    }
    let (mut list, mut known) = (Vec::new(), HashSet::new());
    for (line, url) in (1..).zip(text.lines().map(str::trim)) {
        if url.is_empty() || url.starts_with('#') {
            continue;
        }
        let address = new_agent(url, &mut known).map_err(|fault| WorkersFileError::Line {
            path: shown(),
            line,
            fault,
        })?;
        list.push(address);
    }
    Ok(list)
}

fn text(path: &Path) -> Result<String, NamedFileError> {
    read_public("workers file", path, BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_a_list_or_its_fault_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("workers");
        let missing = read(&path).unwrap_err().to_string();
        assert!(missing.contains("cannot read workers file"), "{missing}");
        let long = "#\n".repeat(LINES_MAX + 1);
        let large = "#".repeat(BYTES_MAX as usize + 1);
        for (text, outcome) in [
            ("", Ok(0)),
            ("# ours\n\n http://a:1 \nunix:/run/b\n#end", Ok(2)),
            ("http://a:1\nhttp//b:1\n", Err("line 2 of workers file")),
            (
                "http://a:1\n#\nhttp://a:1/\n",
                Err("line 3 of workers file"),
            ),
            (&long, Err("over 1024 lines")),
            (&large, Err("over 65536 bytes")),
        ] {
            fs::write(&path, text).unwrap();
            match (read(&path), outcome) {
                (Ok(list), Ok(count)) => assert_eq!(list.len(), count, "{text}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, _) => panic!("{found:?} of {text}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_list_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("workers");
        fs::write(&path, "http://a:1\n").unwrap();
        let (tell, mut told) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(follow(path.clone(), tell, stop.clone()));
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), ["http://a:1"]);
        fs::write(&path, "http://a:1\nnonsense\n").unwrap();
        tokio::time::sleep(LOOK_EVERY * 3).await;
        fs::remove_file(&path).unwrap();
        tokio::time::sleep(LOOK_EVERY * 3).await;
        for nobody in ["", "# http://a:1\n"] {
            fs::write(&path, nobody).unwrap();
            tokio::time::sleep(LOOK_EVERY * 3).await;
        }
        assert!(!told.has_changed().unwrap(), "{:?}", told.borrow());
        fs::write(&path, "http://b:1\nhttp://a:1\n").unwrap();
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), ["http://b:1", "http://a:1"]);
        // Each look finds another piece of it, until it is whole.
        tokio::time::sleep(LOOK_EVERY / 2).await;
        for piece in [
            "http://c:1\n",
            "http://c:1\nhttp://a",
            "http://c:1\nhttp://a:1\n",
        ] {
            assert!(!told.has_changed().unwrap(), "{:?}", told.borrow());
            fs::write(&path, piece).unwrap();
            tokio::time::sleep(LOOK_EVERY).await;
        }
        told.changed().await.unwrap();
        assert_eq!(*told.borrow_and_update(), ["http://c:1", "http://a:1"]);
        stop.cancel();
        assert!(tasks.join_next().await.is_some());
    }
}
