//! The life of a process: arguments, log, signals, end.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use clap::Args as _;
use kraken_core::net::http::ServeError;
use kraken_core::net::{IdentityError, NetError};
use kraken_core::storage::queue::QueueError;
use kraken_core::storage::{BackendError, StoreError};
use serde::de::DeserializeOwned;
use tracing_subscriber::EnvFilter;

use crate::arguments::ConfigArgs;
use crate::config::ConfigError;
use crate::descriptors;
use crate::settings::Sources;
use crate::sockets;

/// Something that runs until it is stopped.
pub trait Service: Send {
    /// Stops taking work, lets what runs end, and closes.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

/// Runs one service as a process: `NAME --config FILE`, until SIGTERM or SIGINT, then drains.
pub fn run<C, S, F>(name: &'static str, start: impl FnOnce(C) -> F) -> ExitCode
where
    C: DeserializeOwned,
    S: Service,
    F: Future<Output = Result<S, StartError>>,
{
    init_log("info");
    let command = clap::Command::new(name).version(env!("CARGO_PKG_VERSION"));
    let arguments = ConfigArgs::of(&ConfigArgs::augment_args(command).get_matches());
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
    C: DeserializeOwned,
    S: Service,
    F: Future<Output = Result<S, StartError>>,
{
    descriptors::raise();
    serve(&arguments.sources(), start).await?;
    Ok(ExitCode::SUCCESS)
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
    C: DeserializeOwned,
    S: Service,
    F: Future<Output = Result<S, StartError>>,
{
    serve(&Sources::new(vec![path.to_path_buf()], Vec::new()), start).await
}

/// Runs one service. It listens at the sockets that a supervisor hands over (sd_listen_fds(3)), as far as
/// there are any.
async fn serve<C, S, F>(sources: &Sources, start: impl FnOnce(C) -> F) -> Result<(), StartError>
where
    C: DeserializeOwned,
    S: Service,
    F: Future<Output = Result<S, StartError>>,
{
    let config = sources.load::<C>()?;
    sockets::adopt();
    let service = start(config).await?;

    sockets::tell_unused();

    tracing::info!(config = %sources, "started");
    stop_signal().await;
    tracing::info!("stopping");
    service.stop().await;
    Ok(())
}

/// Sends the log to standard error; `RUST_LOG` says how much, `level` when it does not.
pub fn init_log(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // A second call finds the log set up already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
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
