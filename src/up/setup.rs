//! What `kvlens up` runs: decided once from the flags and what this box has.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::command::Plan;
use crate::engine::run_dir::RunDir;
use crate::engine::{Kind, Spec, free_ports};
use crate::events::zmq::Source;
use crate::gpu::GpuCount;
use crate::id::WorkerId;
use crate::model::Model;
use crate::up::{Args, UpError};
use crate::vision::Family;
use crate::worker::AgentSpec;

/// The name that the demo model is served under.
const DEMO: &str = "demo";

/// Stand-ins that are started where nothing else is said: two, so that there is a choice to see.
const MOCK_WORKERS: u16 = 2;

/// A small picture for the request to copy: a house, 32 by 32 pixels.
const PICTURE: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgBAMAAACBVGfHAAAAElBMVEWHzutMmQCyIiL13rNlQyH/1wAO\
    nZAMAAAASUlEQVR42mNgIA0EoPFDQwPwC7CGhoaSoEVJCdUWJiUlBRTFSkoQJUgKUJUoKaEqYYIIKKAp\
    QFLCbAwGBhQKuLhQU0AQDQyQAADaKh/qPWXfTQAAAABJRU5ErkJggg==";

/// Where the two listeners are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// What is to run.
#[derive(Debug)]
pub(crate) struct Setup {
    kind: Kind,
    workers: u16,
    /// GPUs found; engines share them out one by one.
    gpus: GpuCount,
    /// The name requests use, and part of every hash.
    pub(crate) name: String,
    /// `None` for the demo model.
    folder: Option<PathBuf>,
    pub(crate) model: Arc<Model>,
}

impl Setup {
    /// Decides what to run; reads the model.
    pub(crate) fn choose(args: &Args, gpus: GpuCount) -> Result<Self, UpError> {
        let kind = match (args.engine, &gpus, &args.model) {
            (Some(kind), ..) => kind,
            (None, GpuCount::Some(_), Some(_)) => Kind::Vllm,
            _ => Kind::Mock,
        };
        if let (Kind::Vllm, GpuCount::None { reason }) = (kind, &gpus) {
            return Err(UpError::NoGpu {
                reason: reason.clone(),
            });
        }
        let (name, folder, model) = match (&args.model, kind) {
            (Some(text), _) => named_model(text)?,
            (None, Kind::Mock) => (DEMO.to_owned(), None, Model::demo()?),
            (None, Kind::Vllm) => return Err(UpError::ModelMissing { engine: "vllm" }),
            (None, Kind::Command) => return Err(UpError::ModelMissing { engine: "command" }),
        };
        let workers = args.workers.unwrap_or(match (kind, &gpus) {
            (Kind::Vllm, GpuCount::Some(gpus)) => u16::try_from(*gpus).unwrap_or(u16::MAX),
            (Kind::Command, _) => 1,
            _ => MOCK_WORKERS,
        });
        Ok(Self {
            kind,
            workers,
            gpus,
            name,
            folder,
            model: Arc::new(model),
        })
    }

    /// The engines to launch.
    pub(crate) fn specs(
        &self,
        engine_args: &[String],
        run_dir: &RunDir,
    ) -> Result<Vec<Spec>, UpError> {
        let ports = free_ports(usize::from(self.workers))?;
        let spec = |(number, port): (usize, u16)| {
            let worker = self.worker(number)?;
            let plan = Plan {
                worker,
                kind: self.kind,
                name: self.name.clone(),
                model: self
                    .folder
                    .as_ref()
                    .map(|folder| folder.display().to_string()),
                port,
                gpus: self.gpu(number).map(|gpu| vec![gpu]),
                args: engine_args.to_vec(),
            };
            Ok(plan.spec(run_dir)?)
        };
        ports.into_iter().enumerate().map(spec).collect()
    }

    /// The agent beside one engine.
    pub(crate) fn agent(&self, engine: &Spec) -> AgentSpec {
        let kind = match self.kind {
            Kind::Mock => "mock",
            Kind::Vllm => "vllm",
            Kind::Command => "command",
        };
        AgentSpec {
            worker: engine.worker.clone(),
            address: format!("http://{}", engine.address),
            model: self.name.clone(),
            aliases: Vec::new(),
            kind: kind.to_owned(),
            sources: vec![Source {
                events: engine.kv_events.clone(),
                replay: Some(engine.kv_replay.clone()),
            }],
            placeholder: self.model.family().map(Family::placeholder),
        }
    }

    /// The first line: what was found here and what is started.
    pub(crate) fn opening(&self) -> String {
        let engines = match self.kind {
            Kind::Mock => "mock engines",
            Kind::Vllm => "vLLM engines",
            Kind::Command => "engines of your command",
        };
        let model = match &self.folder {
            None => "the built-in demo model".to_owned(),
            Some(folder) => format!("{} from {}", self.name, folder.display()),
        };
        let found = match (&self.gpus, self.kind) {
            (GpuCount::None { reason }, _) => format!("no NVIDIA GPU here ({reason})"),
            (GpuCount::Some(gpus), Kind::Mock) => {
                format!("{gpus} NVIDIA GPUs found (--model NAME serves a real model on them)")
            }
            (GpuCount::Some(gpus), _) => format!("{gpus} NVIDIA GPUs found"),
        };
        format!(
            "{found}: starting {} {engines} with {model}; images are accepted",
            self.workers
        )
    }

    /// What is printed when all is ready: the addresses, and a request to copy.
    pub(crate) fn banner(&self, addresses: Addresses) -> Banner {
        Banner {
            workers: usize::from(self.workers),
            name: self.name.clone(),
            addresses,
        }
    }

    fn worker(&self, number: usize) -> Result<WorkerId, UpError> {
        let word = match self.kind {
            Kind::Mock => "mock",
            Kind::Vllm => "gpu",
            Kind::Command => "engine",
        };
        let worker = format!("{word}-{number}");
        WorkerId::new(&worker).map_err(|source| UpError::Worker { worker, source })
    }

    fn gpu(&self, number: usize) -> Option<u32> {
        match (self.kind, &self.gpus) {
            (Kind::Vllm, GpuCount::Some(gpus)) => Some(number as u32 % gpus),
            _ => None,
        }
    }
}

/// A model by folder or by id: the name it is served under, its folder, its files.
fn named_model(text: &str) -> Result<(String, Option<PathBuf>, Model), UpError> {
    let environment = |name: &str| std::env::var_os(name);
    let folder = Model::resolve(text, environment)?;
    let model = Model::load(&folder)?;
    let is_folder = folder.as_os_str() == text || PathBuf::from(text).is_dir();
    let name = match folder.file_name().filter(|_| is_folder) {
        Some(last) => last.to_string_lossy().into_owned(),
        None => text.to_owned(),
    };
    Ok((name, Some(folder), model))
}

/// What is printed when all is ready.
#[derive(Debug)]
pub(crate) struct Banner {
    /// Workers to wait for.
    pub(crate) workers: usize,
    name: String,
    addresses: Addresses,
}

impl Banner {
    /// One line for an operator.
    pub(crate) fn status(&self) -> String {
        format!("serving {} on {} workers", self.name, self.workers)
    }

    /// The text.
    pub(crate) fn text(&self) -> String {
        let Addresses { public, admin } = self.addresses;
        let body = serde_json::json!({
            "model": self.name,
            "max_tokens": 48,
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "What stands in this picture?"},
                {"type": "image_url", "image_url": {"url": PICTURE}},
            ]}],
        });
        format!(
            "ready: model {name:?} at http://{public}/v1, metrics and workers at http://{admin}\n\
             send this twice, and see the second answer's x-kvlens-overlap and cached_tokens:\n\n\
             curl -si http://{public}/v1/chat/completions -H 'content-type: application/json' \
             -d '{body}'\n\n\
             Ctrl-C stops everything",
            name = self.name,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_gpu() -> GpuCount {
        GpuCount::None {
            reason: "none was put in".to_owned(),
        }
    }

    fn args(words: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let words = std::iter::once("up").chain(words.iter().copied());
        <Line as clap::Parser>::parse_from(words).args
    }

    #[test]
    fn without_a_gpu_two_mocks_serve_the_demo() {
        let setup = Setup::choose(&args(&[]), no_gpu()).unwrap();
        assert_eq!(
            (setup.kind, setup.workers, setup.name.as_str()),
            (Kind::Mock, 2, "demo")
        );
        let opening = setup.opening();
        assert!(
            opening.contains("none was put in") && !opening.contains('\n'),
            "{opening}"
        );
    }

    #[test]
    fn what_cannot_run_says_what_is_missing() {
        for (words, gpus, part) in [
            (
                &["--engine", "vllm", "--model", "x"][..],
                no_gpu(),
                "none was put in",
            ),
            (&["--engine", "vllm"], GpuCount::Some(2), "--model"),
            (&["--engine", "command"], no_gpu(), "--model"),
            (&["--model", "no/such"], no_gpu(), "no/such"),
        ] {
            let error = Setup::choose(&args(words), gpus).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_banner_has_a_request_that_is_json() {
        let setup = Setup::choose(&args(&[]), no_gpu()).unwrap();
        let address = "127.0.0.1:8000".parse().unwrap();
        let text = setup
            .banner(Addresses {
                public: address,
                admin: address,
            })
            .text();
        let body = text
            .split("-d '")
            .nth(1)
            .unwrap()
            .split("'\n")
            .next()
            .unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], "demo");
    }
}
