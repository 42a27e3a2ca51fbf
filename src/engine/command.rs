//! The command lines of engines.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::engine::run_dir::RunDir;
use crate::engine::{EngineError, Kind, Spec};
use crate::id::WorkerId;

/// Batches of KV events that an engine keeps for replay, some ten minutes of a busy one; vLLM's own
/// 10,000 are gone after a minute.
const REPLAY_BATCHES: u32 = 100_000;

/// Longest path of a unix socket: `sun_path` has 108 bytes, the last of them zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What a worker's engine is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub worker: WorkerId,
    pub kind: Kind,
    /// The name it serves its model under.
    pub name: String,
    /// The model's folder; `None` takes the mock's own.
    pub model: Option<String>,
    /// A port on 127.0.0.1.
    pub port: u16,
    /// GPUs that the engine may see, as `CUDA_VISIBLE_DEVICES` names them; `None` leaves the choice
    /// to it.
    pub gpus: Option<Vec<String>>,
    /// A folder whose files the engine may read as images.
    pub media_dir: Option<PathBuf>,
    /// Further arguments; for [`Kind::Command`] the whole command line.
    pub args: Vec<String>,
}

impl Plan {
    /// The engine's command line, its sockets in `run_dir`.
    ///
    /// # Errors
    /// When the program is missing, the command is unusable or a socket's path is too long.
    pub fn spec(&self, run_dir: &RunDir) -> Result<Spec, EngineError> {
        let kv_events = endpoint(&run_dir.socket(&self.worker, "kv"))?;
        let kv_replay = endpoint(&run_dir.socket(&self.worker, "replay"))?;
        let (program, args) = match self.kind {
            Kind::Mock => (own_program()?, self.mock_args(&kv_events, &kv_replay)),
            Kind::Vllm => (find("vllm", VLLM)?, self.vllm_args(&kv_events, &kv_replay)),
            Kind::Command => self.command(&kv_events, &kv_replay)?,
        };
        Ok(Spec {
            worker: self.worker.clone(),
            program,
            args,
            environment: self.environment(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            kv_events,
            kv_replay,
            media_dir: self.media_dir.clone(),
        })
    }

    fn mock_args(&self, kv_events: &str, kv_replay: &str) -> Vec<String> {
        let port = self.port.to_string();
        let mut args = vec!["mock-engine", "--exit-with-stdin", "--host", "127.0.0.1"];
        args.extend(["--port", &port]);
        args.extend(["--served-model-name", &self.name]);
        args.extend(["--kv-events-endpoint", kv_events]);
        args.extend(["--kv-events-replay", kv_replay]);
        args.extend(
            self.model
                .iter()
                .flat_map(|model| ["--model", model.as_str()]),
        );
        let media_dir = self.media_dir();
        args.extend(allowed(&media_dir));
        args.extend(self.args.iter().map(String::as_str));
        args.into_iter().map(str::to_owned).collect()
    }

    fn vllm_args(&self, kv_events: &str, kv_replay: &str) -> Vec<String> {
        let port = self.port.to_string();
        let events = serde_json::json!({
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": kv_events,
            "replay_endpoint": kv_replay,
            "buffer_steps": REPLAY_BATCHES,
        })
        .to_string();
        let mut args = vec!["serve"];
        args.extend(self.model.as_deref());
        args.extend(["--served-model-name", &self.name]);
        args.extend(["--host", "127.0.0.1", "--port", &port]);
        args.extend(["--enable-prefix-caching", "--enable-prompt-tokens-details"]);
        args.extend(["--prefix-caching-hash-algo", "sha256_cbor"]);
        args.extend(["--kv-events-config", &events]);
        let media_dir = self.media_dir();
        args.extend(allowed(&media_dir));
        args.extend(self.args.iter().map(String::as_str));
        args.into_iter().map(str::to_owned).collect()
    }

    fn command(
        &self,
        kv_events: &str,
        kv_replay: &str,
    ) -> Result<(PathBuf, Vec<String>), EngineError> {
        let port = self.port.to_string();
        let media_dir = self.media_dir();
        let values = [
            ("{port}", port.as_str()),
            ("{model}", self.model.as_deref().unwrap_or_default()),
            ("{name}", self.name.as_str()),
            ("{kv_events}", kv_events),
            ("{kv_replay}", kv_replay),
            ("{worker}", self.worker.as_str()),
            ("{media_dir}", media_dir.as_str()),
        ];
        let mut words = Vec::new();
        for word in &self.args {
            words.push(fill(word, &values)?);
        }
        let mut words = words.into_iter();
        let program = words.next().ok_or(EngineError::CommandEmpty)?;
        let program = find(&program, "name a program that exists, or give its path")?;
        Ok((program, words.collect()))
    }

    /// The folder's path; empty without one.
    fn media_dir(&self) -> String {
        let dir = self.media_dir.as_ref();
        dir.map_or_else(String::new, |dir| dir.display().to_string())
    }

    fn environment(&self) -> Vec<(String, String)> {
        let gpus = self.gpus.iter();
        let gpus = gpus.map(|gpus| ("CUDA_VISIBLE_DEVICES", gpus.join(",")));
        // What a box serves is its owner's own affair.
        let quiet = [("VLLM_NO_USAGE_STATS", "1"), ("DO_NOT_TRACK", "1")]
            .map(|(name, text)| (name, text.to_owned()));
        let named = |(name, text): (&str, String)| (name.to_owned(), text);
        gpus.chain(quiet).map(named).collect()
    }
}

/// What vLLM, and the mock as it does, is told of the folder.
fn allowed(media_dir: &str) -> impl Iterator<Item = &str> {
    let told = (!media_dir.is_empty()).then_some(["--allowed-local-media-path", media_dir]);
    told.into_iter().flatten()
}

const VLLM: &str = "install vLLM and activate its environment, or choose --engine mock or command";

fn own_program() -> Result<PathBuf, EngineError> {
    std::env::current_exe().map_err(|source| EngineError::OwnProgram { source })
}

fn endpoint(path: &Path) -> Result<String, EngineError> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(EngineError::SocketPath {
            path: path.display().to_string(),
            bytes,
            max: SOCKET_PATH_BYTES_MAX,
        });
    }
    Ok(format!("ipc://{}", path.display()))
}

/// Puts values in place of a word's `{names}`. Other braces stay, as in JSON arguments.
fn fill(word: &str, values: &[(&str, &str)]) -> Result<String, EngineError> {
    let put = |text: String, (name, value): &(&str, &str)| text.replace(name, value);
    let filled = values.iter().fold(word.to_owned(), put);
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    // Only the word as written is looked at: a value may have braces of its own.
    let unknown = word.split('{').skip(1).find_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let placeholder = format!("{{{name}}}");
        let known = values.iter().any(|(value, _)| *value == placeholder);
        (is_name(name) && !known).then_some(placeholder)
    });
    match unknown {
        None => Ok(filled),
        Some(placeholder) => Err(EngineError::Placeholder {
            placeholder,
            known: values
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(" "),
        }),
    }
}

/// The path of a program, looked up in `PATH` unless it has a slash.
fn find(program: &str, advice: &'static str) -> Result<PathBuf, EngineError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    find_in(program, &folders).ok_or_else(|| EngineError::ProgramMissing {
        program: program.to_owned(),
        advice,
    })
}

fn find_in(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(runs);
    }
    folders.iter().map(|folder| folder.join(program)).find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(model: Option<&str>) -> Plan {
        Plan {
            worker: WorkerId::new("gpu-0").unwrap(),
            kind: Kind::Vllm,
            name: "org/model".to_owned(),
            model: model.map(str::to_owned),
            port: 9000,
            gpus: Some(vec!["GPU-1f".to_owned()]),
            media_dir: Some(PathBuf::from("/dev/shm/m")),
            args: vec!["--extra".to_owned()],
        }
    }

    #[test]
    fn vllm_is_told_to_publish_what_routing_needs() {
        let args = plan(Some("/models/x")).vllm_args("ipc:///run/e", "ipc:///run/r");
        assert_eq!(&args[..2], ["serve", "/models/x"]);
        let after = |flag: &str| {
            args.iter()
                .skip_while(move |arg| *arg != flag)
                .nth(1)
                .unwrap()
        };
        assert_eq!(after("--port"), "9000");
        assert_eq!(after("--served-model-name"), "org/model");
        assert_eq!(after("--host"), "127.0.0.1");
        assert_eq!(after("--prefix-caching-hash-algo"), "sha256_cbor");
        let events: serde_json::Value = serde_json::from_str(after("--kv-events-config")).unwrap();
        assert_eq!(events["endpoint"], "ipc:///run/e");
        assert_eq!(events["replay_endpoint"], "ipc:///run/r");
        assert_eq!(events["enable_kv_cache_events"], true);
        assert_eq!(after("--allowed-local-media-path"), "/dev/shm/m");
        assert_eq!(args.last().unwrap(), "--extra");
    }

    #[test]
    fn the_mock_ends_with_us_and_needs_no_model() {
        let args = plan(None).mock_args("ipc:///run/e", "ipc:///run/r");
        assert!(args.iter().any(|arg| arg == "--exit-with-stdin"));
        assert!(!args.iter().any(|arg| arg == "--model"));
        assert!(args.iter().any(|arg| arg == "--allowed-local-media-path"));
        let environment = plan(None).environment();
        assert!(environment.contains(&("CUDA_VISIBLE_DEVICES".to_owned(), "GPU-1f".to_owned())));
    }

    #[test]
    fn placeholders_are_filled_and_misspelt_ones_refused() {
        let values = [("{port}", "80"), ("{model}", "m{worker}")];
        for (word, filled) in [
            ("--port={port}", Some("--port=80")),
            ("{port}{port}", Some("8080")),
            ("{model}", Some("m{worker}")),
            (r#"{"a": {"b": 1}}"#, Some(r#"{"a": {"b": 1}}"#)),
            ("{prot}", None),
            ("plain", Some("plain")),
        ] {
            assert_eq!(fill(word, &values).ok().as_deref(), filled, "{word}");
        }
    }

    #[test]
    fn programs_are_found_only_where_they_can_run() {
        let bin = [PathBuf::from("/nonexistent"), PathBuf::from("/bin")];
        for (program, found) in [
            ("sh", Some("/bin/sh")),
            ("/bin/sh", Some("/bin/sh")),
            ("/etc/passwd", None),
            ("no-such-program", None),
        ] {
            assert_eq!(
                find_in(program, &bin),
                found.map(PathBuf::from),
                "{program}"
            );
        }
    }

    #[test]
    fn a_socket_path_that_does_not_fit_is_refused() {
        let fits = format!("/{}", "x".repeat(106));
        assert_eq!(endpoint(Path::new(&fits)).unwrap(), format!("ipc://{fits}"));
        let error = endpoint(Path::new(&format!("{fits}x"))).unwrap_err();
        assert!(error.to_string().contains("engine.run_dir"), "{error}");
    }
}
