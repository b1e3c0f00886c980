//! One seeder and one leecher: agents as they ship, a process each.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use kraken_core::net::{Quic, QuicOptions, Tcp};
use kraken_core::storage::FsStore;
use kraken_core::{Agent, Namespace, PeerInfo};

use crate::lab::{self, Lab};
use crate::measure::{Measure, Rounds, Sample, Subject};
use crate::peers::{Named, parse, place};
use crate::process::{self, Child, cpu_seconds, next_line, scratch};
use crate::{Outcome, libtorrent, mini};

/// Ethernet's 1500 bytes, and jumbo frames, less the headers of IPv6 and UDP.
pub(crate) const MTU: u16 = 1452;
const JUMBO: u16 = 8972;

/// Nothing takes as long, unless it has stalled.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn measures(lab: &Lab) -> Outcome<Vec<Measure>> {
    let torrent = libtorrent::Torrent::make(lab)?;
    let mut subjects: Vec<Subject<'_>> = vec![
        ("ours", Box::new(|| one(lab, Way::Quic, MTU))),
        ("ours-jumbo", Box::new(|| one(lab, Way::Quic, JUMBO))),
        ("tcp-tls", Box::new(|| one(lab, Way::Tcp, MTU))),
        ("mini", Box::new(|| mini::one(lab, MTU))),
    ];
    if let Some(torrent) = &torrent {
        subjects.push(("libtorrent", Box::new(|| torrent.one(lab, false))));
        subjects.push(("libtorrent-rc4", Box::new(|| torrent.one(lab, true))));
    }
    let rounds = Rounds::run(&subjects, &lab.effort)?;
    let cpu = |subject| {
        let seconds = rounds.median(subject, Sample::cpu);
        seconds.map(|seconds| lab.per_gib(seconds))
    };
    let wall = |subject| {
        rounds
            .median(subject, |it| it.wall)
            .map(|it| lab.per_gib(it))
    };
    let unit = "CPU-s/GiB";
    let beside = |peer: &'static str, target| {
        Measure::of(
            format!("transfer-cpu/{peer}"),
            unit,
            (cpu("ours"), cpu(peer)),
            target,
        )
    };
    let jumbo = (cpu("ours-jumbo"), cpu("libtorrent"));
    let walls = (wall("ours"), wall("libtorrent"));
    let measures = [
        beside("libtorrent", 0.85),
        beside("libtorrent-rc4", 0.4),
        beside("tcp-tls", 1.7),
        beside("mini", 1.05),
        Measure::of("transfer-wall/libtorrent", "s/GiB", walls, 1.0),
        Measure::of("transfer-cpu-jumbo/libtorrent", unit, jumbo, 0.55),
    ];
    let missing = |measure: Measure| match measure.peer {
        None if torrent.is_none() => measure.note(libtorrent::MISSING),
        _ => measure,
    };
    Ok(measures.into_iter().map(missing).collect())
}

fn one(lab: &Lab, way: Way, mtu: u16) -> Outcome<Sample> {
    let run = scratch(lab.path())?;
    process::pair(seeder(lab, way, mtu)?, |ready| {
        leecher(lab, (way, mtu), ready, (run.path(), 0), PATIENCE)
    })
}

/// The lab's blob, offered by an agent.
pub(crate) fn seeder(lab: &Lab, way: Way, mtu: u16) -> Outcome<Child> {
    let mtu = mtu.to_string();
    let lab = lab.path().to_string_lossy();
    Child::role(["seed", "--lab", &lab, "--way", way.name(), "--mtu", &mtu])
}

/// An agent that fetches the blob into a store of its own, `number` in `dir`.
pub(crate) fn leecher(
    lab: &Lab,
    (way, mtu): (Way, u16),
    ready: &[String],
    (dir, number): (&Path, usize),
    patience: Duration,
) -> Outcome<Child> {
    let lab = lab.path().to_string_lossy();
    let name = format!("leech-{number}");
    let store = dir.join(&name);
    let store = store.to_string_lossy();
    let (mtu, patience) = (mtu.to_string(), patience.as_secs().to_string());
    Child::role([
        "leech",
        "--lab",
        &lab,
        "--way",
        way.name(),
        "--mtu",
        &mtu,
        "--name",
        &name,
        "--store",
        &store,
        "--peers",
        &ready.join(","),
        "--patience",
        &patience,
    ])
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Way {
    Quic,
    Tcp,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// What both roles are told.
#[derive(Args)]
struct Common {
    #[arg(long)]
    lab: PathBuf,
    #[arg(long)]
    way: Way,
    #[arg(long)]
    mtu: u16,
}

#[derive(Args)]
pub(crate) struct Seed {
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub(crate) struct Leech {
    #[command(flatten)]
    common: Common,
    #[arg(long)]
    name: String,
    #[arg(long)]
    store: PathBuf,
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    #[arg(long)]
    patience: u64,
}

impl Seed {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("seed", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let agent = self
            .common
            .agent("seed", &lab::store_path(&self.common.lab), Vec::new())
            .await?;
        agent.seed_all().await?;
        let before = cpu_seconds();
        println!("ready {}", place(&agent));
        next_line().await?;
        println!("cpu {}", cpu_seconds() - before);
        Ok(())
    }
}

impl Leech {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("leech", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let peers: Vec<_> = self.peers.iter().map(String::as_str).collect();
        let agent = self
            .common
            .agent(&self.name, &self.store, parse(&peers)?)
            .await?;
        let digest = lab::meta(&self.common.lab)?.digest();
        println!("ready");
        next_line().await?;
        let (begun, before) = (Instant::now(), cpu_seconds());
        let namespace = Namespace::default();
        let fetched = agent.fetch(&namespace, digest);
        match tokio::time::timeout(Duration::from_secs(self.patience), fetched).await {
            Ok(fetched) => {
                fetched?;
                let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - before);
                println!("done {wall} {cpu}");
            }
            Err(_) => println!("stalled"),
        }
        Ok(())
    }
}

impl Common {
    async fn agent(&self, name: &str, store: &Path, peers: Vec<PeerInfo>) -> Outcome<Agent> {
        let store = FsStore::open(store).await?;
        let identity = lab::identity(&self.lab, name)?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let meta = lab::meta(&self.lab)?;
        let known = Named { meta, peers };
        let builder = match self.way {
            Way::Quic => {
                let options = QuicOptions::default().mtu(self.mtu);
                let quic = Quic::bind_with(any_port, &identity, &options)?;
                Agent::builder(store, quic)
            }
            Way::Tcp => Agent::builder(store, Tcp::bind(any_port, &identity)?),
        };
        Ok(builder.discovery(known).spawn()?)
    }
}
