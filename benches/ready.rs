//! From the start of `kvlens up` to the line that says it is ready, its two mock engines included.

mod figures;
mod launched;
mod samples;

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::figures::{row, table, target};
use crate::launched::Up;
use crate::samples::Samples;

const STARTS: usize = 10;
const READY_MAX: Duration = Duration::from_secs(3);

fn main() {
    let mut ready = Samples::default();
    let mut cpu = Samples::default();
    let mut engines_cpu = Samples::default();
    let mut floor = Samples::default();
    for _ in 0..STARTS {
        let up = Up::start("info", &[]);
        ready.push(up.ready_after);
        let [own, engines] = up.cpu_times();
        cpu.push(own);
        engines_cpu.push(engines);
        for address in [up.public, up.engine] {
            TcpStream::connect(address).expect("what is ready listens");
        }
        let started = Instant::now();
        let program = env!("CARGO_BIN_EXE_kvlens");
        Command::new(program)
            .arg("--version")
            .output()
            .expect("it runs");
        floor.push(started.elapsed());
    }
    let rows = [
        row(["", "p50 us", "worst us"]),
        ready.row("exec to ready"),
        cpu.row("  CPU time of its process"),
        engines_cpu.row("  CPU time of both engines"),
        floor.row("floor: kvlens --version"),
    ];
    table(&format!("ready: {STARTS} starts of `kvlens up`"), &rows);
    let ratio = ready.percentile(50).as_secs_f64() / floor.percentile(50).as_secs_f64();
    println!("  p50 is {ratio:.0} times the floor");
    target(
        &format!("exec to ready <= {READY_MAX:?}"),
        ready.percentile(99) <= READY_MAX,
    );
}
