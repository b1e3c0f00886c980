//! The agent as a process: peers on one port, a read-only registry on another.

use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
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
use kraken_core::{Agent, Digest, Namespace, OpenError, Zone};
use kraken_registry::access::Access;
use kraken_registry::name::Host;
use kraken_registry::pull::{self, PullState, StaleTags};
use kraken_registry::tags::client::TagClient;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::access::{self, AccessConfig, ClientTls};
use crate::answers::{Answers, noted};
use crate::check::{Problems, ProcessConfig};
use crate::config::{self, HostConfig, QuicMtu, Tls, TransportConfig};
use crate::dns::DnsName;
use crate::doctor::{Doctor, Facts, with_doctor};
use crate::explain::{Others, with_explain};
use crate::guard::{self, Guard};
use crate::limits::{LimitsConfig, with_live_limits};
use crate::log::{LogFilter, LogFormat};
use crate::members::Urls;
use crate::metrics::{self, Every, with_metrics};
use crate::pages;
use crate::preload::{self, PreloadConfig, Preloader, with_preload};
use crate::process::{Service, StartError};
use crate::profile::with_profile;
use crate::reload::Changed;
use crate::sockets;
use crate::store::http::with_store;
use crate::store::{self, Disks, EvictionConfig, Memory, ScrubRate, StoreLimit, VolumeConfig};
use crate::traces::TracingConfig;

/// The configuration of an agent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// What the console calls this host; its host name when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Where blobs are kept.
    pub store: PathBuf,
    /// How much of the disk they may take: bytes, or a part of the volume. No limit when absent.
    #[serde(default)]
    pub store_limit: Option<StoreLimit>,
    /// Directories for the blobs, each on a disk of its own, instead of `store`, which keeps the rest.
    #[serde(default)]
    pub volumes: Vec<VolumeConfig>,
    /// When blobs go, and which.
    #[serde(default)]
    pub eviction: EvictionConfig,
    /// Memory in front of the disks, for hosts whose disks are slower than their networks: what comes is
    /// there when it is in memory, and written behind. None when absent.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// How fast the blobs on disk are read back, one after the other, to find what rots: bytes per
    /// second, or `off`. 20 MB/s when absent.
    #[serde(default)]
    pub scrub: ScrubRate,
    /// Where peers connect to, over UDP and TCP.
    pub peer_listen: SocketAddr,
    /// How this host dials its peers.
    #[serde(default)]
    pub transport: TransportConfig,
    /// The largest datagram of QUIC that is tried, in bytes of UDP payload; 8972 by default, which
    /// jumbo frames carry. Smaller frames are found out.
    #[serde(default)]
    pub quic_mtu: QuicMtu,
    /// The address that peers are told; needed when `peer_listen` is `0.0.0.0` or `[::]`.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
    /// The rack or availability zone of this host, such as `rack-17`; left out on a flat network.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub zone: Option<Zone>,
    /// Where the local container runtime connects to: plain HTTP, to be kept on loopback, unless there is
    /// `client_tls`.
    pub registry_listen: SocketAddr,
    /// Base URLs of the trackers.
    #[serde(default)]
    pub trackers: Vec<String>,
    /// A file with the same list, read again when it changes; instead of `trackers`.
    #[serde(default)]
    pub trackers_file: Option<PathBuf>,
    /// A name by which DNS says where the trackers are; instead of `trackers`. All hosts must use the
    /// same.
    #[serde(default)]
    pub trackers_dns: Option<DnsName>,
    /// Base URLs of the build-indexes.
    #[serde(default)]
    pub build_indexes: Vec<String>,
    /// A file with the same list, read again when it changes; instead of `build_indexes`.
    #[serde(default)]
    pub build_indexes_file: Option<PathBuf>,
    /// A name by which DNS says where the build-indexes are; instead of `build_indexes`.
    #[serde(default)]
    pub build_indexes_dns: Option<DnsName>,
    /// Other registries that this agent mirrors, such as `docker.io`: containerd names them by `?ns=`. Their
    /// images are kept as `docker.io/library/busybox`, and their blobs come by the origins' backends.
    #[serde(default)]
    pub upstreams: Vec<HostConfig>,
    /// The names of this cluster's own registry, as containerd names it by `?ns=`: its images are kept as
    /// they are pushed. One that is named neither here nor in `upstreams` is not mirrored.
    #[serde(default)]
    pub own_names: Vec<HostConfig>,
    /// Where dockerd connects to, whose requests to a mirror name no registry: all are for `docker.io`. Plain
    /// HTTP; nowhere when absent.
    #[serde(default)]
    pub docker_listen: Option<SocketAddr>,
    /// Who may pull; whoever is on the same host, and nobody else, when absent.
    #[serde(default)]
    pub access: Option<AccessConfig>,
    /// TLS for clients at `registry_listen`; plain HTTP when absent.
    #[serde(default)]
    pub client_tls: Option<ClientTls>,
    /// Into which container runtime of this host images are preloaded; into none when absent.
    #[serde(default)]
    pub preload: Option<PreloadConfig>,
    /// How much of the network to take for peers.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Whether to keep the peers that were met over restarts, in `peers.json` in the store.
    #[serde(default = "remembers")]
    pub remember_peers: bool,
    /// How much is logged, such as `info` or `info,kraken_core=debug`; `info` when absent. The variable
    /// `RUST_LOG` has the last word.
    #[serde(default)]
    pub log: Option<LogFilter>,
    /// How a line of the log is written: `text`, or `json`, an object in each line.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Where traces of pulls and pushes go, and of how many; nowhere when absent.
    #[serde(default)]
    pub tracing: Option<TracingConfig>,
    /// This host's certificate.
    pub tls: Tls,
}

impl ProcessConfig for AgentConfig {
    const ROLE: Role = Role::Agent;
    const LIVE: &'static [&'static str] = &[
        "access",
        "build_indexes",
        "limits",
        "log",
        "log_format",
        "trackers",
    ];

    fn log(&self) -> Option<&LogFilter> {
        self.log.as_ref()
    }

    fn log_format(&self) -> LogFormat {
        self.log_format
    }

    fn tracing(&self) -> Option<&TracingConfig> {
        self.tracing.as_ref()
    }

    fn instance(&self) -> Option<String> {
        self.name.clone().or_else(|| Some(host_name()))
    }

    fn check(&self, found: &mut Problems) {
        found.of_tls(&self.tls, Role::Agent, self.zone.as_ref());
        found.of_urls(
            "trackers",
            (
                &self.trackers,
                self.trackers_file.as_ref(),
                self.trackers_dns.as_ref(),
            ),
        );
        found.of_urls(
            "build_indexes",
            (
                &self.build_indexes,
                self.build_indexes_file.as_ref(),
                self.build_indexes_dns.as_ref(),
            ),
        );
        found.of_listening(&[
            ("peer_listen", Some(self.peer_listen)),
            ("registry_listen", Some(self.registry_listen)),
            ("docker_listen", self.docker_listen),
        ]);
        found.of_advertise(self.peer_listen, self.advertise);
        found.of_disks(&self.store, &self.volumes, self.store_limit, &self.eviction);
        found.of_access(self.access.as_ref(), self.client_tls.as_ref());
        if let Some(preload) = self.preload.clone() {
            let made = Preloader::new(preload, preload::reachable(self.registry_listen));
            found.of(made.map_err(|error| format!("preload: {error}")));
        }
    }
}

const fn remembers() -> bool {
    true
}

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
    let transport = config::bind(
        config.peer_listen,
        &identity,
        (config.transport, config.quic_mtu),
    )?;
    let dir = config.store.clone();
    config::make_dir(&config.store)?;
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
        preloader.map_err(|error| StartError::Config(format!("preload: {error}")))
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
