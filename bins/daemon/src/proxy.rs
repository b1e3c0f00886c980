//! The proxy as a process: a registry to push to, and to pull from without an agent.

use std::net::SocketAddr;
use std::path::PathBuf;

use kraken_core::net::http::{HttpClient, HttpServer, serve, with_health};
use kraken_registry::pull::PullState;
use kraken_registry::push::{self, PushState};
use kraken_registry::tags::client::TagClient;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::config::{self, OriginEntry, Tls};
use crate::members;
use crate::process::{Service, StartError};

/// The configuration of a proxy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Where clients push to (plain HTTP).
    pub listen: SocketAddr,
    /// All origins.
    #[serde(default)]
    pub origins: Vec<OriginEntry>,
    /// A file with the same list, read again when it changes; instead of `origins`.
    #[serde(default)]
    pub origins_file: Option<PathBuf>,
    /// How many origins own each blob.
    #[serde(default = "config::default_replicas")]
    pub replicas: usize,
    /// Base URLs of the build-indexes.
    pub build_indexes: Vec<String>,
    /// This process's certificate, shown to origins and build-indexes.
    pub tls: Tls,
}

/// A proxy that runs.
#[derive(Debug)]
pub struct ProxyService {
    /// Where it answers.
    pub addr: SocketAddr,
    server: HttpServer,
    shutdown: CancellationToken,
}

/// Starts a proxy.
///
/// # Errors
/// [`StartError`] says what to mend.
#[expect(
    clippy::unused_async,
    reason = "starts tasks, so that it must run on a runtime"
)]
pub async fn start(config: ProxyConfig) -> Result<ProxyService, StartError> {
    let identity = config.tls.identity()?;
    let http = HttpClient::new(Some(&identity))?;
    let origins = config::origin_cluster(
        &config.origins,
        config.origins_file.as_deref(),
        config.replicas,
        &http,
    )?;
    let tags = TagClient::new(http.raw(), config.build_indexes);
    let shutdown = CancellationToken::new();
    config::watch(&origins, &shutdown);
    members::follow_with(&origins, config.origins_file.as_deref(), &shutdown);
    let router = push::router(PushState::new(
        PullState::new(origins.clone(), tags),
        origins,
    ));
    let router = with_health(router, || async { Ok(()) });
    let server = serve(config.listen, router, None, shutdown.clone())?;
    Ok(ProxyService {
        addr: server.local_addr(),
        server,
        shutdown,
    })
}

impl Service for ProxyService {
    async fn stop(self) {
        self.shutdown.cancel();
        if let Err(error) = self.server.stopped().await {
            tracing::warn!(%error, "the server did not end well");
        }
    }
}
