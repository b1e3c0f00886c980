//! A blob that only the backend has: how soon its first byte is at a client of an agent's registry,
//! and its last, beside the time that the backend itself needs.
//!
//! All run in one process: three origins behind mutual TLS, a tracker, and agents with their
//! registries. The backend has a rate, and counts.

use std::fs::File;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt as _, stream};
use kraken_core::net::announce::{self, TrackerClient};
use kraken_core::net::http::{HttpClient, HttpServer, serve};
use kraken_core::net::origin::{OriginCluster, router};
use kraken_core::net::{CertAuthority, Identity, Quic};
use kraken_core::origin::RingMember;
use kraken_core::storage::{Backend, BackendError, ByteStream, DurableQueue, FsStore};
use kraken_core::{Agent, Digest, Namespace, Origin, Tracker};
use kraken_registry::pull::{self, PullState};
use kraken_registry::tags::client::TagClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Outcome;
use crate::lab::{Lab, payload_path};
use crate::machine::warm_memory;
use crate::measure::{Measure, median};
use crate::process::scratch;

const CHUNK: u64 = 256 << 10;
const ORIGINS: usize = 3;
/// The most that the first byte may take, in seconds.
const FIRST: f64 = 0.3;

pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let digest = runtime.block_on(digest_of(&payload_path(lab.path())))?;
    let mut measures = Vec::new();
    for agents in [1, 8] {
        let mut samples = Vec::new();
        for round in 0..lab.effort.repeats {
            // Every host keeps the blob.
            warm_memory((agents + ORIGINS + 1) * usize::try_from(lab.mib << 20)?);
            let sample = runtime.block_on(run(lab, digest, agents))?;
            eprintln!("  round {round}: {agents} agents {sample:.3?}");
            samples.push(sample);
        }
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        let name = |what: &str| format!("cold/{what}-{agents}");
        let backend = of(|it| it.backend);
        measures.extend([
            Measure::of(
                name("first-byte"),
                "s",
                (of(|it| it.first), Some(FIRST)),
                1.0,
            )
            .note("peer: the bound"),
            Measure::of(name("last-byte"), "s", (of(|it| it.last), backend), 1.05)
                .note("peer: the backend alone"),
            Measure::of(
                name("backend-bytes"),
                "blobs",
                (of(|it| it.given), Some(1.0)),
                1.0,
            )
            .note("peer: each byte once"),
        ]);
    }
    Ok(measures)
}

/// One pull by all agents at once.
#[derive(Debug)]
struct Sample {
    /// Seconds until the slowest client had its first byte, and its last.
    first: f64,
    last: f64,
    /// What the backend took to give all, in seconds, and how often it gave each byte.
    backend: f64,
    given: f64,
}

async fn run(lab: &Lab, digest: Digest, agents: usize) -> Outcome<Sample> {
    let dir = scratch(lab.path())?;
    let backend = Capped::of(payload_path(lab.path()), lab.effort.backend_rate)?;
    let cluster = Cluster::start(dir.path().to_owned(), backend.clone(), agents).await?;
    let begun = Instant::now();
    let pulls = cluster
        .registries
        .iter()
        .map(|at| pull(*at, digest, backend.length));
    let times = try_join_all(pulls).await?;
    let seconds = |at: Instant| (at - begun).as_secs_f64();
    let sample = Sample {
        first: times.iter().map(|it| seconds(it.0)).fold(0.0, f64::max),
        last: times.iter().map(|it| seconds(it.1)).fold(0.0, f64::max),
        backend: backend.length as f64 / backend.rate,
        given: backend.given.load(Ordering::Relaxed) as f64 / backend.length as f64,
    };
    cluster.stop().await;
    Ok(sample)
}

/// When the first byte of the body came, and the last.
async fn pull(registry: SocketAddr, digest: Digest, length: u64) -> Outcome<(Instant, Instant)> {
    let mut stream = TcpStream::connect(registry).await?;
    let ask =
        format!("GET /v2/lab/blobs/{digest} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(String::from_utf8_lossy(&head).into());
    }
    let (mut buffer, mut came, mut first) = (vec![0; 1 << 20], 0, None);
    while came < length {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err(format!("the body ended after {came} bytes").into());
        }
        first.get_or_insert_with(Instant::now);
        came += read as u64;
    }
    Ok((first.ok_or("an empty blob")?, Instant::now()))
}

async fn digest_of(path: &std::path::Path) -> Outcome<Digest> {
    Ok(Digest::of(&tokio::fs::read(path).await?))
}

/// A backend with one blob, which gives so many bytes per second to each who reads.
#[derive(Clone)]
struct Capped {
    file: Arc<File>,
    length: u64,
    rate: f64,
    given: Arc<AtomicU64>,
}

impl Capped {
    fn of(path: PathBuf, rate: f64) -> Outcome<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            length,
            rate,
            given: Arc::default(),
        })
    }
}

impl Backend for Capped {
    async fn stat(&self, _: &Namespace, _: Digest) -> Result<Option<u64>, BackendError> {
        Ok(Some(self.length))
    }

    async fn read(
        &self,
        _: &Namespace,
        _: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let Range { start: from, end } = range;
        let end = end.min(self.length);
        let (backend, begun) = (self.clone(), tokio::time::Instant::now());
        let chunks = stream::try_unfold(from, move |at| {
            let backend = backend.clone();
            async move {
                if at >= end {
                    return Ok(None);
                }
                let len = CHUNK.min(end - at);
                let due = Duration::from_secs_f64((at + len - from) as f64 / backend.rate);
                tokio::time::sleep_until(begun + due).await;
                let mut bytes = vec![0; usize::try_from(len).expect("a chunk fits")];
                let read = backend.file.read_exact_at(&mut bytes, at);
                read.map_err(|error| BackendError::Unavailable(error.to_string()))?;
                backend.given.fetch_add(len, Ordering::Relaxed);
                Ok(Some((Bytes::from(bytes), at + len)))
            }
        });
        Ok(chunks.boxed())
    }

    async fn write(
        &self,
        _: &Namespace,
        digest: Digest,
        _: u64,
        _: ByteStream,
    ) -> Result<(), BackendError> {
        Err(BackendError::Denied(format!("{digest} is there already")))
    }

    async fn delete(&self, _: &Namespace, digest: Digest) -> Result<(), BackendError> {
        Err(BackendError::Denied(format!("{digest} is to stay")))
    }
}

struct Cluster {
    origins: Vec<Origin>,
    tracker: Tracker,
    agents: Vec<Agent>,
    registries: Vec<SocketAddr>,
    _servers: Vec<HttpServer>,
    _shutdown: DropGuard,
}

impl Cluster {
    async fn start(dir: PathBuf, backend: Capped, agents: usize) -> Outcome<Self> {
        let (authority, shutdown) = (CertAuthority::create()?, CancellationToken::new());
        let mut servers = Vec::new();
        let (origins, cluster) =
            start_origins(&dir, backend, &authority, &shutdown, &mut servers).await?;
        let identity = issue(&authority, "tracker")?;
        let tracker = Tracker::builder(cluster(HttpClient::new(Some(&identity))?)).spawn();
        let routes = announce::router(Arc::new(tracker.clone()));
        let server = serve(any_port(), routes, Some(&identity), shutdown.clone())?;
        let url = format!("https://{}", server.local_addr());
        servers.push(server);
        while tracker.live_origins() < ORIGINS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (mut running, mut registries) = (Vec::new(), Vec::new());
        for number in 0..agents {
            let identity = issue(&authority, "agent")?;
            let http = HttpClient::new(Some(&identity))?;
            let store = FsStore::open(dir.join(format!("agent-{number}"))).await?;
            let agent = Agent::builder(store, Quic::bind(any_port(), &identity)?)
                .discovery(TrackerClient::new([&url], http.clone())?)
                .spawn()?;
            let tags = TagClient::new(http.raw(), Vec::<String>::new());
            let routes = pull::router(PullState::mirror(agent.clone(), tags));
            let server = serve(any_port(), routes, None, shutdown.clone())?;
            registries.push(server.local_addr());
            servers.push(server);
            running.push(agent);
        }
        Ok(Self {
            origins,
            tracker,
            agents: running,
            registries,
            _servers: servers,
            _shutdown: shutdown.drop_guard(),
        })
    }

    async fn stop(self) {
        for agent in &self.agents {
            agent.shutdown().await;
        }
        self.tracker.shutdown().await;
        for origin in &self.origins {
            origin.shutdown().await;
        }
    }
}

type MakeCluster = Box<dyn FnOnce(HttpClient) -> OriginCluster>;

async fn start_origins(
    dir: &std::path::Path,
    backend: Capped,
    authority: &CertAuthority,
    shutdown: &CancellationToken,
    servers: &mut Vec<HttpServer>,
) -> Outcome<(Vec<Origin>, MakeCluster)> {
    let held: Vec<_> = (0..ORIGINS)
        .map(|_| std::net::TcpListener::bind(any_port()))
        .collect::<Result<_, _>>()?;
    let addrs: Vec<_> = held
        .iter()
        .map(|it| it.local_addr())
        .collect::<Result<_, _>>()?;
    drop(held);
    let mut members = Vec::new();
    for (index, addr) in addrs.iter().enumerate() {
        let (name, url) = (
            format!("origin-{index}"),
            format!("https://{addr}").parse()?,
        );
        members.push(RingMember::new(name, url));
    }
    let mut origins = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let identity = issue(authority, "origin")?;
        let store = FsStore::open(dir.join(&member.name)).await?;
        let queue = DurableQueue::open(dir.join(format!("{}.redb", member.name)))?;
        let quic = Quic::bind(any_port(), &identity)?;
        let origin = Origin::builder(&member.name, store, quic, backend.clone(), queue)
            .ring(members.clone(), HttpClient::new(Some(&identity))?)
            .replicas(ORIGINS)
            .spawn()?;
        let routes = router(Arc::new(origin.clone()));
        servers.push(serve(
            addrs[index],
            routes,
            Some(&identity),
            shutdown.clone(),
        )?);
        origins.push(origin);
    }
    let cluster = move |http| OriginCluster::new(members, http, ORIGINS);
    Ok((origins, Box::new(cluster)))
}

fn issue(authority: &CertAuthority, role: &str) -> Outcome<Identity> {
    let (cert, key) = authority.issue(role, &["127.0.0.1".to_string()])?;
    Ok(Identity::from_pem(&cert, &key, &authority.to_pem().0)?)
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
