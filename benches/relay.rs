//! What the frontend adds to a stream: each chat is asked of the frontend and of its engine
//! directly, in turn, over loopback.

mod figures;
mod launched;
mod samples;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::figures::{row, table, target};
use crate::launched::Up;
use crate::samples::Samples;

const ROUNDS: usize = 120;
const TOKENS: usize = 48;
const TOKENS_PER_SECOND: &str = "1000";

/// Chats streamed at once while CPU time is counted.
const AT_ONCE: usize = 16;

const ADDED_MAX: Duration = Duration::from_millis(1);

/// Nagle's algorithm and delayed acknowledgements together hold a packet for 40 ms.
const GAP_MAX: Duration = Duration::from_millis(30);

fn main() {
    let speeds = [
        "--prefill-tokens-per-second",
        "0",
        "--decode-tokens-per-second",
        TOKENS_PER_SECOND,
    ];
    let up = Up::start("warn", &speeds);
    let mut ways = [Way::new(up.engine), Way::new(up.public)];
    for round in 0..ROUNDS {
        for way in &mut ways {
            way.ask(round);
        }
    }
    let [direct, relayed] = &ways;
    let title = format!(
        "relay: {ROUNDS} streams of {TOKENS} tokens, each asked both ways; ready after {:?}",
        up.ready_after
    );
    let rows = [
        row(["wall time", "p50 us", "p99 us"]),
        direct.first.row("first token, engine directly"),
        relayed.first.row("first token, through the frontend"),
        direct.whole.row("whole stream, engine directly"),
        relayed.whole.row("whole stream, through the frontend"),
        direct.gap.row("longest gap, engine directly"),
        relayed.gap.row("longest gap, through the frontend"),
    ];
    table(&title, &rows);
    let median = |samples: &Samples| samples.percentile(50);
    let added = median(&relayed.first).saturating_sub(median(&direct.first));
    let ratio = median(&relayed.first).as_secs_f64() / median(&direct.first).as_secs_f64();
    println!(
        "  the frontend adds {added:?} to the median first token, {ratio:.2} times the engine's"
    );
    let most = format!("added to the median first token <= {ADDED_MAX:?}");
    target(&most, added <= ADDED_MAX);
    // Only what the frontend adds is its own: a busy machine makes gaps too.
    let gap = median(&relayed.gap);
    target(&format!("median longest gap < {GAP_MAX:?}"), gap < GAP_MAX);
    cpu(&up);
}

/// CPU time a token: of the frontend, of the engines, and of a byte pump in its place.
fn cpu(up: &Up) {
    let pump = Pump::start(up.engine);
    let mut rows = vec![row(["CPU time a token, us", "frontend", "engines", "pump"])];
    for (name, address, at_once) in [
        ("engine directly, 1 stream", up.engine, 1),
        ("through a pump, 1 stream", pump.address, 1),
        ("through the frontend, 1 stream", up.public, 1),
        ("engine directly, 16 streams", up.engine, AT_ONCE),
        ("through a pump, 16 streams", pump.address, AT_ONCE),
        ("through the frontend, 16 streams", up.public, AT_ONCE),
    ] {
        let before = times(up, &pump);
        let rounds = if at_once == 1 { 40 } else { 10 };
        std::thread::scope(|scope| {
            for stream in 0..at_once {
                scope.spawn(move || {
                    let mut way = Way::new(address);
                    (0..rounds).for_each(|round| way.ask(1_000 + stream * 100 + round));
                });
            }
        });
        let tokens = (at_once * rounds * TOKENS) as f64;
        let after = times(up, &pump);
        let used = before
            .iter()
            .zip(after)
            .map(|(before, after)| after - *before);
        let cells = used.map(|used| format!("{:.2}", used.as_secs_f64() * 1e6 / tokens));
        rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
    }
    table("", &rows);
}

fn times(up: &Up, pump: &Pump) -> [Duration; 3] {
    let [frontend, engines] = up.cpu_times();
    let pumped = pump.nanos.load(Ordering::Relaxed);
    [frontend, engines, Duration::from_nanos(pumped)]
}

/// The least that stands between a client and an engine: a thread a connection that writes what it
/// reads, and understands nothing.
struct Pump {
    address: SocketAddr,
    /// CPU time of its threads.
    nanos: Arc<AtomicU64>,
}

impl Pump {
    fn start(engine: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let pump = Self {
            address: listener.local_addr().expect("it is bound"),
            nanos: Arc::default(),
        };
        let nanos = pump.nanos.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let engine = TcpStream::connect(engine).expect("it listens");
                let ways = [
                    (client.try_clone(), engine.try_clone()),
                    (Ok(engine), Ok(client)),
                ];
                for (from, to) in ways {
                    let (from, to) = (from.expect("open"), to.expect("open"));
                    let nanos = nanos.clone();
                    std::thread::spawn(move || copy(from, to, &nanos));
                }
            }
        });
        pump
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, nanos: &AtomicU64) {
    to.set_nodelay(true).expect("a TCP socket");
    let mut buffer = [0; 64 << 10];
    let mut counted = cpu_nanos();
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        let now = cpu_nanos();
        nanos.fetch_add(now - counted, Ordering::Relaxed);
        counted = now;
    }
    to.shutdown(Shutdown::Write).ok();
}

fn cpu_nanos() -> u64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec.unsigned_abs() * 1_000_000_000 + used.tv_nsec.unsigned_abs()
}

/// One connection, and what came over it.
struct Way {
    connection: TcpStream,
    first: Samples,
    whole: Samples,
    gap: Samples,
}

impl Way {
    fn new(address: SocketAddr) -> Self {
        let connection = TcpStream::connect(address).expect("it listens");
        connection.set_nodelay(true).expect("a TCP socket");
        Self {
            connection,
            first: Samples::default(),
            whole: Samples::default(),
            gap: Samples::default(),
        }
    }

    /// Asks for one stream and times what comes.
    fn ask(&mut self, round: usize) {
        let body = format!(
            r#"{{"model":"demo","stream":true,"stream_options":{{"include_usage":true}},"ignore_eos":true,"max_tokens":{TOKENS},"messages":[{{"role":"user","content":"Question {round}: what is a cache?"}}]}}"#
        );
        let head =
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let started = Instant::now();
        let sent = self.connection.write_all(request.as_bytes());
        sent.expect("the connection stands");
        let mut answer = Vec::new();
        let mut last: Option<Instant> = None;
        let mut gap = Duration::ZERO;
        let mut buffer = [0; 64 << 10];
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            let read = self
                .connection
                .read(&mut buffer)
                .expect("the connection stands");
            assert!(read > 0, "the stream was cut");
            answer.extend_from_slice(&buffer[..read]);
            // The head may come alone; a token is what counts.
            if !contains(&answer, "\"content\":") {
                continue;
            }
            let now = Instant::now();
            match last {
                None => self.first.push(now - started),
                Some(last) => gap = gap.max(now - last),
            }
            last = Some(now);
        }
        self.whole.push(started.elapsed());
        self.gap.push(gap);
        assert!(contains(&answer, "data: [DONE]"), "the stream has no end");
        let tokens = format!("\"completion_tokens\":{TOKENS}");
        assert!(contains(&answer, &tokens), "the stream is not whole");
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}
