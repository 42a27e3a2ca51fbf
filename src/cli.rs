//! The command line: which role or command, with which configuration, and its exit code.

use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::runtime;
use tokio_util::sync::CancellationToken;

use crate::commands::check_config::{self, CheckError};
use crate::commands::doctor;
use crate::commands::doctor::finding::{Status, count, is_unusable};
use crate::commands::explain::{self, ExplainError};
use crate::commands::gpus::{self, GpusError};
use crate::commands::replay;
use crate::commands::units::{self, UnitsError};
use crate::config::{Config, Sources, Values};
use crate::engine::flags;
use crate::engine::role::{self, RoleError};
use crate::frontend::{self, role::FrontendError, tenants::Tenants};
use crate::lifecycle::{self, HangUp, StopSignals, notify};
use crate::mock;
use crate::router::{self, role::RouterError};
use crate::telemetry::causes::told;
use crate::telemetry::{self, TelemetryError};
use crate::up::{self, UpError};
use crate::worker::{self, role::WorkerError};

/// The exit code for a configuration that is refused (`EX_CONFIG`): a unit's restarts stop there.
const EXIT_CONFIG: u8 = 78;

/// The exit code of a role that a second signal dropped, as shells give for SIGINT.
const EXIT_DROPPED: u8 = 130;

/// Time for tasks to be dropped after their role has ended.
const TASKS_END_MAX: Duration = Duration::from_secs(2);

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_REVISION"), ")");

/// Serves vision-language models, each request on the GPU that already holds its prompt's blocks.
#[derive(Debug, Parser)]
#[command(name = "kvlens", version = VERSION)]
struct Cli {
    /// Configuration file; $KVLENS_CONFIG where not given
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Up(up::Args),
    Engine(flags::Args),
    Frontend(frontend::role::Args),
    Router(router::role::Args),
    Worker(worker::role::Args),
    /// Runs a stand-in for `vllm serve` that needs no GPU: it computes all but the words
    MockEngine(mock::options::Options),
    CheckConfig(check_config::Args),
    Doctor(doctor::Args),
    Explain(explain::Args),
    Gpus(gpus::Args),
    Replay(Box<replay::Args>),
    Units(units::Args),
}

/// Why the program ends with another code than 0.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] CheckError),
    #[error("{role}")]
    Plan {
        role: &'static str,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{role}")]
    Role {
        role: &'static str,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("explain")]
    Explain(#[from] ExplainError),
    #[error("gpus")]
    Gpus(#[from] GpusError),
    #[error("doctor: {failed} of the checks failed")]
    Unwell { failed: usize, is_config: bool },
    #[error("standard output cannot be written")]
    Output(#[from] io::Error),
    #[error("stopped at once by a second signal")]
    Dropped,
}

impl From<UnitsError> for Failure {
    fn from(error: UnitsError) -> Self {
        match error {
            UnitsError::Check(error) => Self::Config(error),
            error @ UnitsError::NoConfiguration { .. } => bad_plan("units")(error),
            error => Self::Role {
                role: "units",
                source: error.into(),
            },
        }
    }
}

impl From<TelemetryError> for Failure {
    fn from(error: TelemetryError) -> Self {
        Self::Config(error.into())
    }
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version come this way too; where they cannot be printed nobody reads.
            answer.print().ok();
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let lines = report(&failure);
            // What `systemctl status` then shows of a unit that did not start, or ended.
            notify::status(&lines.join("; "));
            for line in lines {
                eprintln!("{}kvlens: {line}", as_error());
            }
            failure.code()
        }
    }
}

/// The journal takes a line for an error that begins so, and for a mere word otherwise.
fn as_error() -> &'static str {
    match telemetry::is_journal() {
        true => "<3>",
        false => "",
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let told = cli.config.clone();
    let sources = Sources::of_process(cli.config);
    match cli.action {
        Action::Up(args) => {
            let config = prepare(sources, up::Args::role_defaults(), args.flags())?;
            let tenants = Tenants::read(config.frontend.key_file.as_deref());
            let tenants = tenants.map_err(bad_plan("up"))?;
            run_role("up", hang_up(&config), |stop| {
                up::run(args, config, tenants, stop)
            })
        }
        Action::Engine(args) => {
            let place = sources.place();
            let config = prepare(sources, Values::default(), args.flags())?;
            let args = args.of_instance(&config, &place);
            let args = args.map_err(bad_plan("engine"))?;
            run_role("engine", HangUp::Stops, |stop| {
                role::run(args, config, stop)
            })
        }
        Action::Frontend(args) => {
            let config = prepare(sources, Values::default(), args.flags())?;
            let plan = frontend::role::Plan::new(&args, &config);
            let plan = plan.map_err(bad_plan("frontend"))?;
            run_role("frontend", hang_up(&config), |stop| {
                frontend::role::run(plan, config, stop)
            })
        }
        Action::Router(args) => {
            let config = prepare(sources, Values::default(), args.flags())?;
            let plan = router::role::Plan::new(&args, &config);
            let plan = plan.map_err(bad_plan("router"))?;
            run_role("router", HangUp::Stops, |stop| {
                router::role::run(plan, config, stop)
            })
        }
        Action::Worker(args) => {
            let place = sources.place();
            let config = prepare(sources, Values::default(), args.flags())?;
            let instance = args.of_instance(config, &place);
            let (args, config) = instance.map_err(bad_plan("worker"))?;
            let plan = worker::role::Plan::new(&args, &config);
            let plan = plan.map_err(bad_plan("worker"))?;
            run_role("worker", HangUp::Stops, |stop| {
                worker::role::run(plan, config, stop)
            })
        }
        Action::MockEngine(options) => {
            prepare(sources, Values::default(), Values::default())?;
            run_role("mock-engine", HangUp::Stops, |stop| {
                mock::run(options, stop)
            })
        }
        Action::CheckConfig(args) => print(&check_config::run(&args, &sources)?),
        Action::Doctor(args) => diagnose(&args, sources),
        Action::Explain(args) => print(&explain::run(&args)?),
        Action::Gpus(args) => Ok(gpus::run(&args, &check_config::load(&sources)?)?),
        Action::Units(args) => units(&args, &sources, told.as_deref()),
        Action::Replay(args) => {
            let config = check_config::load(&sources)?;
            let answer = replay::run(&args, &config.router);
            print(&answer.map_err(|error| Failure::Role {
                role: "replay",
                source: error.into(),
            })?)
        }
    }
}

/// Prints what was done or is to be; an error where that is not all.
fn units(args: &units::Args, sources: &Sources, told: Option<&Path>) -> Result<(), Failure> {
    let report = units::run(args, sources, told)?;
    print(&report.text)?;
    report.fault.map_or(Ok(()), |fault| Err(fault.into()))
}

/// Prints what is wrong; an error where something is.
fn diagnose(args: &doctor::Args, sources: Sources) -> Result<(), Failure> {
    let diagnosis = doctor::run(args, sources).map_err(|error| Failure::Role {
        role: "doctor",
        source: error.into(),
    })?;
    print(&diagnosis.text)?;
    match count(&diagnosis.findings, Status::Fail) {
        0 => Ok(()),
        failed => Err(Failure::Unwell {
            failed,
            is_config: is_unusable(&diagnosis.findings),
        }),
    }
}

/// Reads the configuration of a role and sets up its logs.
fn prepare(sources: Sources, role: Values, flags: Values) -> Result<Config, Failure> {
    let sources = Sources {
        role,
        flags,
        ..sources
    };
    let config = check_config::load(&sources)?;
    telemetry::init(&config.log)?;
    lifecycle::raise_fd_limit();
    Ok(config)
}

/// A frontend with keys reads them again.
fn hang_up(config: &Config) -> HangUp {
    match config.frontend.key_file.is_some() {
        true => HangUp::Reloads,
        false => HangUp::Stops,
    }
}

/// What a role cannot be started with; starting it again would change nothing.
fn bad_plan<E>(role: &'static str) -> impl Fn(E) -> Failure
where
    E: Error + Send + Sync + 'static,
{
    move |source| Failure::Plan {
        role,
        source: source.into(),
    }
}

/// Runs a role to its end, or until a second stop signal drops it.
fn run_role<F, R, E>(role: &'static str, hang_up: HangUp, start: F) -> Result<(), Failure>
where
    F: FnOnce(CancellationToken) -> R,
    R: Future<Output = Result<(), E>>,
    E: Error + Send + Sync + 'static,
{
    let failed = |source| Failure::Role { role, source };
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.into()))?;
    let outcome: io::Result<_> = runtime.block_on(async {
        let signals = StopSignals::listen(hang_up)?;
        let stop = CancellationToken::new();
        Ok(signals.govern(stop.clone(), start(stop)).await)
    });
    runtime.shutdown_timeout(TASKS_END_MAX);
    match outcome {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(error))) => Err(failed(error.into())),
        Ok(None) => Err(Failure::Dropped),
        Err(error) => Err(failed(error.into())),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

impl Failure {
    fn code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Plan { .. } => ExitCode::from(EXIT_CONFIG),
            Self::Role { source, .. } if is_lasting(&**source) => ExitCode::from(EXIT_CONFIG),
            Self::Unwell {
                is_config: true, ..
            } => ExitCode::from(EXIT_CONFIG),
            Self::Dropped => ExitCode::from(EXIT_DROPPED),
            Self::Role { .. }
            | Self::Explain(_)
            | Self::Gpus(_)
            | Self::Unwell { .. }
            | Self::Output(_) => ExitCode::FAILURE,
        }
    }
}

/// Whether a role would fail again however often it is started.
fn is_lasting(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    fn so<E: Error + 'static>(
        error: &(dyn Error + Send + Sync + 'static),
        is_lasting: fn(&E) -> bool,
    ) -> bool {
        error.downcast_ref::<E>().is_some_and(is_lasting)
    }
    so(error, RoleError::is_lasting)
        || so(error, UpError::is_lasting)
        || so(error, FrontendError::is_lasting)
        || so(error, RouterError::is_lasting)
        || so(error, WorkerError::is_lasting)
}

/// One line for each thing wrong, its causes after it.
fn report(failure: &Failure) -> Vec<String> {
    if let Failure::Config(CheckError::Config(error)) = failure {
        return error.problems.iter().map(ToString::to_string).collect();
    }
    vec![told(failure).replace('\n', " ")]
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_up_become_configuration() {
        let words = "kvlens up --port 9 --router-mode random --router-kv-overlap-score-weight 2 \
                     --config k.toml --engine command -- engine --port {port}";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        assert_eq!(cli.config, Some(PathBuf::from("k.toml")));
        let Action::Up(args) = cli.action else {
            panic!("it is up");
        };
        let config = Config::load(&Sources {
            role: up::Args::role_defaults(),
            flags: args.flags(),
            ..Sources::default()
        })
        .unwrap();
        assert_eq!(config.frontend.port, 9);
        assert_eq!(config.frontend.admin_address().port(), 10);
        assert_eq!(config.frontend.host.to_string(), "127.0.0.1");
        assert!((config.router.overlap_score_weight - 2.0).abs() < f64::EPSILON);
        assert!(config.media.enabled && config.frontend.expose_routing);
        assert_eq!(args.engine_args, ["engine", "--port", "{port}"]);
    }

    #[test]
    fn an_error_and_its_causes_are_one_line() {
        let failure = Failure::Role {
            role: "up",
            source: Box::new(up::UpError::ModelMissing { engine: "vllm" }),
        };
        assert_eq!(
            report(&failure),
            ["up: --engine vllm needs --model with a folder or a name"]
        );
    }
}
