//! What vLLM and the mock are told.

use crate::discovery::engine_file::KvEndpoints;
use crate::engine::EngineAddress;
use crate::engine::command::{Plan, Ranks};

/// Batches of KV events that an engine keeps for replay, some ten minutes of a busy one; vLLM's own
/// 10,000 are gone after a minute.
const REPLAY_BATCHES: u32 = 100_000;

impl Plan {
    pub(crate) fn mock_args(&self, address: &EngineAddress, first: &KvEndpoints) -> Vec<String> {
        let mut args = words(["mock-engine", "--exit-with-stdin"]);
        args.extend(listen_args(address));
        args.extend(words(["--served-model-name", &self.name]));
        args.extend(words(["--kv-events-endpoint", &first.events]));
        args.extend(words(["--kv-events-replay", &first.replay]));
        if let Some(model) = &self.model {
            args.extend(words(["--model", model]));
        }
        self.add_shape(args)
    }

    pub(crate) fn vllm_args(&self, address: &EngineAddress, first: &KvEndpoints) -> Vec<String> {
        let events = serde_json::json!({
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": first.events,
            "replay_endpoint": first.replay,
            "buffer_steps": REPLAY_BATCHES,
        })
        .to_string();
        let mut args = words(["serve"]);
        args.extend(self.model.clone());
        args.extend(words(["--served-model-name", &self.name]));
        args.extend(listen_args(address));
        args.extend(words([
            "--enable-prefix-caching",
            "--enable-prompt-tokens-details",
        ]));
        args.extend(words(["--prefix-caching-hash-algo", "sha256_cbor"]));
        args.extend(words(["--kv-events-config", &events]));
        self.add_shape(args)
    }

    /// Adds what vLLM and the mock spell alike, and the further arguments.
    fn add_shape(&self, mut args: Vec<String>) -> Vec<String> {
        if self.ranks != Ranks::One {
            let count = self.ranks.count().to_string();
            args.extend(words(["--data-parallel-size", &count]));
        }
        if let Some(size) = self.block_size {
            args.extend(words(["--block-size", &size.tokens().to_string()]));
        }
        if let Some(folder) = &self.media_dir {
            let folder = folder.display().to_string();
            args.extend(words(["--allowed-local-media-path", &folder]));
        }
        args.extend(self.args.iter().cloned());
        args
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn listen_args(address: &EngineAddress) -> Vec<String> {
    match address {
        EngineAddress::Unix(path) => words(["--uds", &path.display().to_string()]),
        EngineAddress::Tcp(address) => {
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            words(["--host", &host, "--port", &port])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::path::PathBuf;

    use super::*;
    use crate::block::BlockSize;
    use crate::engine::command::Listen;
    use crate::engine::command::tests::{plan, run_dir};

    const TCP: EngineAddress = EngineAddress::Tcp(std::net::SocketAddr::V4(SocketAddrV4::new(
        Ipv4Addr::LOCALHOST,
        9000,
    )));

    fn after<'a>(args: &'a [String], flag: &str) -> Option<&'a str> {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1).map(String::as_str)
    }

    #[test]
    fn vllm_is_told_to_publish_what_routing_needs() {
        let (_base, run_dir) = run_dir();
        let plan = plan(Some("/models/x"));
        let sources = plan.sources(&run_dir).unwrap();
        let args = plan.vllm_args(&TCP, &sources[0]);
        assert_eq!(&args[..2], ["serve", "/models/x"]);
        for (flag, value) in [
            ("--port", Some("9000")),
            ("--served-model-name", Some("org/model")),
            ("--host", Some("127.0.0.1")),
            ("--prefix-caching-hash-algo", Some("sha256_cbor")),
            ("--data-parallel-size", None),
            ("--block-size", None),
            ("--uds", None),
            ("--allowed-local-media-path", None),
        ] {
            assert_eq!(after(&args, flag), value, "{flag}");
        }
        let events = after(&args, "--kv-events-config").unwrap();
        let events: serde_json::Value = serde_json::from_str(events).unwrap();
        assert_eq!(events["endpoint"], sources[0].events);
        assert_eq!(events["replay_endpoint"], sources[0].replay);
        assert_eq!(events["enable_kv_cache_events"], true);
        assert!(sources[0].events.starts_with("ipc://") && !sources[0].bind);
        assert_eq!(args.last().unwrap(), "--extra");
    }

    #[test]
    fn several_ranks_have_ports_of_their_own_on_loopback() {
        let (_base, run_dir) = run_dir();
        let plan = Plan {
            listen: Listen::Socket,
            ranks: Ranks::new(2, 7000, 8000),
            block_size: BlockSize::new(32),
            media_dir: Some(PathBuf::from("/media")),
            ..plan(Some("/models/x"))
        };
        let sources = plan.sources(&run_dir).unwrap();
        let shown: Vec<_> = sources
            .iter()
            .map(|source| (source.events.as_str(), source.bind, source.replay.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("tcp://127.0.0.1:7000", true, "tcp://127.0.0.1:8000"),
                ("tcp://127.0.0.1:7001", true, "tcp://127.0.0.1:8001"),
            ]
        );
        let address = plan.address(&run_dir).unwrap();
        let socket = run_dir.path().join("gpu-0.http.sock");
        assert_eq!(address.to_string(), format!("unix:{}", socket.display()));
        let socket = socket.display().to_string();
        for args in [
            plan.vllm_args(&address, &sources[0]),
            plan.mock_args(&address, &sources[0]),
        ] {
            assert_eq!(after(&args, "--uds"), Some(socket.as_str()));
            assert_eq!(after(&args, "--data-parallel-size"), Some("2"));
            assert_eq!(after(&args, "--block-size"), Some("32"));
            assert_eq!(after(&args, "--port"), None);
        }
        let args = plan.vllm_args(&address, &sources[0]);
        assert_eq!(after(&args, "--allowed-local-media-path"), Some("/media"));
    }

    #[test]
    fn the_mock_ends_with_us_and_needs_no_model() {
        let (_base, run_dir) = run_dir();
        let sources = plan(None).sources(&run_dir).unwrap();
        let args = plan(None).mock_args(&TCP, &sources[0]);
        assert!(args.iter().any(|arg| arg == "--exit-with-stdin"));
        assert!(!args.iter().any(|arg| arg == "--model"));
        let environment = plan(None).environment();
        assert!(environment.contains(&("CUDA_VISIBLE_DEVICES".to_owned(), "GPU-1f".to_owned())));
    }
}
