//! The life of a process: arguments, log, signals, end.

use std::future::Future;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Args as _;
use kraken_core::net::http::ServeError;
use kraken_core::net::{IdentityError, NetError};
use kraken_core::storage::queue::QueueError;
use kraken_core::storage::{BackendError, StoreError};

use crate::arguments::{ConfigArgs, Instead};
use crate::check::{ProcessConfig, check};
use crate::config::ConfigError;
pub use crate::log::init_log;
use crate::problems::Problems;
use crate::reload::{self, Asked, Changed};
use crate::settings::{Layers, Schema, Sources};
use crate::traces::Traces;
use crate::{descriptors, log, sockets};

/// Something that runs until it is stopped.
pub trait Service: Send {
    /// What it is started with.
    type Config: ProcessConfig;

    /// Takes over what has `changed` in its configuration, all of it, as far as it can without a restart
    /// ([`ProcessConfig::LIVE`]).
    ///
    /// # Errors
    /// Something makes no sense: nothing was taken over.
    fn reload(&self, config: Self::Config, changed: &Changed) -> Result<(), StartError>;

    /// Stops taking work, lets what runs end, and closes.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

/// Runs one service as a process: `NAME --config FILE`, until SIGTERM or SIGINT, then drains.
pub fn run<C, S, F>(name: &'static str, start: impl FnOnce(C) -> F) -> ExitCode
where
    C: ProcessConfig,
    S: Service<Config = C>,
    F: Future<Output = Result<S, StartError>>,
{
    init_log(log::LEVEL);
    let command = clap::Command::new(name).version(env!("CARGO_PKG_VERSION"));
    let command = ConfigArgs::augment_args(command).about("Runs until SIGTERM or SIGINT.");
    let arguments = ConfigArgs::of(&command.get_matches());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(|error| StartError::Config(error.to_string()))
        .and_then(|runtime| runtime.block_on(run_with(arguments, start)));
    result.unwrap_or_else(|error| {
        tracing::error!("{error}");
        ExitCode::FAILURE
    })
}

/// Does what the arguments ask for: runs one service until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// It did not start.
pub async fn run_with<C, S, F>(
    arguments: ConfigArgs,
    start: impl FnOnce(C) -> F,
) -> Result<ExitCode, StartError>
where
    C: ProcessConfig,
    S: Service<Config = C>,
    F: Future<Output = Result<S, StartError>>,
{
    let instead = arguments.instead();
    let sources = arguments.sources();
    match instead {
        None => {
            serve(&sources, start).await?;
            Ok(ExitCode::SUCCESS)
        }
        Some(instead) => tell::<C>(instead, &sources),
    }
}

/// Does what is asked for instead of a start. Touches nothing.
fn tell<C: ProcessConfig>(instead: Instead, sources: &Sources) -> Result<ExitCode, StartError> {
    let schema = Schema::of::<C>();
    match instead {
        Instead::Schema => say(&format!("{:#}\n", schema.of_a_file()))?,
        Instead::Print => {
            let layers = sources.layers(&schema)?;
            layers.typed_or_all::<C>()?;
            say(&layers.text(&schema))?;
        }
        Instead::Check => {
            let checked = || -> Result<(), Problems> {
                let layers = sources.layers(&schema)?;
                check(&layers.typed_or_all::<C>()?, &layers)
            };
            if let Err(problems) = checked() {
                for problem in problems.all() {
                    say(&format!("{problem}\n"))?;
                }
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints text; nobody has to read it to its end.
fn say(text: &str) -> Result<(), StartError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(StartError::Config(format!(
            "the output cannot be written: {error}"
        ))),
        _ => Ok(()),
    }
}

/// Runs one service with the configuration in `path` and in the environment, until SIGTERM or SIGINT,
/// then drains.
///
/// # Errors
/// It did not start.
pub async fn run_until_signal<C, S, F>(
    path: &Path,
    start: impl FnOnce(C) -> F,
) -> Result<(), StartError>
where
    C: ProcessConfig,
    S: Service<Config = C>,
    F: Future<Output = Result<S, StartError>>,
{
    serve(&Sources::new(vec![path.to_path_buf()], Vec::new()), start).await
}

/// Runs one service. It listens at the sockets that a supervisor hands over (sd_listen_fds(3)), as far as
/// there are any.
async fn serve<C, S, F>(sources: &Sources, start: impl FnOnce(C) -> F) -> Result<(), StartError>
where
    C: ProcessConfig,
    S: Service<Config = C>,
    F: Future<Output = Result<S, StartError>>,
{
    let asked = Asked::watch();
    let layers = sources.layers(&Schema::of::<C>())?;
    let config = layers.typed_or_all::<C>()?;
    log::set_format(config.log_format());
    if let Some(filter) = config.log() {
        log::set_filter(Some(filter));
    }
    check(&config, &layers)?;
    descriptors::raise();
    let name = format!("kraken-{}", C::ROLE);
    let traces = config.tracing();
    let traces = traces.map(|traces| Traces::start(traces, (&name, config.instance())));
    let traces = traces.transpose()?;
    sockets::adopt();
    let service = start(config).await?;

    sockets::tell_unused();

    tracing::info!(config = %sources, "started");
    tokio::select! {
        () = stop_signal() => {}
        () = reload::follow(&service, sources, layers, asked) => {}
    }
    tracing::info!("stopping");
    service.stop().await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be watched");
            let _ = interrupt.await;
        }
    }
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration file.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// All that is wrong with it.
    #[error(transparent)]
    Wrong(#[from] Problems),
    /// What it says, or the command line.
    #[error("{0}")]
    Config(String),
    /// Certificate, key or authority.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An address for HTTP.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An address for peers.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The durable queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The tags.
    #[error(transparent)]
    Tags(#[from] kraken_registry::tags::store::TagStoreError),
}

impl StartError {
    /// The same with the places of the keys that it is about.
    pub(crate) fn located(self, layers: &Layers) -> Self {
        match self {
            Self::Wrong(problems) => Self::Wrong(problems.located(layers)),
            other => other,
        }
    }
}
