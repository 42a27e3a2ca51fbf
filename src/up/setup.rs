//! What `kvlens up` runs: decided once from the flags and what this box has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::config::engine::EngineConfig;
use crate::config::instance::Kind;
use crate::config::media::MediaConfig;
use crate::engine::command::{Listen, Plan, Ranks, wants_socket};
use crate::engine::run_dir::RunDir;
use crate::engine::{Spec, free_port_runs};
use crate::events::zmq::Source;
use crate::frontend::listeners::Addresses;
use crate::gpu::{self, Gpus};
use crate::id::WorkerId;
use crate::model::Model;
use crate::model::archive::Archive;
use crate::model::named::Named;
use crate::select::Device;
use crate::up::banner::Banner;
use crate::up::{Args, UpError};
use crate::vision::Family;
use crate::worker::spec::AgentSpec;

/// Stand-ins that are started where nothing else is said: two, so that there is a choice to see.
const MOCK_WORKERS: u16 = 2;

/// What is to run.
#[derive(Debug)]
pub(crate) struct Setup {
    kind: Kind,
    workers: u16,
    /// Data-parallel ranks of each engine.
    ranks: u16,
    /// GPUs found; engines share them out, one for each rank.
    gpus: Gpus,
    media_enabled: bool,
    /// The name requests use, and part of every hash.
    pub(crate) name: String,
    /// `None` for the demo model.
    folder: Option<PathBuf>,
    pub(crate) model: Arc<Model>,
    /// The files that it was read from.
    pub(crate) archive: Archive,
}

impl Setup {
    /// Decides what to run; reads the model.
    pub(crate) fn choose(args: &Args, gpus: Gpus, media: &MediaConfig) -> Result<Self, UpError> {
        let kind = match (args.engine, &gpus, &args.model) {
            (Some(kind), ..) => kind,
            (None, Gpus::Some(_), Some(_)) => Kind::Vllm,
            _ => Kind::Mock,
        };
        if let (Kind::Vllm, Gpus::None { reason }) = (kind, &gpus) {
            return Err(UpError::NoGpu {
                reason: reason.clone(),
            });
        }
        let named = match (&args.model, kind) {
            // No other engine knows the demo model by its name.
            (Some(text), Kind::Vllm) => Named::read(text)?,
            (Some(text), Kind::Mock | Kind::Command) => Named::read_or_demo(text)?,
            (None, Kind::Mock) => Named::demo()?,
            (None, Kind::Vllm | Kind::Command) => {
                let engine = kind.name();
                return Err(UpError::ModelMissing { engine });
            }
        };
        let workers = args.workers.unwrap_or(match (kind, &gpus) {
            (Kind::Vllm, Gpus::Some(gpus)) => {
                let engines = gpus.len() / usize::from(args.ranks);
                u16::try_from(engines).unwrap_or(u16::MAX).max(1)
            }
            (Kind::Command, _) => 1,
            _ => MOCK_WORKERS,
        });
        Ok(Self {
            kind,
            workers,
            ranks: args.ranks,
            gpus,
            media_enabled: media.enabled,
            name: named.name,
            folder: named.folder,
            model: Arc::new(named.model),
            archive: named.archive,
        })
    }

    /// Lets a driver pass that is as late as the engines need.
    pub(crate) fn check_driver(&self, config: &Config) -> Result<(), UpError> {
        let library = config.gpu.nvml_library.as_deref();
        match (self.kind, &config.engine.driver_min) {
            (Kind::Vllm, Some(least)) => {
                Ok(gpu::check_driver(("engine.driver_min", least), library)?)
            }
            _ => Ok(()),
        }
    }

    /// The engines to launch.
    pub(crate) fn specs(
        &self,
        args: &Args,
        config: &EngineConfig,
        (media_dir, run_dir): (Option<&Path>, &RunDir),
    ) -> Result<Vec<Spec>, UpError> {
        let on_socket = self.kind == Kind::Command && wants_socket(&args.engine_args);
        // For each engine a run of ports for its events, one for their replay, and one to listen on.
        let ports = free_port_runs(3 * usize::from(self.workers), self.ranks)?;
        let spec = |(number, ports): (usize, &[u16])| {
            let plan = Plan {
                worker: self.worker(number)?,
                kind: self.kind,
                name: self.name.clone(),
                model: self
                    .folder
                    .as_ref()
                    .map(|folder| folder.display().to_string()),
                listen: match on_socket {
                    true => Listen::Socket,
                    false => Listen::Port(ports[2]),
                },
                ranks: Ranks::new(self.ranks, ports[0], ports[1]),
                block_size: config.block_size(),
                gpus: self.gpus(number),
                own_gpus: self.own_gpus(number),
                media_dir: media_dir.map(Path::to_owned),
                image: None,
                args: args.engine_args.clone(),
            };
            Ok(plan.spec(run_dir)?)
        };
        ports.chunks_exact(3).enumerate().map(spec).collect()
    }

    /// The agent beside one engine.
    pub(crate) fn agent(&self, engine: &Spec) -> AgentSpec {
        let address = engine.address.to_string();
        AgentSpec {
            files: Some(self.model.clone()),
            kind: self.kind.name().to_owned(),
            device: match self.gpus {
                Gpus::Some(_) => Device::Gpu,
                Gpus::None { .. } => Device::Cpu,
            },
            sources: engine.sources.iter().cloned().map(Source::from).collect(),
            pid: Some(std::process::id()),
            gpus: engine.gpus.clone(),
            media_dir: engine.media_dir.clone(),
            placeholder: self.model.family().map(Family::placeholder),
            ..AgentSpec::new(engine.worker.clone(), &address, &self.name)
        }
    }

    /// The first line: what was found here and what is started.
    pub(crate) fn opening(&self) -> String {
        let model = match &self.folder {
            None => "the built-in demo model".to_owned(),
            Some(folder) => format!("{} from {}", self.name, folder.display()),
        };
        let found = match (&self.gpus, self.kind) {
            (Gpus::None { reason }, _) => format!("no NVIDIA GPU here ({reason})"),
            (Gpus::Some(gpus), kind) => {
                let noun = if gpus.len() == 1 { "GPU" } else { "GPUs" };
                let hint = match kind {
                    Kind::Mock => " (--model NAME serves a real model there)",
                    Kind::Vllm | Kind::Command => "",
                };
                format!("{} NVIDIA {noun} found{hint}", gpus.len())
            }
        };
        let images = match (self.media_enabled, self.model.family()) {
            (false, _) => "images are refused (media.enabled is false)",
            (true, Some(_)) => "images are accepted",
            (true, None) => "images do not count in routing (the model's kind is not known)",
        };
        format!(
            "{found}: starting {} {} engines with {model}; {images}",
            self.workers,
            self.kind.name()
        )
    }

    /// What is printed when the first worker is ready: the addresses, and a request to copy.
    pub(crate) fn banner(&self, addresses: Addresses, needs_key: bool) -> Banner {
        Banner {
            needs_key,
            workers: usize::from(self.workers),
            name: self.name.clone(),
            addresses,
            shows_image: self.media_enabled && self.model.family().is_some(),
        }
    }

    fn worker(&self, number: usize) -> Result<WorkerId, UpError> {
        let worker = format!("{}-{number}", self.kind.name());
        WorkerId::new(&worker).map_err(|source| UpError::Worker { worker, source })
    }

    /// The GPUs of one engine, one for each rank.
    fn gpus(&self, number: usize) -> Option<Vec<String>> {
        let ranks = usize::from(self.ranks);
        let share = |gpus: &[String]| {
            let own = gpus.iter().cycle().skip(number * ranks).take(ranks);
            own.cloned().collect()
        };
        match (self.kind, &self.gpus) {
            (Kind::Vllm, Gpus::Some(gpus)) => Some(share(gpus)),
            _ => None,
        }
    }

    /// The GPUs that one engine stands for. A stand-in uses none, and has one all the same where there
    /// is one for it, so that its health is seen.
    fn own_gpus(&self, number: usize) -> Vec<String> {
        match (self.kind, &self.gpus) {
            (Kind::Vllm, _) => self.gpus(number).unwrap_or_default(),
            (Kind::Mock, Gpus::Some(gpus)) => {
                let ranks = usize::from(self.ranks);
                let own = gpus.iter().skip(number * ranks).take(ranks);
                own.cloned().collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::causes::told;

    fn no_gpu() -> Gpus {
        Gpus::None {
            reason: "none was put in".to_owned(),
        }
    }

    fn two_gpus() -> Gpus {
        Gpus::Some(["GPU-3e", "GPU-1f"].map(str::to_owned).into())
    }

    fn choose(words: &[&str], gpus: Gpus, media_enabled: bool) -> Result<Setup, UpError> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let words = std::iter::once("up").chain(words.iter().copied());
        let line = <Line as clap::Parser>::parse_from(words);
        let media = MediaConfig {
            enabled: media_enabled,
            ..MediaConfig::default()
        };
        Setup::choose(&line.args, gpus, &media)
    }

    #[test]
    fn without_a_gpu_two_mocks_serve_the_demo() {
        for (media_enabled, images) in [(true, "; images are accepted"), (false, "false)")] {
            let setup = choose(&[], no_gpu(), media_enabled).unwrap();
            assert_eq!(
                (setup.kind, setup.workers, setup.name.as_str()),
                (Kind::Mock, 2, "demo")
            );
            let opening = setup.opening();
            assert!(opening.contains("none was put in") && !opening.contains('\n'));
            assert!(opening.ends_with(images), "{opening}");
        }
    }

    #[test]
    fn engines_share_the_gpus_that_were_found() {
        let mut setup = choose(&[], two_gpus(), true).unwrap();
        assert_eq!(setup.kind, Kind::Mock, "no model was named");
        assert_eq!(setup.gpus(0), None, "a stand-in needs none");
        setup.kind = Kind::Vllm;
        let shares = |setup: &Setup| {
            let shares = (0..3).filter_map(|number| setup.gpus(number));
            shares.map(|gpus| gpus.join("+")).collect::<Vec<_>>()
        };
        assert_eq!(shares(&setup), ["GPU-3e", "GPU-1f", "GPU-3e"]);
        assert_eq!(setup.own_gpus(2), ["GPU-3e"], "as it is told");
        setup.kind = Kind::Mock;
        let own: Vec<_> = (0..3)
            .map(|number| setup.own_gpus(number).join("+"))
            .collect();
        assert_eq!(
            own,
            ["GPU-3e", "GPU-1f", ""],
            "one each, while there are some"
        );
        setup.kind = Kind::Vllm;
        setup.ranks = 2;
        assert_eq!(
            shares(&setup),
            ["GPU-3e+GPU-1f", "GPU-3e+GPU-1f", "GPU-3e+GPU-1f"]
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
            (&["--engine", "vllm"], two_gpus(), "vllm needs --model"),
            (&["--engine", "command"], no_gpu(), "command needs --model"),
            (
                &["--model", "no/such"],
                no_gpu(),
                "--model cannot be used: model \"no/such\"",
            ),
        ] {
            let error = told(&choose(words, gpus, true).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
