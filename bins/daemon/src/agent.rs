//! The agent as a process: peers on one port, a read-only registry on another.

mod config;

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
use kraken_core::net::Role;
use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::{
    ApiError, HttpClient, HttpServer, Params, TracedFrom, serve_on, traced, with_health,
};
use kraken_core::storage::{BlobStatus, MemoryTier, PieceStore as _};
use kraken_core::{Agent, Digest, Namespace, OpenError};
use kraken_registry::access::Access;
use kraken_registry::name::Host;
use kraken_registry::pull::{self, PullState, StaleTags};
use kraken_registry::tags::client::TagClient;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub use self::config::AgentConfig;
use crate::access;
use crate::answers::{Answers, noted};
use crate::config::{bind, make_dir};
use crate::doctor::{Doctor, Facts, with_doctor};
use crate::explain::{Others, with_explain};
use crate::guard::{self, Guard};
use crate::limits::with_live_limits;
use crate::members::Urls;
use crate::metrics::{self, Every, with_metrics};
use crate::pages;
use crate::preload::{self, Preloader, with_preload};
use crate::process::{Service, StartError};
use crate::profile::with_profile;
use crate::reload::Changed;
use crate::sockets;
use crate::store::http::with_store;
use crate::store::{self, Disks, Memory};

/// The registry that dockerd means where it names none.
const DOCKER_HUB: &str = "docker.io";
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

/// Starts an agent.
///
/// # Errors
/// [`StartError`] says what to mend.
pub async fn start(config: AgentConfig) -> Result<AgentService, StartError> {
    let facts = Facts::of(&config);
    let shutdown = CancellationToken::new();
    let identity = config.tls.identity_of(Role::Agent, &shutdown)?;
    let http = HttpClient::new(Some(&identity))?;
    let listed = Urls::of(
        "trackers",
        config.trackers,
        config.trackers_file,
        config.trackers_dns,
    )?;
    let indexes = Urls::of(
        "build_indexes",
        config.build_indexes,
        config.build_indexes_file,
        config.build_indexes_dns,
    )?;
    let tracked = http.calling(&[Role::Tracker])?;
    let trackers = TrackerClient::new(listed.now().await?, tracked)
        .map_err(|error| StartError::Config(format!("trackers: {error}")))?;
    listed.follow_trackers(&trackers, &shutdown);
    let transport = bind(
        config.peer_listen,
        &identity,
        (config.transport, config.quic_mtu),
    )?;
    let dir = config.store.clone();
    make_dir(&config.store)?;
    let (volumes, eviction) = (&config.volumes, &config.eviction);
    let disks = store::open(dir, volumes, config.store_limit, eviction).await?;
    store::scrub(disks.clone(), config.scrub, &shutdown);
    let builder = match config.memory {
        Some(Memory(bytes)) => {
            Agent::builder(MemoryTier::new(disks.clone(), bytes), transport.clone())
        }
        None => Agent::builder(disks.clone(), transport.clone()),
    };
    let mut builder = builder
        .discovery(trackers.clone())
        .name(config.name.unwrap_or_else(host_name))
        .lifetimes(config.eviction.lifetimes())
        .limits(config.limits.into());
    if config.remember_peers {
        builder = builder.peers_file(config.store.join("peers.json"));
    }
    if let Some(addr) = config.advertise {
        builder = builder.advertise(addr);
    }
    if let Some(zone) = identity.zone(config.zone)? {
        builder = builder.zone(zone);
    }
    let agent = builder
        .spawn()
        .map_err(|error| StartError::Config(error.to_string()))?;
    let tags = TagClient::new(
        http.calling(&[Role::BuildIndex])?.raw(),
        indexes.now().await?,
    );
    indexes.follow_tags(&tags, &shutdown);
    let stale = StaleTags::default();
    let hub: Host = DOCKER_HUB.parse().expect("a host");
    let access = access::access(config.access.as_ref(), config.client_tls.as_ref())?;
    let answers = Answers::default();
    let every = Every::of(&identity);
    let docker = config.docker_listen.map(|addr| {
        let mirror = PullState::mirror(agent.clone(), tags.clone());
        let mirror = mirror.access(access.clone());
        let mirror = mirror.count_stale(stale.clone());
        let router = pull::router(mirror.usual_upstream(hub));
        let router = router.layer(middleware::from_fn(pages::refuse));
        let router = noted(router, &answers);
        let router = every
            .requests
            .counted(traced(router, TracedFrom::Strangers));
        let socket = sockets::listen(addr)?;
        Ok::<_, StartError>(serve_on(socket, router, None, shutdown.clone())?)
    });
    let docker = docker.transpose()?;
    let others = Others {
        http: http.clone(),
        trackers: trackers.clone(),
    };
    let doctor = Doctor {
        facts,
        identity: identity.clone(),
        http,
        trackers: trackers.clone(),
        tags: tags.clone(),
        transport,
        disks: disks.clone(),
        agent: agent.clone(),
    };
    let mirror = PullState::mirror(agent.clone(), tags.clone()).access(access.clone());
    let own = config.own_names.into_iter().map(|host| host.0);
    let upstreams = config.upstreams.into_iter().map(|host| host.0);
    let mirror = mirror.own_names(own).upstreams(upstreams);
    let mirror = mirror.count_stale(stale.clone());
    let guard = Guard {
        access: access.clone(),
        is_tls: config.client_tls.is_some(),
    };
    let guard =
        middleware::from_fn(move |request, next| guard::refuse(guard.clone(), request, next));
    let socket = sockets::listen(config.registry_listen)?;
    let listening = socket.local_addr().unwrap_or(config.registry_listen);
    let preloader = config.preload.map(|config| {
        let preloader = Preloader::new(config, preload::reachable(listening));
        preloader.map_err(|wrong| wrong.under("preload"))
    });
    let explained = disks.clone();
    let router = router((agent.clone(), stale, every.clone()), disks, mirror);
    let router = with_profile(with_doctor(router, doctor));
    let remembers = (agent.clone(), explained);
    let router = with_explain(router, remembers, answers.clone(), Some(others));
    let router = noted(router, &answers);
    let router = with_preload(router, preloader.transpose()?).layer(guard);
    let router = every
        .requests
        .counted(traced(router, TracedFrom::Strangers));
    let tls = config.client_tls.as_ref();
    let server = access::serve(socket, router, tls, shutdown.clone())?;
    let seeding = agent.clone();
    tokio::spawn(async move {
        match seeding.seed_all().await {
            Ok(blobs) => tracing::info!(blobs, "seeding what the store holds"),
            Err(error) => tracing::error!(%error, "the store's blobs are not seeded"),
        }
    });
    Ok(AgentService {
        agent,
        trackers,
        tags,
        access,
        registry: server.local_addr(),
        server,
        docker,
        shutdown,
    })
}

/// What the kernel calls this host; nothing where it does not say.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_string()
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
        self.shutdown.cancel();
        let docker = OptionFuture::from(self.docker.map(HttpServer::stopped));
        let handed_over = self.agent.hand_over(HAND_OVER);
        let (served, docker, left) = tokio::join!(self.server.stopped(), docker, handed_over);
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
    mirror: PullState<Agent, TagClient>,
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
