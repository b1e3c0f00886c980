//! The check of the simulator: one origin, a tracker and 8 agents, as they ship, over QUIC on the
//! loopback beside what the simulator says of the same plan. Prints both; nothing is asserted.
//!
//! The limits are low enough that the machine is not the limit, if nobody else uses it: look at how
//! late timers were before you believe a ratio. Memory that runs out makes the disk the limit.
//! Other differences come from the shell, since the scheduler is the same.
#![expect(clippy::print_stdout, reason = "a measurement that is read by people")]

use std::error::Error;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use kraken_core::net::announce::{self, TrackerClient};
use kraken_core::net::http::{HttpClient, HttpServer, serve};
use kraken_core::net::origin::{self, OriginCluster, RingMember};
use kraken_core::net::{CertAuthority, Identity, Quic, Transport as _};
use kraken_core::storage::{DurableQueue, FsStore, OpendalBackend, UploadStore as _};
use kraken_core::{Agent, Digest, Limits, MetaInfo, Origin, Tracker};
use kraken_sim::{Arrival, Blob, Network, Percentiles, Plan};
use tokio_util::sync::{CancellationToken, DropGuard};

const MB: u64 = 1_000_000;
/// What each host may send and receive, in bytes per second.
const RATE: u64 = 20 * MB;
const AGENTS: usize = 8;
/// Between the starts of two agents.
const APART: Duration = Duration::from_millis(25);
/// Chance differs in each run, and has much to say among so few hosts: means are compared.
const ROUNDS: u64 = 4;
const SEEDS: u64 = 40;
type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    // `cargo test --benches` only wants to see it start.
    if std::env::args().all(|argument| argument != "--bench") {
        return Ok(());
    }
    for (what, lengths) in [
        ("one blob of 200 MB", &[200 * MB][..]),
        ("two blobs of 100 MB", &[100 * MB; 2]),
    ] {
        compare(what, lengths).await?;
    }
    Ok(())
}

async fn compare(what: &str, lengths: &[u64]) -> Outcome<()> {
    let floor = lengths.iter().sum::<u64>() as f64 / RATE as f64;
    println!(
        "{what}, {AGENTS} agents and the origin at {} MB/s",
        RATE / MB
    );
    println!("floor {floor:.2} s; seconds of the agents:   p50     max   origin bytes over blobs");
    let (mut real, mut metas) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let cluster = Cluster::start(lengths).await?;
        let measured = cluster.pull().await?;
        println!("round {round}: {}", measured.notes);
        for (span, times) in [
            ("call to durable", &measured.from_call),
            ("swarm open to durable", &measured.from_swarm),
            ("swarm open to last piece", &measured.pieces),
        ] {
            line(span, &Percentiles::of(times.clone()), measured.origin);
        }
        real.push((Percentiles::of(measured.pieces), measured.origin));
        metas = cluster.metas;
    }
    let played: Vec<_> = (1..=SEEDS)
        .map(|seed| kraken_sim::run(&plan(&metas, seed)))
        .map(|report| (report.percentiles(), report.origin_bytes_ratio))
        .collect();
    let (real, played) = (Mean::of(&real), Mean::of(&played));
    println!("means, with the least and the most p50 of a run:");
    println!("  real       {real}");
    println!("  simulated  {played}");
    println!(
        "  real over simulated: p50 {:.3}, max {:.3}\n",
        real.p50 / played.p50,
        real.max / played.max
    );
    Ok(())
}

fn line(what: &str, times: &Percentiles, origin: f64) {
    println!(
        "  {what:36} {:7.2} {:7.2}   {origin:.2}",
        times.p50, times.max
    );
}

/// Over several runs.
struct Mean {
    p50: f64,
    max: f64,
    origin: f64,
    range: [f64; 2],
}

impl Mean {
    fn of(runs: &[(Percentiles, f64)]) -> Self {
        let mean = |of: fn(&(Percentiles, f64)) -> f64| {
            runs.iter().map(of).sum::<f64>() / runs.len() as f64
        };
        let p50s = || runs.iter().map(|run| run.0.p50);
        Self {
            p50: mean(|run| run.0.p50),
            max: mean(|run| run.0.max),
            origin: mean(|run| run.1),
            range: [p50s().fold(f64::MAX, f64::min), p50s().fold(0.0, f64::max)],
        }
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            p50,
            max,
            origin,
            range: [least, most],
        } = self;
        write!(
            f,
            "p50 {p50:.2} ({least:.2} to {most:.2}), max {max:.2}, origin {origin:.2}"
        )
    }
}

/// What [`Cluster::pull`] does, for the simulator.
fn plan(metas: &[MetaInfo], seed: u64) -> Plan {
    let blob = |meta: &MetaInfo| Blob {
        piece_length: meta.piece_length(),
        ..Blob::from(meta.length())
    };
    Plan {
        name: "loopback".to_string(),
        seed,
        agents: AGENTS,
        origins: 1,
        owners: 1,
        blobs: metas.iter().map(blob).collect(),
        arrival: Arrival {
            within: Duration::ZERO,
            late: (0..AGENTS).map(|it| (it, starts(it))).collect(),
        },
        network: Network {
            up: RATE,
            down: RATE,
            origin: RATE,
            rtt: Duration::from_micros(50)..=Duration::from_micros(200),
            ..Network::default()
        },
        ..Plan::default()
    }
}

fn starts(agent: usize) -> Duration {
    APART * u32::try_from(agent).unwrap_or(u32::MAX)
}

/// One agent's times in seconds.
struct Times {
    /// From the call until all is durable.
    from_call: f64,
    /// From the moment that the first swarm was open.
    from_swarm: f64,
    /// From that moment to the last piece, before the blobs are made durable.
    pieces: f64,
}

/// All agents' times, and what else was measured.
struct Measured {
    from_call: Vec<f64>,
    from_swarm: Vec<f64>,
    pieces: Vec<f64>,
    /// What the origin sent, over the blobs.
    origin: f64,
    notes: String,
}

/// An origin that has some blobs, a tracker, and agents that have nothing.
struct Cluster {
    origin: Origin,
    tracker: Tracker,
    agents: Vec<(Agent, Quic)>,
    metas: Vec<MetaInfo>,
    _servers: [HttpServer; 2],
    _shutdown: DropGuard,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start(lengths: &[u64]) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let authority = CertAuthority::create()?;
        let shutdown = CancellationToken::new();
        let (origin, metas, origin_server) =
            start_origin(dir.path(), &authority, lengths, &shutdown).await?;
        let identity = issue(&authority, "tracker")?;
        let name = "origin-1".to_string();
        let url = format!("https://{}", origin_server.local_addr()).parse()?;
        let http = HttpClient::new(Some(&identity))?;
        let cluster = OriginCluster::new([RingMember::new(name.clone(), url)], http, 1);
        let tracker = Tracker::builder(cluster).spawn();
        let router = announce::router(Arc::new(tracker.clone()));
        let tracker_server = serve(any_port(), router, Some(&identity), shutdown.clone())?;
        while tracker.live_origins() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let url = format!("https://{}", tracker_server.local_addr());
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            let store = FsStore::open(dir.path().join(format!("agent-{number}"))).await?;
            agents.push(start_agent(store, &issue(&authority, "agent")?, &url)?);
        }
        Ok(Self {
            origin,
            tracker,
            agents,
            metas,
            _servers: [origin_server, tracker_server],
            _shutdown: shutdown.drop_guard(),
            _dir: dir,
        })
    }

    /// Lets every agent pull every blob.
    async fn pull(&self) -> Outcome<Measured> {
        let (begun, busy) = (Instant::now(), processor_seconds());
        let lateness = AtomicU64::new(0);
        let pulls = self
            .agents
            .iter()
            .enumerate()
            .map(|(number, (agent, _))| async move {
                tokio::time::sleep(starts(number)).await;
                fetch(agent, &self.metas).await
            });
        let pulls = try_join_all(pulls);
        let (times, late) = tokio::select! {
            times = pulls => (times?, lateness.load(Ordering::Relaxed)),
            () = watch_lateness(&lateness) => unreachable!("it watches for ever"),
        };
        let took = begun.elapsed().as_secs_f64();
        let all: u64 = self.metas.iter().map(MetaInfo::length).sum();
        let received: u64 = self
            .agents
            .iter()
            .map(|(_, quic)| quic.throttle().download().passed())
            .sum();
        let wanted = all as f64 * AGENTS as f64;
        let notes = format!(
            "arrived for nothing {:.4}, busy {:.2} cores, timers late by up to {late} ms",
            received as f64 / wanted - 1.0,
            (processor_seconds() - busy) / took
        );
        let measured = Measured {
            from_call: times.iter().map(|it| it.from_call).collect(),
            from_swarm: times.iter().map(|it| it.from_swarm).collect(),
            pieces: times.iter().map(|it| it.pieces).collect(),
            origin: self.origin.metrics().bytes_sent() as f64 / all as f64,
            notes,
        };
        for (agent, _) in &self.agents {
            agent.shutdown().await;
        }
        self.tracker.shutdown().await;
        self.origin.shutdown().await;
        Ok(measured)
    }
}

async fn start_origin(
    dir: &Path,
    authority: &CertAuthority,
    lengths: &[u64],
    shutdown: &CancellationToken,
) -> Outcome<(Origin, Vec<MetaInfo>, HttpServer)> {
    let store = FsStore::open(dir.join("origin")).await?;
    let mut metas = Vec::new();
    for (seed, length) in (1..).zip(lengths) {
        let bytes: Vec<u8> = (0..*length)
            .map(|i| ((i ^ (i >> 9)) * seed) as u8)
            .collect();
        let (digest, upload) = (Digest::of(&bytes), store.upload_start().await?);
        store.upload_append(&upload, 0, bytes.into()).await?;
        metas.push(store.upload_commit(&upload, digest).await?);
    }
    let identity = issue(authority, "origin")?;
    let quic = Quic::bind(any_port(), &identity)?;
    let queue = DurableQueue::open(dir.join("queue.redb"))?;
    let origin = Origin::builder("origin-1", store, quic, OpendalBackend::memory(), queue)
        .limits(limits())
        .spawn()?;
    let router = origin::router(Arc::new(origin.clone()));
    let server = serve(any_port(), router, Some(&identity), shutdown.clone())?;
    Ok((origin, metas, server))
}

fn start_agent(store: FsStore, identity: &Identity, tracker: &str) -> Outcome<(Agent, Quic)> {
    let quic = Quic::bind(any_port(), identity)?;
    let http = HttpClient::new(Some(identity))?;
    let agent = Agent::builder(store, quic.clone())
        .discovery(TrackerClient::new([tracker], http)?)
        .limits(limits())
        .spawn()?;
    Ok((agent, quic))
}

/// Pulls all blobs at once.
async fn fetch(agent: &Agent, metas: &[MetaInfo]) -> Outcome<Times> {
    let called = Instant::now();
    let blobs = metas.iter().map(|meta| async {
        let reader = agent.open(meta.digest()).await?;
        let opened = Instant::now();
        while reader.pieces().0 < reader.pieces().1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let pieces = Instant::now();
        reader.complete().await?;
        Outcome::Ok((opened, pieces, Instant::now()))
    });
    let blobs = try_join_all(blobs).await?;
    let opened = blobs.iter().map(|it| it.0).min().unwrap_or(called);
    let pieces = blobs.iter().map(|it| it.1).max().unwrap_or(called);
    let done = blobs.iter().map(|it| it.2).max().unwrap_or(called);
    Ok(Times {
        from_call: (done - called).as_secs_f64(),
        from_swarm: (done - opened).as_secs_f64(),
        pieces: (pieces - opened).as_secs_f64(),
    })
}

fn limits() -> Limits {
    let rate = NonZeroU64::new(RATE);
    Limits::NONE.with_upload(rate).with_download(rate)
}

fn issue(authority: &CertAuthority, role: &str) -> Outcome<Identity> {
    let (cert, key) = authority.issue(role, &["127.0.0.1".to_string()])?;
    Ok(Identity::from_pem(&cert, &key, &authority.to_pem().0)?)
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Keeps the longest time in milliseconds by which a timer was late.
async fn watch_lateness(longest: &AtomicU64) {
    let pause = Duration::from_millis(5);
    loop {
        let due = Instant::now() + pause;
        tokio::time::sleep(pause).await;
        let late = u64::try_from(due.elapsed().as_millis()).unwrap_or(u64::MAX);
        longest.fetch_max(late, Ordering::Relaxed);
    }
}

/// What this process has used of all cores; NaN where the system does not tell.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses; the 14th and 15th field, in hundredths: proc(5).
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let fields = behind.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = fields.filter_map(|it| it.parse().ok()).collect();
    match ticks[..] {
        [user, system] => (user + system) / 100.0,
        _ => f64::NAN,
    }
}
