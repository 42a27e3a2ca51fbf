//! `kvlens explain`: where a running frontend would send a chat, and every term of each candidate's
//! cost. The frontend answers with the code that decides; nothing is placed or run.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderValue, Method, Request, StatusCode};
use bytes::Bytes;
use serde_json::Value;
use tokio::runtime;

use crate::dispatch::{DispatchError, EngineClient};
use crate::frontend::admin::TENANT;

const PAGE: &str = "/kvlens/v1/explain";

/// Longest wait for the answer: the frontend fetches a chat's images, which may take ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest file that is read: what frontends take is less unless they are told otherwise.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Longest name of a worker that the table shows whole.
const NAME_CHARS_MAX: usize = 24;

/// Says where a running frontend would send a chat, and why; nothing is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// File with the body of a chat request, or - for standard input
    file: PathBuf,
    /// Admin listener of the frontend
    #[arg(long, default_value = "http://127.0.0.1:8001")]
    url: String,
    /// The tenant that would ask, where requests show keys: the name of its key
    #[arg(long, default_value = "")]
    tenant: String,
    /// Print the frontend's answer as it is instead of a table
    #[arg(long)]
    json: bool,
}

/// Why nothing is explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("{tenant:?} is the name of no tenant")]
    Tenant { tenant: String },
    #[error("cannot read {file}")]
    File { file: String, source: io::Error },
    #[error("{file} is not JSON")]
    NotJson {
        file: String,
        source: serde_json::Error,
    },
    #[error(
        "nothing listens at {url}: start `kvlens up` or `kvlens frontend`, or name the admin \
         listener of one with --url"
    )]
    NobodyThere { url: String },
    #[error("{url} does not answer as a frontend's admin listener")]
    NoAnswer { url: String, source: DispatchError },
    #[error("{url} did not answer within {PATIENCE:?}")]
    Late { url: String },
    #[error("the frontend refuses the request: {message} ({status}, {code})")]
    Refused {
        status: StatusCode,
        code: String,
        message: String,
    },
    #[error("{url} answers {status}: is it the admin listener of a frontend?")]
    NoFrontend { url: String, status: StatusCode },
    #[error("cannot start")]
    Runtime(#[from] io::Error),
}

/// What to print.
///
/// # Errors
/// When the file cannot be used, or no frontend answers, or it refuses the request.
pub fn run(args: &Args) -> Result<String, ExplainError> {
    let body = read(&args.file)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let url = args.url.trim_end_matches('/');
    let tenant = HeaderValue::from_str(&args.tenant).map_err(|_| ExplainError::Tenant {
        tenant: args.tenant.clone(),
    })?;
    let (status, answer) = runtime.block_on(ask(url, body, tenant))?;
    let explained: Value = serde_json::from_slice(&answer).unwrap_or_default();
    if status != StatusCode::OK || !explained["candidates"].is_array() {
        let error = &explained["error"];
        return Err(match (error["message"].as_str(), error["code"].as_str()) {
            (Some(message), Some(code)) if code != "not_found" => ExplainError::Refused {
                status,
                code: code.to_owned(),
                message: message.to_owned(),
            },
            _ => ExplainError::NoFrontend {
                url: url.to_owned(),
                status,
            },
        });
    }
    Ok(match args.json {
        true => format!("{explained:#}\n"),
        false => page(&explained),
    })
}

fn read(file: &Path) -> Result<Bytes, ExplainError> {
    let mut body = Vec::new();
    let read = match file.to_str() {
        Some("-") => io::stdin()
            .lock()
            .take(FILE_BYTES_MAX)
            .read_to_end(&mut body),
        _ => std::fs::File::open(file)
            .and_then(|open| open.take(FILE_BYTES_MAX).read_to_end(&mut body)),
    };
    let name = || file.display().to_string();
    read.map_err(|source| ExplainError::File {
        file: name(),
        source,
    })?;
    // The frontend would say so too, but not of which file.
    serde_json::from_slice::<serde::de::IgnoredAny>(&body).map_err(|source| {
        ExplainError::NotJson {
            file: name(),
            source,
        }
    })?;
    Ok(body.into())
}

async fn ask(
    url: &str,
    body: Bytes,
    tenant: HeaderValue,
) -> Result<(StatusCode, Bytes), ExplainError> {
    let client = EngineClient::new();
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(CONTENT_TYPE, json);
    request.headers_mut().insert(TENANT, tenant);
    let asked = async {
        let answer = client.forward(url, PAGE, request).await?;
        Ok((answer.status, answer.whole().await?))
    };
    let url = || url.to_owned();
    let answered = tokio::time::timeout(PATIENCE, asked).await;
    answered
        .map_err(|_| ExplainError::Late { url: url() })?
        .map_err(|error| match error {
            DispatchError::Refused { .. } => ExplainError::NobodyThere { url: url() },
            source => ExplainError::NoAnswer { url: url(), source },
        })
}

/// What was asked in one line, and a table of the candidates.
fn page(explained: &Value) -> String {
    let text = |name: &str| match &explained[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let images = explained["images"].as_array().map_or(0, Vec::len);
    let head = format!(
        "model {}, mode {}, prompt of {} tokens ({}), {images} image{}\n\n",
        text("model"),
        text("mode"),
        text("prompt_tokens"),
        text("mm"),
        if images == 1 { "" } else { "s" },
    );
    let candidates = explained["candidates"].as_array();
    let candidates = candidates.map_or(&[][..], Vec::as_slice);
    if candidates.is_empty() {
        return head + "no worker serves the model\n";
    }
    let chosen = candidates
        .iter()
        .any(|candidate| candidate["chosen"] == true);
    let foot = match (chosen, text("mode").as_str()) {
        (true, "kv") => "* is where it would go: the least total wins",
        (true, _) => "* is where it would go, whatever the totals",
        (false, "direct") => "in this mode a request must name its worker",
        (false, _) => "no worker can take it now",
    };
    let formula = match explained["formula"].as_str() {
        Some(formula) => format!("{formula}, in tokens\n"),
        None => String::new(),
    };
    format!("{head}{}\n{foot}\n{formula}", table(candidates))
}

/// One line for each candidate, and below it what it would load and why it gets no request.
fn table(candidates: &[Value]) -> String {
    let terms: Vec<&str> = candidates[0]["cost"]
        .as_object()
        .map(|cost| cost.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let titles = ["", "worker", "rank", "overlap"]
        .map(str::to_owned)
        .into_iter();
    let short = |term: &&str| term.trim_end_matches("_tokens").replace('_', " ");
    let titles: Vec<String> = titles.chain(terms.iter().map(short)).collect();
    let rows: Vec<Vec<String>> = candidates.iter().map(|c| row(c, &terms)).collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .chain([&titles])
            .map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut text = line(&titles, &widths);
    for (row, candidate) in rows.iter().zip(candidates) {
        text += &line(row, &widths);
        text += &loaded(candidate);
        if let Some(reason) = candidate["not_eligible"].as_str() {
            text += &format!("     gets none: {reason}\n");
        }
    }
    text
}

/// The blocks behind its overlap that a candidate holds in slower tiers; nothing where it has none.
fn loaded(candidate: &Value) -> String {
    let blocks = |name: &str| candidate[name].as_u64().unwrap_or(0);
    match (blocks("host_blocks"), blocks("disk_blocks")) {
        (0, 0) => String::new(),
        (host, disk) => {
            format!("     loads the next blocks: {host} from host memory, {disk} from disk\n")
        }
    }
}

fn row(candidate: &Value, terms: &[&str]) -> Vec<String> {
    let mark = if candidate["chosen"] == true { "*" } else { "" };
    let worker = candidate["worker"].as_str().unwrap_or_default();
    let worker = match worker.char_indices().nth(NAME_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &worker[..at]),
        None => worker.to_owned(),
    };
    let overlap = format!(
        "{}/{}",
        candidate["overlap_blocks"], candidate["prompt_blocks"]
    );
    let facts = [
        mark.to_owned(),
        worker,
        candidate["rank"].to_string(),
        overlap,
    ];
    let cost = |term: &&str| match candidate["cost"][*term].as_f64() {
        Some(number) if number.fract() == 0.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.1}"),
        None => "-".to_owned(),
    };
    facts.into_iter().chain(terms.iter().map(cost)).collect()
}

/// The cells of a line: words to the left, numbers to the right.
fn line(cells: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let gap = if column > 1 { "  " } else { " " };
        let (cell, width) = (cell.as_str(), *width);
        text += gap;
        match column {
            0 | 1 => text += &format!("{cell:<width$}"),
            _ => text += &format!("{cell:>width$}"),
        }
    }
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn candidate(worker: &str, overlap: u32, chosen: bool, reason: Option<&str>) -> Value {
        json!({
            "worker": worker, "rank": 0, "not_eligible": reason, "overlap_blocks": overlap,
            "prompt_blocks": 6, "load": {}, "chosen": chosen,
            "cost": {"queued_tokens": 12.0, "decode_tokens": 112.5, "total": 124.5},
        })
    }

    #[test]
    fn candidates_stand_in_a_table() {
        let mut offloaded = candidate("gpu-0", 6, true, None);
        (offloaded["host_blocks"], offloaded["disk_blocks"]) = (3.into(), 1.into());
        let explained = json!({
            "model": "demo", "mode": "kv", "prompt_tokens": 108, "mm": "exact", "images": [{}],
            "formula": "total = queued + decode",
            "candidates": [
                offloaded,
                candidate("gpu-10", 0, false, Some("circuit open: it refused a connection")),
            ],
        });
        let expected = "\
model demo, mode kv, prompt of 108 tokens (exact), 1 image

   worker  rank  overlap  queued  decode  total
 * gpu-0      0      6/6      12   112.5  124.5
     loads the next blocks: 3 from host memory, 1 from disk
   gpu-10     0      0/6      12   112.5  124.5
     gets none: circuit open: it refused a connection

* is where it would go: the least total wins
total = queued + decode, in tokens
";
        assert_eq!(page(&explained), expected);
    }

    #[test]
    fn a_page_is_at_most_100_columns_wide() {
        let long = "x".repeat(63);
        for (candidates, part) in [
            (json!([]), "no worker serves the model"),
            (
                json!([candidate(&long, 6, false, Some("its engine is starting"))]),
                "no worker can take it now",
            ),
        ] {
            let page = page(&json!({"model": "m", "candidates": candidates}));
            assert!(page.contains(part), "{page}");
            let widest = page.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(100), "{page}");
        }
    }
}
