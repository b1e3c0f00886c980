//! The demo: push an image to the proxy, pull it through every agent at once, check every byte.

use std::io::Write as _;
use std::time::{Duration, Instant};

use comfy_table::Table;
use futures::StreamExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kraken_core::{Agent, Digest};
use kraken_registry::Manifest;
use serde::Serialize;

use crate::Failure;
use crate::client::{Checked, Registry};
use crate::cluster::{Cluster, ClusterOptions};
use crate::image;

/// What the demo does.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How many agents pull.
    pub agents: u16,
    /// How many origins seed.
    pub origins: u16,
    /// The size of the image's layers together, in bytes.
    pub size: u64,
    /// Whether to show progress bars.
    pub bars: bool,
}

/// What the demo saw.
#[derive(Debug, Clone, Serialize)]
pub struct DemoReport {
    /// Every byte at every agent had the right digest.
    pub ok: bool,
    /// The bytes of the image's blobs.
    pub image_bytes: u64,
    /// From the first byte to the accepted tag.
    pub push_seconds: f64,
    /// Until the last agent had everything.
    pub pull_seconds: f64,
    /// What the origins sent to agents.
    pub origin_bytes: u64,
    /// What the agents sent to each other.
    pub peer_bytes: u64,
    /// Each agent.
    pub agents: Vec<AgentReport>,
}

/// What one agent did.
#[derive(Debug, Clone, Serialize)]
pub struct AgentReport {
    /// Its name.
    pub name: String,
    /// How long its pull took.
    pub seconds: f64,
    /// The bytes that its registry served.
    pub bytes: u64,
    /// The bytes that it took from origins.
    pub origin_bytes: u64,
    /// The bytes that it took from other agents.
    pub peer_bytes: u64,
    /// Whether every digest was right.
    pub verified: bool,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

const REPOSITORY: &str = "demo/image";
const TAG: &str = "latest";
/// Real images have a few large layers.
const LAYERS: u32 = 4;
/// How long the cluster may take until the tracker knows its origins.
const READY: Duration = Duration::from_secs(20);

/// Runs the demo on a cluster of its own in a directory that is removed at the end.
///
/// # Errors
/// The cluster does not start, or the push fails. A pull that fails is in the report.
pub async fn run(options: &DemoOptions) -> Result<DemoReport, Failure> {
    let dir = tempfile::tempdir().map_err(Failure::io("make a directory for the demo"))?;
    let cluster = Cluster::start(&ClusterOptions {
        agents: options.agents,
        origins: options.origins,
        dir: dir.path().to_path_buf(),
        base_port: None,
    })
    .await?;
    wait_ready(&cluster).await?;
    let report = push_and_pull(&cluster, options).await;
    cluster.stop().await;
    report
}

/// The report as a table, for people.
pub fn table(report: &DemoReport) -> String {
    let mut table = Table::new();
    table.set_header([
        "agent",
        "time",
        "throughput",
        "from origins",
        "from peers",
        "digests",
    ]);
    for agent in &report.agents {
        table.add_row([
            agent.name.clone(),
            format!("{:.2} s", agent.seconds),
            format!("{}/s", mib(rate(agent.bytes, agent.seconds))),
            mib(agent.origin_bytes),
            mib(agent.peer_bytes),
            agent.error.clone().unwrap_or_else(|| "all right".into()),
        ]);
    }
    let times = report.origin_bytes as f64 / report.image_bytes.max(1) as f64;
    format!(
        "{table}\npushed {} in {:.2} s; {} agents pulled it in {:.2} s; origins sent {} ({times:.2} x the image), peers {}",
        mib(report.image_bytes),
        report.push_seconds,
        report.agents.len(),
        report.pull_seconds,
        mib(report.origin_bytes),
        mib(report.peer_bytes),
    )
}

async fn wait_ready(cluster: &Cluster) -> Result<(), Failure> {
    let end = Instant::now() + READY;
    while cluster.tracker.tracker.live_origins() < cluster.origins.len() {
        if Instant::now() > end {
            return Err(Failure::Registry(
                "the origins do not answer the tracker".into(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn push_and_pull(cluster: &Cluster, options: &DemoOptions) -> Result<DemoReport, Failure> {
    let bars = Bars::new(options.bars);
    let proxy = Registry::new(&cluster.proxy.addr.to_string())?;
    let bar = bars.add("push", options.size);
    let told = bar.clone();
    let started = Instant::now();
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), started);
    let told = move |bytes| told.inc(bytes);
    let image_bytes =
        image::push_random(&proxy, REPOSITORY, TAG, options.size, LAYERS, seed, told).await?;
    let push_seconds = started.elapsed().as_secs_f64();
    bar.finish();
    let started = Instant::now();
    let pulls = cluster.agents.iter().enumerate().map(|(index, service)| {
        let name = format!("agent-{}", index + 1);
        let bar = bars.add(&name, image_bytes);
        pull_at(
            name,
            service.registry.to_string(),
            service.agent.clone(),
            bar,
        )
    });
    let agents: Vec<_> = futures::future::join_all(pulls).await;
    let pull_seconds = started.elapsed().as_secs_f64();
    Ok(DemoReport {
        ok: agents.iter().all(|agent| agent.verified),
        image_bytes,
        push_seconds,
        pull_seconds,
        origin_bytes: cluster.origin_bytes(),
        peer_bytes: agents.iter().map(|agent| agent.peer_bytes).sum(),
        agents,
    })
}

async fn pull_at(name: String, host: String, agent: Agent, bar: ProgressBar) -> AgentReport {
    let started = Instant::now();
    let result = pull(&host, &bar).await;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish();
    let metrics = agent.metrics();
    AgentReport {
        name,
        seconds,
        bytes: *result.as_ref().unwrap_or(&0),
        origin_bytes: metrics.bytes_from_origins(),
        peer_bytes: metrics.bytes_from_agents(),
        verified: result.is_ok(),
        error: result.err().map(|error| error.to_string()),
    }
}

/// Pulls as a container runtime does: manifest by tag, then all blobs at once. Every byte is
/// hashed as it comes out of the agent's registry.
async fn pull(host: &str, bar: &ProgressBar) -> Result<u64, Failure> {
    let registry = Registry::new(host)?;
    let (_, manifest) = registry.manifest(REPOSITORY, TAG).await?;
    let manifest =
        Manifest::parse(&manifest).map_err(|error| Failure::Registry(error.to_string()))?;
    let blobs = manifest
        .blobs()
        .map(|blob| pull_blob(&registry, blob.digest, bar));
    let lengths = futures::future::try_join_all(blobs).await?;
    Ok(lengths.into_iter().sum())
}

async fn pull_blob(registry: &Registry, digest: Digest, bar: &ProgressBar) -> Result<u64, Failure> {
    let (_, mut stream) = registry.blob(REPOSITORY, digest).await?;
    let mut checked = Checked::new(digest);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Failure::Registry(format!("{digest}: {error}")))?;
        checked.update(&chunk);
        bar.inc(chunk.len() as u64);
    }
    checked.finish()
}

/// Progress bars on standard error, or none.
#[derive(Debug)]
pub struct Bars {
    bars: MultiProgress,
    show: bool,
}

impl Bars {
    /// Bars, which show only on a terminal, or none.
    pub fn new(show: bool) -> Self {
        let target = if show {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            show,
        }
    }

    /// Says something above the bars, on the standard error, also where that is no terminal.
    pub fn say(&self, line: &str) {
        if self.show {
            // Who closed it wants to read nothing.
            let say = || writeln!(std::io::stderr(), "kraken: {line}");
            let _ = self.bars.suspend(say);
        }
    }

    /// One more bar.
    pub fn add(&self, name: &str, length: u64) -> ProgressBar {
        let style = "{prefix:>10} [{bar:40}] {bytes:>11}/{total_bytes} {bytes_per_sec}";
        let style = ProgressStyle::with_template(style).expect("a template that parses");
        let bar = self
            .bars
            .add(ProgressBar::new(length).with_style(style.progress_chars("=> ")));
        bar.set_prefix(name.to_string());
        bar
    }
}

fn rate(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 / seconds.max(1e-9)) as u64
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
