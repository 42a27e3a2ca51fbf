//! Short chats a second through `kvlens up`, against one of its mock engines asked directly.
//!
//! Asks with Debian's `wrk`; without it there is nothing to see.

mod figures;
mod launched;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::figures::{row, table, target};
use crate::launched::Up;

const SECONDS: &str = "5s";
const CONNECTIONS: &str = "-c32";
const PER_SECOND_MIN: f64 = 5_000.0;

/// Every chat is another one, so that every prompt makes KV events.
const SCRIPT: &str = r#"
local count = 0
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
request = function()
  count = count + 1
  return wrk.format(nil, nil, nil, '{"model":"demo","max_tokens":4,"messages":[{"role":"user","content":"'
    .. count .. ' is a number. Say how it is written in words."}]}')
end
"#;

fn main() {
    if Command::new("wrk").arg("-v").output().is_err() {
        println!("throughput: skipped, for wrk is not installed (Debian: apt-get install wrk)");
        return;
    }
    let mut script = tempfile::NamedTempFile::new().expect("a temporary file");
    script.write_all(SCRIPT.as_bytes()).expect("room for it");
    let speeds = [
        "--prefill-tokens-per-second",
        "0",
        "--decode-tokens-per-second",
        "0",
    ];
    let head = [
        "",
        "requests/s",
        "ratio",
        "p99 ms",
        "frontend us",
        "engines us",
    ];
    let mut rows = vec![row(head)];
    let mut slowest = f64::INFINITY;
    let mut direct = f64::NAN;
    for level in ["warn", "info"] {
        let up = Up::start(level, &speeds);
        if direct.is_nan() {
            let asked = ask(&up, up.engine, script.path());
            direct = asked.per_second;
            rows.push(asked.row("one engine directly", direct));
        }
        let asked = ask(&up, up.public, script.path());
        slowest = slowest.min(asked.per_second);
        let ready = format!("through the frontend, log level {level}");
        rows.push(asked.row(&ready, direct));
        if level == "info" {
            println!(
                "throughput: one client of 32 connections; ready after {:?}",
                up.ready_after
            );
        }
    }
    table(
        "  CPU time is per request, of all engines or of the frontend's process",
        &rows,
    );
    target(
        &format!("requests/s >= {PER_SECOND_MIN}"),
        slowest >= PER_SECOND_MIN,
    );
}

/// What wrk saw, and the CPU time of a request in microseconds: the frontend's and the engines'.
struct Asked {
    per_second: f64,
    p99_ms: String,
    cpu_micros: [f64; 2],
}

impl Asked {
    fn row(&self, name: &str, direct: f64) -> Vec<String> {
        let [frontend, engines] = self.cpu_micros.map(|micros| format!("{micros:.1}"));
        let per_second = format!("{:.0}", self.per_second);
        let ratio = format!("{:.2}", self.per_second / direct);
        row([name, &per_second, &ratio, &self.p99_ms, &frontend, &engines])
    }
}

fn ask(up: &Up, address: SocketAddr, script: &Path) -> Asked {
    let before = up.cpu_times();
    let output = Command::new("wrk")
        .args(["-t1", CONNECTIONS, "-d", SECONDS, "--latency", "-s"])
        .arg(script)
        .arg(format!("http://{address}/v1/chat/completions"))
        .output()
        .expect("wrk runs");
    let after = up.cpu_times();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "{text}"
    );
    let word = |line: &str, at: usize| {
        let found = text.lines().find(|found| found.contains(line));
        let words = found.into_iter().flat_map(str::split_whitespace);
        words.map(str::to_owned).nth(at).unwrap_or_default()
    };
    let requests: f64 = word("requests in", 0).parse().expect("wrk counts");
    let used = [0, 1].map(|at| (after[at] - before[at]).as_secs_f64() * 1e6 / requests);
    Asked {
        per_second: word("Requests/sec:", 1).parse().expect("wrk counts"),
        p99_ms: word(" 99%", 1).trim_end_matches("ms").to_owned(),
        cpu_micros: used,
    }
}
