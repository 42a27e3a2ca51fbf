//! Hosts that are asked: an agent beside an engine, and a listener that never answers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvlens::discovery::WorkerRecord;
use kvlens::http::Routes;
use kvlens::http::keys::{Keys, guarded};
use kvlens::http::reply::Reply;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::feed::parties::{Served, record};

/// What an agent's listener answers to who looks at its worker.
pub(crate) struct Agent {
    #[cfg_attr(
        not(feature = "etcd"),
        expect(dead_code, reason = "only what registers it asks for it")
    )]
    pub(crate) record: WorkerRecord,
    served: Served,
    asked: Arc<AtomicUsize>,
    _engine: Served,
}

impl Agent {
    /// An agent that asks for one of the keys in a file.
    pub(crate) async fn start(key_file: Option<&Path>) -> Self {
        let engine = Served::engine("127.0.0.1:0").await;
        let mut record = record("gpu-0", &engine.url());
        let keys = key_file.map(|path| Arc::new(Keys::read(path).expect("a key file")));
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, shown) = (asked.clone(), record.clone());
        let page = move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            let body = json!({"workers": [shown]});
            let reply = Reply::json(::http::StatusCode::OK, &body);
            Box::pin(std::future::ready(reply)) as kvlens::http::Answer
        };
        let routes = Routes::default().get("/kvlens/v1/workers", guarded(keys, page));
        let served = Served::start("127.0.0.1:0", routes).await;
        record.agent = Some(served.url());
        Self {
            record,
            served,
            asked,
            _engine: engine,
        }
    }

    pub(crate) fn url(&self) -> String {
        self.served.url()
    }

    /// How often its worker was looked at.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A listener that accepts and never answers, until it is dropped.
pub(crate) struct Hanging {
    pub(crate) address: String,
    _accepting: JoinSet<()>,
}

impl Hanging {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Self {
            address,
            _accepting: accepting,
        }
    }
}
