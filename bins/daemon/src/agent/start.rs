//! Puts the parts of an agent together.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::{Router, middleware};
use kraken_core::Agent;
use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::{HttpClient, HttpServer, TracedFrom, serve_on, traced};
use kraken_core::net::{Dual, Identity, Role};
use kraken_core::storage::MemoryTier;
use kraken_registry::access::Access;
use kraken_registry::name::Host;
use kraken_registry::pull::{self, PullState, StaleTags};
use kraken_registry::tags::client::TagClient;
use kraken_registry::tags::remembered::{RememberedTags, TagMemory};
use tokio_util::sync::CancellationToken;

use super::{AgentConfig, AgentService, router};
use crate::answers::{Answers, noted};
use crate::config::{bind, make_dir};
use crate::doctor::{Doctor, Facts, with_doctor};
use crate::explain::{Others, with_explain};
use crate::guard::{self, Guard};
use crate::members::Urls;
use crate::metrics::Every;
use crate::preload::{self, Preloader, with_preload};
use crate::process::StartError;
use crate::profile::with_profile;
use crate::store::{self, Disks, Memory};
use crate::{access, pages, sockets};

/// The registry that dockerd means where it names none.
const DOCKER_HUB: &str = "docker.io";

/// Starts an agent.
///
/// # Errors
/// [`StartError`] says what to mend.
pub async fn start(config: AgentConfig) -> Result<AgentService, StartError> {
    let facts = Facts::of(&config);
    let shutdown = CancellationToken::new();
    let identity = config.tls.identity_of(Role::Agent, &shutdown)?;
    let http = HttpClient::new(Some(&identity))?;
    let trackers = trackers(&config, &http, &shutdown).await?;
    let transport = bind(
        config.peer_listen,
        &identity,
        (config.transport, config.quic_mtu),
    )?;
    make_dir(&config.store)?;
    let (volumes, eviction) = (&config.volumes, &config.eviction);
    let disks = store::open(config.store.clone(), volumes, config.store_limit, eviction).await?;
    store::scrub(disks.clone(), config.scrub, &shutdown);
    let parts = (disks.clone(), transport.clone(), trackers.clone());
    let agent = spawn(&config, &identity, parts)?;
    let tags = tags(&config, &http, &shutdown).await?;
    let registry = Registry {
        agent: agent.clone(),
        tags: remembered(&config, tags.clone(), &shutdown),
        disks: disks.clone(),
        access: access::access(config.access.as_ref(), config.client_tls.as_ref())?,
        stale: StaleTags::default(),
        answers: Answers::default(),
        every: Every::of(&identity),
    };
    let docker = config.docker_listen;
    let docker = docker.map(|addr| registry.serve_docker(addr, shutdown.clone()));
    let docker = docker.transpose()?;
    let others = Others {
        http: http.clone(),
        trackers: trackers.clone(),
    };
    let doctor = Doctor {
        facts,
        identity,
        http,
        trackers: trackers.clone(),
        tags: tags.clone(),
        transport,
        disks,
        agent: agent.clone(),
    };
    let server = registry.serve(config, doctor, others, shutdown.clone())?;
    tokio::spawn(seed(agent.clone()));
    Ok(AgentService {
        agent,
        trackers,
        tags,
        access: registry.access,
        registry: server.local_addr(),
        server,
        docker,
        shutdown,
    })
}

async fn trackers(
    config: &AgentConfig,
    http: &HttpClient,
    shutdown: &CancellationToken,
) -> Result<TrackerClient, StartError> {
    let listed = Urls::of(
        "trackers",
        config.trackers.clone(),
        config.trackers_file.clone(),
        config.trackers_dns.clone(),
    )?;
    let http = http.calling(&[Role::Tracker])?;
    let trackers = TrackerClient::new(listed.now().await?, http)
        .map_err(|error| StartError::Config(format!("trackers: {error}")))?;
    listed.follow_trackers(&trackers, shutdown);
    Ok(trackers)
}

async fn tags(
    config: &AgentConfig,
    http: &HttpClient,
    shutdown: &CancellationToken,
) -> Result<TagClient, StartError> {
    let listed = Urls::of(
        "build_indexes",
        config.build_indexes.clone(),
        config.build_indexes_file.clone(),
        config.build_indexes_dns.clone(),
    )?;
    let http = http.calling(&[Role::BuildIndex])?;
    let tags = TagClient::new(http.raw(), listed.now().await?);
    listed.follow_tags(&tags, shutdown);
    Ok(tags)
}

/// With what is told again while no build-index answers.
fn remembered(
    config: &AgentConfig,
    tags: TagClient,
    shutdown: &CancellationToken,
) -> RememberedTags<TagClient> {
    let memory = config.remember_tags.0.map(TagMemory::new);
    if let Some(memory) = memory.clone() {
        let keeping = memory.keep_in(config.store.join("tags.json"));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(keeping));
    }
    RememberedTags::new(tags, memory)
}

fn spawn(
    config: &AgentConfig,
    identity: &Identity,
    (disks, transport, trackers): (Disks, Dual, TrackerClient),
) -> Result<Agent, StartError> {
    let builder = match config.memory {
        Some(Memory(bytes)) => Agent::builder(MemoryTier::new(disks, bytes), transport),
        None => Agent::builder(disks, transport),
    };
    let mut builder = builder
        .discovery(trackers)
        .name(config.name.clone().unwrap_or_else(host_name))
        .lifetimes(config.eviction.lifetimes())
        .limits(config.limits.into());
    if config.remember_peers {
        builder = builder.peers_file(config.store.join("peers.json"));
    }
    if let Some(addr) = config.advertise {
        builder = builder.advertise(addr);
    }
    if let Some(zone) = identity.zone(config.zone.clone())? {
        builder = builder.zone(zone);
    }
    let spawned = builder.spawn();
    spawned.map_err(|error| StartError::Config(error.to_string()))
}

/// What the kernel calls this host; nothing where it does not say.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_string()
}

async fn seed(agent: Agent) {
    match agent.seed_all().await {
        Ok(blobs) => tracing::info!(blobs, "seeding what the store holds"),
        Err(error) => tracing::error!(%error, "the store's blobs are not seeded"),
    }
}

/// What the ports for clients have in common.
struct Registry {
    agent: Agent,
    tags: RememberedTags<TagClient>,
    disks: Disks,
    access: Arc<Access>,
    stale: StaleTags,
    answers: Answers,
    every: Every,
}

impl Registry {
    fn mirror(&self) -> PullState<Agent, RememberedTags<TagClient>> {
        let mirror = PullState::mirror(self.agent.clone(), self.tags.clone());
        let mirror = mirror.access(self.access.clone());
        mirror.count_stale(self.stale.clone())
    }

    /// Counts and traces what clients ask.
    fn told_of(&self, router: Router) -> Router {
        let router = traced(router, TracedFrom::Strangers);
        self.every.requests.counted(router)
    }

    /// The mirror of Docker Hub.
    fn serve_docker(
        &self,
        addr: SocketAddr,
        shutdown: CancellationToken,
    ) -> Result<HttpServer, StartError> {
        let hub: Host = DOCKER_HUB.parse().expect("a host");
        let router = pull::router(self.mirror().usual_upstream(hub));
        let router = router.layer(middleware::from_fn(pages::refuse));
        let router = self.told_of(noted(router, &self.answers));
        let socket = sockets::listen(addr)?;
        Ok(serve_on(socket, router, None, shutdown)?)
    }

    /// The registry, with all that is for this host only.
    fn serve(
        &self,
        config: AgentConfig,
        doctor: Doctor,
        others: Others,
        shutdown: CancellationToken,
    ) -> Result<HttpServer, StartError> {
        let own = config.own_names.into_iter().map(|host| host.0);
        let upstreams = config.upstreams.into_iter().map(|host| host.0);
        let mirror = self.mirror().own_names(own).upstreams(upstreams);
        let socket = sockets::listen(config.registry_listen)?;
        let listening = socket.local_addr().unwrap_or(config.registry_listen);
        let preloader = config.preload.map(|config| {
            let preloader = Preloader::new(config, preload::reachable(listening));
            preloader.map_err(|error| StartError::Config(format!("preload: {error}")))
        });
        let guard = Guard {
            access: self.access.clone(),
            is_tls: config.client_tls.is_some(),
        };
        let guard =
            middleware::from_fn(move |request, next| guard::refuse(guard.clone(), request, next));
        let counted = (self.agent.clone(), self.stale.clone(), self.every.clone());
        let router = router(counted, self.disks.clone(), mirror);
        let router = with_profile(with_doctor(router, doctor));
        let remembers = (self.agent.clone(), self.disks.clone());
        let router = with_explain(router, remembers, self.answers.clone(), Some(others));
        let router = noted(router, &self.answers);
        let router = with_preload(router, preloader.transpose()?).layer(guard);
        let tls = config.client_tls.as_ref();
        Ok(access::serve(socket, self.told_of(router), tls, shutdown)?)
    }
}
