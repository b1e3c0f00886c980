//! The build-index as a process: tags, durable on its disk.

use std::net::SocketAddr;
use std::path::PathBuf;

use kraken_core::net::http::{HttpClient, HttpServer, serve, with_health};
use kraken_registry::tags::server::router;
use kraken_registry::tags::store::TagStore;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::config::{self, OriginEntry, Tls};
use crate::members;
use crate::process::{Service, StartError};

/// The configuration of a build-index.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildIndexConfig {
    /// Where it answers (mutual TLS).
    pub listen: SocketAddr,
    /// The directory of its tags.
    pub store: PathBuf,
    /// All origins: a tag is taken only when its image is there.
    #[serde(default)]
    pub origins: Vec<OriginEntry>,
    /// A file with the same list, read again when it changes; instead of `origins`.
    #[serde(default)]
    pub origins_file: Option<PathBuf>,
    /// How many origins own each blob.
    #[serde(default = "config::default_replicas")]
    pub replicas: usize,
    /// This process's certificate.
    pub tls: Tls,
}

/// A build-index that runs.
#[derive(Debug)]
pub struct BuildIndexService {
    /// Where it answers.
    pub addr: SocketAddr,
    server: HttpServer,
    shutdown: CancellationToken,
}

/// Starts a build-index.
///
/// # Errors
/// [`StartError`] says what to mend.
#[expect(
    clippy::unused_async,
    reason = "starts tasks, so that it must run on a runtime"
)]
pub async fn start(config: BuildIndexConfig) -> Result<BuildIndexService, StartError> {
    let identity = config.tls.identity()?;
    let http = HttpClient::new(Some(&identity))?;
    let origins = config::origin_cluster(
        &config.origins,
        config.origins_file.as_deref(),
        config.replicas,
        &http,
    )?;
    config::make_dir(&config.store)?;
    let shutdown = CancellationToken::new();
    config::watch(&origins, &shutdown);
    members::follow_with(&origins, config.origins_file.as_deref(), &shutdown);
    let tags = TagStore::open(config.store.join("tags.redb"))?;
    let router = with_health(router(tags, origins), || async { Ok(()) });
    let server = serve(config.listen, router, Some(&identity), shutdown.clone())?;
    Ok(BuildIndexService {
        addr: server.local_addr(),
        server,
        shutdown,
    })
}

impl Service for BuildIndexService {
    async fn stop(self) {
        self.shutdown.cancel();
        if let Err(error) = self.server.stopped().await {
            tracing::warn!(%error, "the server did not end well");
        }
    }
}
