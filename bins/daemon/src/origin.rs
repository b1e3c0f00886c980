//! The origin as a process: peers on one port, its HTTP face on another.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use kraken_core::net::Role;
use kraken_core::net::http::{
    HttpClient, HttpServer, TracedFrom, admit, serve_on, traced, with_health,
};
use kraken_core::net::origin::router;
use kraken_core::origin::HealConfig;
use kraken_core::proto::ring::health::HealthConfig;
use kraken_core::storage::queue::DurableQueue;
use kraken_core::storage::{Backend as _, FsStore};
use kraken_core::{Origin, Zone};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Address};
use crate::answers::Answers;
use crate::backends::{self, BackendConfig, RouteConfig, Storage};
use crate::check::ProcessConfig;
use crate::config::{self, OriginEntry, QuicMtu, Tls, TransportConfig};
use crate::dns::DnsName;
use crate::explain::with_explain;
use crate::leave::with_leave;
use crate::limits::{LimitsConfig, Rate, with_live_limits};
use crate::log::{LogFilter, LogFormat};
use crate::members::Origins;
use crate::metrics::{Every, with_metrics};
use crate::problems::Problems;
use crate::process::{Service, StartError};
use crate::profile::with_profile;
use crate::queue::{self, with_queue};
use crate::reload::Changed;
use crate::sockets;
use crate::store::check::{DiskKeys, is_taken, same};
use crate::store::http::with_store;
use crate::store::{self, Disks, EvictionConfig, ScrubRate, StoreLimit, VolumeConfig};
use crate::traces::TracingConfig;
use crate::units;

/// The configuration of an origin.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OriginConfig {
    /// This origin's name in the ring.
    pub name: String,
    /// Where blobs and the durable queue are kept.
    pub store: PathBuf,
    /// How much of the disk blobs and uploads may take: bytes, or a part of the volume. No limit when
    /// absent.
    #[serde(default)]
    pub store_limit: Option<StoreLimit>,
    /// Directories for the blobs, each on a disk of its own, instead of `store`, which keeps the rest.
    #[serde(default)]
    pub volumes: Vec<VolumeConfig>,
    /// When blobs go, and which.
    #[serde(default)]
    pub eviction: EvictionConfig,
    /// How fast the blobs on disk are read back, one after the other, to find what rots: bytes per
    /// second, or `off`.
    #[serde(default)]
    pub scrub: ScrubRate,
    /// The storage behind the origins, when it is one for all namespaces.
    #[serde(default)]
    pub backend: Option<BackendConfig>,
    /// The storage behind the origins by namespace: the first whose pattern matches. Instead of
    /// `backend`.
    #[serde(default)]
    pub backends: Vec<RouteConfig>,
    /// Where peers connect to, over UDP and TCP.
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub peer_listen: SocketAddr,
    /// How this host dials its peers.
    #[serde(default)]
    pub transport: TransportConfig,
    /// The largest datagram of QUIC that is tried, in bytes of UDP payload: jumbo frames carry 8972. Smaller
    /// frames are found out.
    #[serde(default)]
    pub quic_mtu: QuicMtu,
    /// The address that peers are told; needed when `peer_listen` is `0.0.0.0` or `[::]`.
    #[serde(default, deserialize_with = "address::optional")]
    #[schemars(with = "Option<Address>")]
    pub advertise: Option<SocketAddr>,
    /// The rack or availability zone of this host, such as `rack-17`; left out on a flat network.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub zone: Option<Zone>,
    /// Where its HTTP face answers (mutual TLS).
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub listen: SocketAddr,
    /// All origins, this one among them.
    #[serde(default)]
    pub origins: Vec<OriginEntry>,
    /// A file with the same list, read again when it changes; instead of `origins`.
    #[serde(default)]
    pub origins_file: Option<PathBuf>,
    /// A name by which DNS says who the origins are; instead of `origins`.
    #[serde(default)]
    pub origins_dns: Option<DnsName>,
    /// How many origins own each blob.
    #[serde(default = "config::default_replicas")]
    pub replicas: usize,
    /// How copies that were lost are made again.
    #[serde(default)]
    pub heal: Heal,
    /// How much of the network to take for peers.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How much is logged, such as `info` or `info,kraken_core=debug`. The variable `RUST_LOG` has the last
    /// word.
    #[serde(default)]
    #[schemars(default = "LogFilter::usual")]
    pub log: Option<LogFilter>,
    /// How a line of the log is written: `text`, or `json`, an object in each line.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Where traces of pulls and pushes go, and of how many; nowhere when absent.
    #[serde(default)]
    pub tracing: Option<TracingConfig>,
    /// This process's certificate.
    pub tls: Tls,
}

impl ProcessConfig for OriginConfig {
    const ROLE: Role = Role::Origin;
    const LIVE: &'static [&'static str] = &[
        "backend",
        "backends",
        "limits",
        "log",
        "log_format",
        "origins",
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
        Some(self.name.clone())
    }

    fn check(&self, found: &mut Problems) {
        found.of_tls(&self.tls, Role::Origin, self.zone.as_ref());
        let sources = (
            &self.origins[..],
            self.origins_file.as_ref(),
            self.origins_dns.as_ref(),
        );
        let origins = found.of_origins(sources, Some(&self.name));
        found.of_replicas("replicas", self.replicas, origins);
        found.of(backends::check(self.backend.as_ref(), &self.backends));
        self.check_directories(found);
        found.of_listening(&[
            ("peer_listen", Some(self.peer_listen)),
            ("listen", Some(self.listen)),
        ]);
        found.of_advertise(self.peer_listen, self.advertise);
        found.of_disks(DiskKeys {
            store: &self.store,
            blobs: &self.blobs(),
            volumes: &self.volumes,
            limit: self.store_limit,
            eviction: &self.eviction,
        });
    }
}

impl OriginConfig {
    /// Where blobs are without `volumes`.
    fn blobs(&self) -> PathBuf {
        self.store.join("blobs")
    }

    /// The storage behind the origins is not where this one has its own blobs.
    fn check_directories(&self, found: &mut Problems) {
        let own = self.volumes.iter().map(|it| it.path.clone());
        let own: Vec<_> = own.chain([self.blobs()]).collect();
        let one = self.backend.iter().map(|it| ("backend".to_owned(), it));
        let several = self.backends.iter().enumerate();
        let several = several.map(|(at, it)| (format!("backends[{at}].backend"), &it.backend));
        for (of, backend) in one.chain(several) {
            for (key, dir) in backend.directories() {
                let meets = |own: &PathBuf| same(dir, own) || is_taken(dir, own);
                if own.iter().any(meets) || same(dir, &self.store) {
                    let dir = dir.display();
                    let what = format!(
                        "{dir} is where this origin keeps its own blobs: name another directory"
                    );
                    found.add(format!("{of}.{key}"), what);
                }
            }
        }
    }
}

/// How copies that were lost are made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Heal {
    /// Bytes per second that this origin copies from others for it.
    #[serde(default = "heal_rate")]
    #[schemars(default = "heal_rate_text")]
    pub rate: Rate,
    /// How long an origin may be away before others take its share.
    #[serde(default)]
    pub after: HealAfter,
}

fn heal_rate() -> Rate {
    Rate(HealConfig::default().rate)
}

fn heal_rate_text() -> String {
    heal_rate().to_string()
}

impl Default for Heal {
    fn default() -> Self {
        Self {
            rate: heal_rate(),
            after: HealAfter::default(),
        }
    }
}

/// A time such as `60s`, a second to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "time", extend("examples" = ["60s"]))]
pub struct HealAfter(Duration);

units::serialize_as_text!(HealAfter, |after| units::time_text(after.0));

impl Default for HealAfter {
    fn default() -> Self {
        Self(HealthConfig::default().grace)
    }
}

impl TryFrom<String> for HealAfter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match units::time(&text)? {
            time if (1..=24 * 3600).contains(&time.as_secs()) => Ok(Self(time)),
            _ => Err(format!("a time of 1s to 24h is expected, not {text}")),
        }
    }
}

impl Heal {
    fn parts(self) -> (HealthConfig, HealConfig) {
        let (mut health, mut heal) = (HealthConfig::default(), HealConfig::default());
        heal.rate = self.rate.0;
        health.grace = self.after.0;
        (health, heal)
    }
}

/// An origin that runs.
#[derive(Debug)]
pub struct OriginService {
    /// The origin itself.
    pub origin: Origin,
    /// Where its HTTP face answers.
    pub addr: SocketAddr,
    storage: Arc<Storage>,
    server: HttpServer,
    shutdown: CancellationToken,
}

/// Starts an origin.
///
/// # Errors
/// [`StartError`] says what to mend.
pub async fn start(config: OriginConfig) -> Result<OriginService, StartError> {
    let shutdown = CancellationToken::new();
    let identity = config.tls.identity_of(Role::Origin, &shutdown)?;
    let every = Every::of(&identity);
    let http = HttpClient::new(Some(&identity))?;
    let listed = Origins::of(
        &config.origins,
        config.origins_file.as_ref(),
        config.origins_dns.as_ref(),
    )?;
    let ring = listed.now(Some(&config.name)).await?;
    let origins = ring.len();
    let storage = Storage::new(config.backend.as_ref(), &config.backends, origins)?;
    let backend = storage.backend();
    let dir = config.blobs();
    config::make_dir(&config.store)?;
    let (volumes, eviction) = (&config.volumes, &config.eviction);
    let disks = store::open(dir, volumes, config.store_limit, eviction).await?;
    store::scrub(disks.clone(), config.scrub, &shutdown);
    tokio::spawn(
        shutdown
            .clone()
            .run_until_cancelled_owned(expire_uploads(disks.clone())),
    );
    let queue = DurableQueue::open(config.store.join("queue.redb"))?;
    let kept = (queue.clone(), config.store.clone());
    let transport = config::bind(
        config.peer_listen,
        &identity,
        (config.transport, config.quic_mtu),
    )?;
    let (health, heal) = config.heal.parts();
    let mut builder = Origin::builder(config.name, disks.clone(), transport, backend, queue)
        .ring(ring, http.calling(&[Role::Origin])?)
        .replicas(config.replicas)
        .asked_file(config.store.join("asked"))
        .lifetimes(config.eviction.lifetimes())
        .health(health)
        .heal(heal)
        .limits(config.limits.into());
    if let Some(addr) = config.advertise {
        builder = builder.advertise(addr);
    }
    if let Some(zone) = identity.zone(config.zone)? {
        builder = builder.zone(zone);
    }
    let origin = builder
        .spawn()
        .map_err(|error| StartError::Config(error.to_string()))?;
    let following = origin.clone();
    listed.follow(&shutdown, move |members| {
        following
            .set_ring(members)
            .map_err(|error| error.to_string())
    });
    let storage = Arc::new(storage);
    let face = Face {
        origin: origin.clone(),
        disks,
        storage: storage.clone(),
        every: every.clone(),
    };
    let router = face.router(kept);
    let server = serve_on(
        sockets::listen(config.listen)?,
        every
            .requests
            .counted(admit(traced(router, TracedFrom::Members), Role::Origin)),
        Some(&identity),
        shutdown.clone(),
    )?;
    Ok(OriginService {
        origin,
        storage,
        addr: server.local_addr(),
        server,
        shutdown,
    })
}

/// What answers over HTTP.
struct Face {
    origin: Origin,
    disks: Disks,
    storage: Arc<Storage>,
    every: Every,
}

impl Face {
    /// All that an origin answers; whether it is ready is seen in its queue, which is in a directory.
    fn router(self, (queue, dir): (DurableQueue, PathBuf)) -> Router {
        let Self {
            origin,
            disks,
            storage,
            every,
        } = self;
        let backend = storage.backend();
        let told = (origin.clone(), disks.clone(), storage);
        let own = move || metrics(told.clone());
        let router = with_metrics(router(Arc::new(origin.clone())), every, own);
        let router = with_live_limits(router, origin.clone());
        let router = with_queue(router, origin.clone());
        let router = with_leave(router, origin.clone());
        let remembers = (origin.clone(), disks.clone());
        let router = with_explain(router, remembers, Answers::default(), None);
        let router = with_profile(with_store(router, disks, origin));
        with_health(router, move || {
            let (queue, dir, backend) = (queue.clone(), dir.clone(), backend.clone());
            let writable = move || writable(&queue, &dir);
            async move {
                let writable = tokio::task::spawn_blocking(writable).await;
                writable.unwrap_or_else(|error| Err(error.to_string()))?;
                backend.ready().await.map_err(|error| error.to_string())
            }
        })
    }
}

/// What the queue needs on its volume: without it no push can be acknowledged.
const QUEUE_ROOM: u64 = 1 << 20;

/// Whether something can be acknowledged. Blocks on the disk.
fn writable(queue: &DurableQueue, dir: &Path) -> Result<(), String> {
    let room = FsStore::volume_room(dir).map_err(|error| error.to_string())?;
    if room < QUEUE_ROOM {
        let dir = dir.display();
        let what =
            format!("the volume of {dir} is full: nothing can be pushed until there is room");
        return Err(what);
    }
    queue.why_not_writable().map_or(Ok(()), Err)
}

async fn metrics((origin, disks, storage): (Origin, Disks, Arc<Storage>)) -> String {
    let (stored, queued) = (store::metrics(&disks), queue::metrics(&origin).await);
    stored + &storage.metrics() + &queued + &origin.metrics().text()
}

/// Removes uploads that nobody went on with for a day.
async fn expire_uploads(disks: Disks) {
    loop {
        match disks.uploads_expire(Duration::from_secs(24 * 3600)).await {
            Ok(0) => {}
            Ok(uploads) => tracing::info!(uploads, "removed abandoned uploads"),
            Err(error) => tracing::warn!(%error, "abandoned uploads cannot be removed"),
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

impl Service for OriginService {
    type Config = OriginConfig;

    fn reload(&self, config: OriginConfig, changed: &Changed) -> Result<(), StartError> {
        let ring = changed.then("origins", || {
            Origins::of(
                &config.origins,
                config.origins_file.as_ref(),
                config.origins_dns.as_ref(),
            )
            .map(Origins::listed)
        })?;
        let storage = match changed.has("backend") || changed.has("backends") {
            true => {
                backends::check(config.backend.as_ref(), &config.backends)?;
                let (one, routes) = (config.backend.as_ref(), &config.backends);
                Some(self.storage.changed(one, routes)?)
            }
            false => None,
        };
        if let Some(ring) = ring.flatten() {
            let set = self.origin.set_ring(ring);
            set.map_err(|error| StartError::Config(format!("origins: {error}")))?;
        }
        if let Some(storage) = storage {
            self.storage.replace(storage);
        }
        if changed.has("limits") {
            self.origin.set_limits(config.limits.into());
        }
        Ok(())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        if let Err(error) = self.server.stopped().await {
            tracing::warn!(%error, "the server did not end well");
        }
        self.origin.shutdown().await;
    }
}
