//! The agent as a process: peers on one port, a read-only registry on another.

mod config;
mod start;

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use futures::future::OptionFuture;
use http::StatusCode;
use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::{ApiError, HttpServer, Params, with_health};
use kraken_core::storage::{BlobStatus, PieceStore as _};
use kraken_core::{Agent, Digest, Namespace, OpenError};
use kraken_registry::access::Access;
use kraken_registry::pull::{self, PullState, StaleTags};
use kraken_registry::tags::client::TagClient;
use kraken_registry::tags::remembered::RememberedTags;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub use self::config::{AgentConfig, RememberTags};
pub use self::start::start;
use crate::access;
use crate::limits::with_live_limits;
use crate::members::Urls;
use crate::metrics::{self, Every, with_metrics};
use crate::pages;
use crate::process::{Service, StartError};
use crate::reload::Changed;
use crate::store::http::with_store;
use crate::store::{self, Disks};

/// How long an agent that is asked to stop hands over what others lack.
const HAND_OVER: Duration = Duration::from_secs(10);

/// An agent that runs.
#[derive(Debug)]
pub struct AgentService {
    /// The agent itself.
    pub agent: Agent,
    /// Where its registry answers.
    pub registry: SocketAddr,
    trackers: TrackerClient,
    tags: TagClient,
    access: Arc<Access>,
    server: HttpServer,
    /// The mirror of Docker Hub.
    docker: Option<HttpServer>,
    shutdown: CancellationToken,
}

impl Service for AgentService {
    type Config = AgentConfig;

    fn reload(&self, config: AgentConfig, changed: &Changed) -> Result<(), StartError> {
        let access = changed.then("access", || {
            access::access(config.access.as_ref(), config.client_tls.as_ref())
        })?;
        let listed = |key, urls: Vec<String>, file, dns| {
            changed.then(key, || Urls::of(key, urls, file, dns)?.listed(key))
        };
        let trackers = listed(
            "trackers",
            config.trackers,
            config.trackers_file,
            config.trackers_dns,
        )?;
        let indexes = listed(
            "build_indexes",
            config.build_indexes,
            config.build_indexes_file,
            config.build_indexes_dns,
        )?;
        if let Some(urls) = trackers.flatten() {
            let set = self.trackers.set(&urls);
            set.map_err(|error| StartError::Config(format!("trackers: {error}")))?;
        }
        if let Some(urls) = indexes.flatten() {
            self.tags.set(urls);
        }
        if let Some(access) = access {
            self.access.replace(access);
        }
        if changed.has("limits") {
            self.agent.set_limits(config.limits.into());
        }
        Ok(())
    }

    async fn stop(self) {
        // Clients are served while pieces are handed over: until then nobody else answers at this address.
        let left = self.agent.hand_over(HAND_OVER).await;
        self.shutdown.cancel();
        let docker = OptionFuture::from(self.docker.map(HttpServer::stopped));
        let (served, docker) = tokio::join!(self.server.stopped(), docker);
        for error in [served.err(), docker.and_then(Result::err)]
            .into_iter()
            .flatten()
        {
            tracing::warn!(%error, "the registry did not end well");
        }
        if left > 0 {
            tracing::warn!(pieces = left, "pieces go that no other agent around has");
        }
        self.agent.shutdown().await;
    }
}

fn router(
    (agent, stale, every): (Agent, StaleTags, Every),
    disks: Disks,
    mirror: PullState<Agent, RememberedTags<TagClient>>,
) -> Router {
    let registry = pull::router(mirror);
    let (counted, held) = (agent.clone(), disks.clone());
    let blobs = registry.clone();
    let blob = move |request: Request| blob_by_namespace(blobs.clone(), request);
    let own = move || {
        let parts = [
            metrics::stale(&stale),
            store::metrics(&held),
            counted.metrics().text(),
        ];
        ready(parts.concat())
    };
    let router = with_metrics(registry, every, own)
        .route("/namespace/{namespace}/blobs/{digest}", get(blob))
        .route(
            "/namespace/{namespace}/blobs/{digest}/prefetch",
            post(prefetch).with_state((agent.clone(), disks.clone())),
        );
    let router = with_live_limits(router, agent.clone());
    let router = with_store(router, disks, agent.clone());
    let router = router.layer(middleware::from_fn(pages::refuse));
    let agent = Arc::new(agent);
    with_health(router, move || {
        let agent = agent.clone();
        async move {
            agent
                .alive()
                .await
                .then_some(())
                .ok_or_else(|| "the agent has ended".to_string())
        }
    })
}

/// 200 when the blob is here, whole; 202 when it is on its way.
async fn prefetch(
    State((agent, disks)): State<(Agent, Disks)>,
    Params((namespace, digest)): Params<(String, Digest)>,
) -> Result<StatusCode, ApiError> {
    let namespace: Namespace = namespace
        .parse()
        .map_err(|error| ApiError::BadRequest(format!("{namespace:?}: {error}")))?;
    let status = disks.status(digest).await;
    let status = status.map_err(|error| ApiError::Unavailable(error.to_string()))?;
    if matches!(status, BlobStatus::Sealed { .. }) {
        return Ok(StatusCode::OK);
    }
    match agent.open_in(&namespace, digest).await {
        Ok(_) => Ok(StatusCode::ACCEPTED),
        Err(OpenError::NotFound(_)) => Err(ApiError::NotFound),
        Err(error) => Err(ApiError::Unavailable(error.to_string())),
    }
}

/// Any blob under any namespace: the registry's blob endpoint under the path that other tools use.
async fn blob_by_namespace(registry: Router, mut request: Request) -> axum::response::Response {
    let path = request
        .uri()
        .path()
        .replacen("/namespace/", "/v2/", 1)
        .replace("%2F", "/");
    match path.parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return StatusCode::BAD_REQUEST.into_response(),
    }
    match registry.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
