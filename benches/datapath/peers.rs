//! Agents for the measures of memory and size: a crowd of them in one process, with blobs that need
//! no disk, and one in a process of its own that is measured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use kraken_core::net::{Discovery, DiscoveryError, Quic};
use kraken_core::proto::{AnnounceReply, AnnounceRequest, Handout, PeerRole};
use kraken_core::storage::{FsStore, PieceStore};
use kraken_core::{Agent, Digest, MetaInfo, Namespace, PeerId, PeerInfo};
use tokio::io::AsyncReadExt as _;

use crate::Outcome;
use crate::lab;
use crate::made::MadeStore;
use crate::process::{self, Child, cpu_seconds, next_line};

/// Agents of which some have the blob, and others want it from whoever is named to them.
///
/// Says `ready` and where those are that have it; takes the place of the one that the others are to
/// ask, if there are any, and goes on until its input ends.
#[derive(Args)]
pub(crate) struct Crowd {
    #[arg(long)]
    lab: PathBuf,
    #[arg(long)]
    meta: PathBuf,
    #[arg(long)]
    seeders: usize,
    #[arg(long)]
    leechers: usize,
}

/// The agent that is measured. Says `ready` and where it is, waits for a line, says `first` and the
/// seconds until the first verified byte, then `done` with wall and processor seconds, and waits for
/// the end of its input.
#[derive(Args)]
pub(crate) struct Fetch {
    #[arg(long)]
    lab: PathBuf,
    #[arg(long)]
    meta: PathBuf,
    /// Where its store is; without one the blob needs no disk.
    #[arg(long)]
    store: Option<PathBuf>,
    /// Those who have the blob.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
}

/// The most agents in a crowd: there is an identity for each.
pub(crate) const CROWD: usize = 8;

/// The identity of one of the crowd.
pub(crate) fn crowd_name(number: usize) -> String {
    format!("crowd-{number}")
}

/// A crowd over the blob whose metainfo is in the file.
pub(crate) fn crowd(lab: &Path, meta: &Path, seeders: usize, leechers: usize) -> Outcome<Child> {
    let (lab, meta) = (lab.to_string_lossy(), meta.to_string_lossy());
    let (seeders, leechers) = (seeders.to_string(), leechers.to_string());
    Child::role([
        "crowd",
        "--lab",
        &lab,
        "--meta",
        &meta,
        "--seeders",
        &seeders,
        "--leechers",
        &leechers,
    ])
}

/// The agent that is measured.
pub(crate) fn fetcher(
    lab: &Path,
    meta: &Path,
    store: Option<&Path>,
    peers: &[String],
) -> Outcome<Child> {
    let mut arguments = vec!["fetch".to_string()];
    let mut add = |name: &str, value: String| arguments.extend([name.to_string(), value]);
    add("--lab", lab.to_string_lossy().into());
    add("--meta", meta.to_string_lossy().into());
    add("--peers", peers.join(","));
    if let Some(store) = store {
        add("--store", store.to_string_lossy().into());
    }
    Child::role(arguments)
}

impl Crowd {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("crowd", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let meta = read_meta(&self.meta)?;
        let mut agents = Vec::new();
        let mut said = "ready".to_string();
        for number in 0..self.seeders {
            let store = MadeStore::new(meta.clone(), true);
            let agent = agent(&self.lab, &crowd_name(number), store, (&meta, Vec::new()))?;
            agent.seed_all().await?;
            said += &format!(" {}", place(&agent));
            agents.push(agent);
        }
        println!("{said}");
        if self.leechers > 0 {
            let named = next_line().await?.ok_or("nobody was named")?;
            let peers = parse(&named.split(' ').collect::<Vec<_>>())?;
            for number in self.seeders..self.seeders + self.leechers {
                let store = MadeStore::new(meta.clone(), false);
                let agent = agent(
                    &self.lab,
                    &crowd_name(number),
                    store,
                    (&meta, peers.clone()),
                )?;
                drop(agent.open(meta.digest()).await?);
                agents.push(agent);
            }
        }
        while next_line().await?.is_some() {}
        println!("cpu {}", cpu_seconds());
        Ok(())
    }
}

impl Fetch {
    pub(crate) fn run(&self) -> Outcome<()> {
        process::run("fetch", self.work())
    }

    async fn work(&self) -> Outcome<()> {
        let meta = read_meta(&self.meta)?;
        let peers: Vec<_> = self.peers.iter().map(String::as_str).collect();
        let known = (&meta, parse(&peers)?);
        let agent = match &self.store {
            Some(store) => agent(&self.lab, "leech-0", FsStore::open(store).await?, known)?,
            None => {
                let store = MadeStore::new(meta.clone(), false);
                agent(&self.lab, "leech-0", store, known)?
            }
        };
        println!("ready {}", place(&agent));
        next_line().await?;
        let (begun, before) = (Instant::now(), cpu_seconds());
        let mut reader = agent.open(meta.digest()).await?;
        reader.read_u8().await?;
        println!("first {}", begun.elapsed().as_secs_f64());
        reader.complete().await?;
        let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - before);
        println!("done {wall} {cpu}");
        while next_line().await?.is_some() {}
        println!("cpu {}", cpu_seconds());
        Ok(())
    }
}

fn agent(
    lab: &Path,
    name: &str,
    store: impl PieceStore,
    (meta, peers): (&MetaInfo, Vec<PeerInfo>),
) -> Outcome<Agent> {
    let identity = lab::identity(lab, name)?;
    let quic = Quic::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &identity)?;
    let meta = meta.clone();
    let builder = Agent::builder(store, quic).discovery(Named { meta, peers });
    Ok(builder.spawn()?)
}

fn read_meta(path: &Path) -> Outcome<MetaInfo> {
    Ok(MetaInfo::decode(&std::fs::read(path)?)?)
}

/// Where an agent is and who, as [`parse`] reads it.
pub(crate) fn place(agent: &Agent) -> String {
    let local = agent.local();
    let id = Digest::from_bytes(*local.id.as_bytes()).hex();
    format!("{} {id}", local.addr)
}

pub(crate) fn parse(words: &[&str]) -> Outcome<Vec<PeerInfo>> {
    let (places, rest) = words.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("each peer is an address and an id".into());
    }
    let peer = |[addr, id]: &[&str; 2]| {
        Ok(PeerInfo {
            id: PeerId::from_bytes(*Digest::from_hex(id)?.as_bytes()),
            addr: addr.parse()?,
            role: PeerRole::Agent,
            zone: None,
        })
    };
    places.iter().map(peer).collect()
}

/// Knows who has the blob, and what it consists of.
pub(crate) struct Named {
    pub(crate) meta: MetaInfo,
    pub(crate) peers: Vec<PeerInfo>,
}

impl Discovery for Named {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let handouts = request.blobs.iter().map(|blob| Handout {
            digest: blob.digest,
            peers: self.peers.clone(),
        });
        Ok(AnnounceReply {
            interval_ms: 1000,
            handouts: handouts.collect(),
        })
    }

    async fn metainfo(&self, _: &Namespace, _: Digest) -> Result<MetaInfo, DiscoveryError> {
        Ok(self.meta.clone())
    }
}
