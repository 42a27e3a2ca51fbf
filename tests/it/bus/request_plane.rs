//! Frontends whose requests go over the bus alone, with engines in processes of their own.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use image::{ImageFormat, Rgb, RgbImage};
use kvlens::bus::{Bus, wire};
use kvlens::dispatch::parts::Word;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::bus::server::Server;
use crate::end_to_end::client::{assert_error, header};
use crate::end_to_end::pictures::{chat, data_uri, image, streamed, text};
use crate::roles::host::{Agent, Frontend, Host, Process};

/// Engines with a gate that only the bus reaches, and their agents.
struct Rack {
    host: Host,
    server: Server,
    engines: Vec<(String, Process)>,
    agents: Vec<Agent>,
}

impl Rack {
    async fn start(workers: &[&str], words: &str) -> Self {
        Self::on(Host::new(), workers, words).await
    }

    async fn on(mut host: Host, workers: &[&str], words: &str) -> Self {
        let server = Server::start().await;
        let (mut engines, mut agents) = (Vec::new(), Vec::new());
        for worker in workers {
            let nats = server.url();
            let words = format!("engine --worker {worker} --kind mock --nats {nats} -- {words}");
            let engine = host.start(&words);
            engine.said("gate is asked over the bus too").await;
            engines.push(((*worker).to_owned(), engine));
            agents.push(host.agent(worker, "").await);
        }
        Self {
            host,
            server,
            engines,
            agents,
        }
    }

    async fn frontend(&mut self) -> Frontend {
        let urls: Vec<_> = self.agents.iter().map(|agent| agent.url.as_str()).collect();
        let words = format!("--request-plane nats --nats {}", self.server.url());
        let frontend = self.host.frontend(&urls, &words).await;
        frontend.until_ready(self.engines.len() as u64).await;
        frontend
    }

    /// Kills a worker's `kvlens engine`, with which its engine ends.
    fn kill(&self, worker: &str) {
        let engine = self.engines.iter().find(|(name, _)| name == worker);
        engine.expect("an engine").1.signal(Signal::KILL);
    }
}

/// Longest wait for an answer of another engine where nobody listens for the first.
const REFUSED_MAX: Duration = Duration::from_secs(2);

/// Counts the requests on the bus.
async fn counted(bus: Bus, tasks: &mut JoinSet<()>) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let listener = bus.listen("kvlens.request.*".to_owned()).await;
    let (mut words, counts) = (listener.expect("it listens"), count.clone());
    tasks.spawn(async move {
        while let Some(heard) = words.next().await {
            if let Ok(Word::Asks(_)) = wire::decode("a word", &heard.payload) {
                counts.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    count
}

/// A picture of more than a message's bytes.
fn noise() -> Vec<u8> {
    let mut state = 1_u32;
    let picture = RgbImage::from_fn(720, 720, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Rgb([state >> 8, state >> 16, state >> 24].map(|bits| bits as u8))
    });
    let mut png = Cursor::new(Vec::new());
    let written = picture.write_to(&mut png, ImageFormat::Png);
    written.expect("a PNG");
    png.into_inner()
}

fn long(tokens: u32) -> Value {
    let mut body = streamed(chat(&[text("Tell me a long story, and then another.")]));
    body["max_tokens"] = tokens.into();
    body["temperature"] = 0.into();
    body
}

#[tokio::test]
async fn a_stream_whose_engine_dies_goes_on_elsewhere() {
    let mut rack = Rack::start(&["gpu-0", "gpu-1"], "--decode-tokens-per-second 100").await;
    let mut frontend = rack.frontend().await;
    let mut tasks = JoinSet::new();
    let requests = counted(rack.server.bus("test").await, &mut tasks).await;
    let whole = frontend.ask(&long(60)).await;
    assert_eq!(requests.load(Ordering::SeqCst), 1, "it went over the bus");

    let mut stream = frontend.stream(&long(200)).await;
    let worker = header(&stream.headers, "x-kvlens-worker").to_owned();
    let mut events = Vec::new();
    for _ in 0..20 {
        events.push(stream.next().await.expect("an event"));
    }
    rack.kill(&worker);
    events.extend(stream.rest().await);
    assert_eq!(completion_tokens(&events), [200], "{events:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 3);

    // Nobody answers for the other, and whoever is placed there is sent on at once. One who counts there
    // would hide that.
    tasks.shutdown().await;
    let since = Instant::now();
    let told = frontend.ask(&long(5)).await;
    assert_ne!(told.worker, worker);
    assert!(since.elapsed() < REFUSED_MAX, "{:?}", since.elapsed());
    assert!(whole.prompt_tokens == told.prompt_tokens);
    assert_eq!(frontend.process.stopped().await, Some(0));
}

/// What a stream says of its length, whose pieces may have come from two engines.
fn completion_tokens(events: &[String]) -> Vec<Value> {
    assert_eq!(
        events.last().map(String::as_str),
        Some("[DONE]"),
        "{events:?}"
    );
    let read = events
        .iter()
        .filter_map(|event| serde_json::from_str(event).ok());
    read.map(|event: Value| event["usage"]["completion_tokens"].clone())
        .filter(|tokens| !tokens.is_null())
        .collect()
}

#[tokio::test]
async fn a_stop_lets_a_stream_finish_and_others_take_what_comes() {
    let mut rack = Rack::start(&["gpu-0", "gpu-1"], "--decode-tokens-per-second 100").await;
    let frontend = rack.frontend().await;
    let mut tasks = JoinSet::new();
    let requests = counted(rack.server.bus("test").await, &mut tasks).await;
    let mut stream = frontend.stream(&long(200)).await;
    let worker = header(&stream.headers, "x-kvlens-worker").to_owned();
    let mut events = vec![stream.next().await.expect("an event")];
    let stopped = rack.engines.iter_mut().find(|(name, _)| *name == worker);
    let (_, stopped) = stopped.expect("an engine");
    stopped.signal(Signal::TERM);
    stopped.said("draining").await;
    let told = frontend.ask(&long(5)).await;
    assert_ne!(told.worker, worker);
    events.extend(stream.rest().await);
    assert_eq!(completion_tokens(&events), [200], "{events:?}");
    assert_eq!(stopped.ended().await, Some(0));
    // It never went on elsewhere; the other may have been refused once, by the one that drains.
    let asked = requests.load(Ordering::SeqCst);
    assert!(asked == 2 || asked == 3, "{asked}");
    for _ in 0..4 {
        assert_ne!(frontend.ask(&long(2)).await.worker, worker);
    }
}

#[tokio::test]
async fn a_bus_that_begins_again_cuts_no_stream() {
    let mut rack = Rack::start(&["gpu-0", "gpu-1"], "--decode-tokens-per-second 100").await;
    let mut frontend = rack.frontend().await;
    let mut stream = frontend.stream(&long(200)).await;
    let mut events = vec![stream.next().await.expect("an event")];
    let port = rack.server.kill().await;
    rack.server = Server::again(port).await;
    events.extend(stream.rest().await);
    assert_eq!(completion_tokens(&events), [200], "{events:?}");
    frontend.ask(&long(5)).await;
    assert_eq!(frontend.process.stopped().await, Some(0));
}

#[tokio::test]
async fn a_large_request_needs_the_private_listener() {
    let mut rack = Rack::start(&["gpu-0"], "--prefill-tokens-per-second 0").await;
    let body = chat(&[image(&data_uri(&noise())), text("What is it?")]);
    let frontend = rack.frontend().await;
    let refused = frontend.post(&body).await;
    let too_large = (413, "body_too_large", Value::Null);
    assert_error(&refused, too_large.clone(), "no listener");
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("media.http_listen"), "{message}");

    let listen = ("KVLENS_MEDIA_HTTP_LISTEN", "127.0.0.1:0".to_owned());
    let room = ("KVLENS_MEDIA_HTTP_BYTES_MAX", "1000000".to_owned());
    rack.host.settings.extend([listen, room]);
    let frontend = rack.frontend().await;
    let refused = frontend.post(&body).await;
    assert_error(&refused, too_large, "no room for it ever");
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("media.http_bytes_max"), "{message}");

    rack.host.settings.pop();
    let frontend = rack.frontend().await;
    let told = frontend.ask(&body).await;
    assert!(told.prompt_tokens > 400, "{told:?}");
}

#[tokio::test]
async fn a_body_that_a_gate_cannot_fetch_is_no_fault_of_its_engine() {
    let mut host = Host::new();
    let elsewhere = ("KVLENS_DISCOVERY_NETWORKS", "10.0.0.0/8".to_owned());
    host.settings.push(elsewhere);
    let mut rack = Rack::on(host, &["gpu-0"], "--prefill-tokens-per-second 0").await;
    let listen = ("KVLENS_MEDIA_HTTP_LISTEN", "127.0.0.1:0".to_owned());
    rack.host.settings.pop();
    rack.host.settings.push(listen);
    let frontend = rack.frontend().await;
    let large = chat(&[image(&data_uri(&noise())), text("What is it?")]);
    let small = chat(&[text("What is it?")]);
    for _ in 0..3 {
        let refused = frontend.post(&large).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.json()["error"]["code"], "body_not_fetched");
        frontend.ask(&small).await;
    }
}

#[tokio::test]
async fn without_a_bus_it_is_refused() {
    let mut host = Host::new();
    let words = "frontend --model demo --worker-url http://127.0.0.1:1 --request-plane nats";
    let mut frontend = host.start(words);
    assert_eq!(frontend.ended().await, Some(78));
    let log = frontend.log();
    assert!(
        log.contains("dispatch.request_plane is nats and nats.servers is unset"),
        "{log}"
    );
}
