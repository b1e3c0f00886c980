//! Limits and fairness over QUIC on the loopback: what every second held, and how long a small blob
//! takes beside a large one. Prints figures; they depend on the machine.
#![expect(clippy::print_stdout, reason = "a measurement that is read by people")]

use std::error::Error;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use kraken_benches::rate::Watched;
use kraken_core::net::{CertAuthority, Discovery, DiscoveryError, Identity, Quic, Transport as _};
use kraken_core::proto::{AnnounceReply, AnnounceRequest, Handout};
use kraken_core::storage::{MemStore, UploadStore as _};
use kraken_core::{Agent, Digest, Limits, MetaInfo, Namespace, PeerInfo};

const MB: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);
type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    // `cargo test --benches` only wants to see it start.
    if std::env::args().all(|argument| argument != "--bench") {
        return Ok(());
    }
    windows(
        upload(20 * MB),
        Limits::NONE,
        "upload 20 MB/s, at the seeder and at 3 leechers",
    )
    .await?;
    windows(
        Limits::NONE,
        download(20 * MB),
        "download 20 MB/s each, 3 leechers",
    )
    .await?;
    live().await?;
    for (of_seeder, of_leecher, what) in [
        (upload(20 * MB), Limits::NONE, "upload limited to 20 MB/s"),
        (
            Limits::NONE,
            download(20 * MB),
            "download limited to 20 MB/s",
        ),
        (upload(100 * MB), Limits::NONE, "upload limited to 100 MB/s"),
        (Limits::NONE, Limits::NONE, "no limit"),
    ] {
        small_beside_large(of_seeder, of_leecher, what).await?;
    }
    Ok(())
}

fn upload(rate: u64) -> Limits {
    Limits::NONE.with_upload(NonZeroU64::new(rate))
}

fn download(rate: u64) -> Limits {
    Limits::NONE.with_download(NonZeroU64::new(rate))
}

/// What passed in each second, and the extremes over all seconds, whenever they begin.
async fn windows(of_seeder: Limits, of_leechers: Limits, what: &str) -> Outcome<()> {
    println!("{what}");
    let cluster = Cluster::start(&[300 * MB]).await?;
    cluster.seeder.0.set_limits(of_seeder);
    let mut leechers = Vec::new();
    for _ in 0..3 {
        leechers.push(cluster.leecher(of_leechers)?);
    }
    for (leecher, _) in &leechers {
        leecher.open(cluster.blobs[0]).await?;
    }
    tokio::time::sleep(SECOND).await;
    let seeder = &cluster.seeder.1;
    let sent = watch(6, || seeder.throttle().upload().passed());
    let one = &leechers[0].1;
    let one_received = watch(6, || one.throttle().download().passed());
    let received = watch(6, || {
        leechers
            .iter()
            .map(|it| it.1.throttle().download().passed())
            .sum()
    });
    let (sent, received, one_received) = tokio::join!(sent, received, one_received);
    println!("  sent          {sent}");
    println!("  received      {received}");
    println!("  first leecher {one_received}");
    Ok(())
}

async fn live() -> Outcome<()> {
    println!("a limit that changes from 20 to 60 to 10 MB/s, at the seeder");
    let cluster = Cluster::start(&[400 * MB]).await?;
    let leecher = cluster.leecher(Limits::NONE)?;
    leecher.0.open(cluster.blobs[0]).await?;
    for rate in [20, 60, 10] {
        cluster.seeder.0.set_limits(upload(rate * MB));
        let sent = watch(3, || cluster.seeder.1.throttle().upload().passed()).await;
        println!("  {rate} MB/s: {sent}");
    }
    Ok(())
}

async fn small_beside_large(of_seeder: Limits, of_leecher: Limits, what: &str) -> Outcome<()> {
    let cluster = Cluster::start(&[900 * MB, 10 * MB]).await?;
    cluster.seeder.0.set_limits(of_seeder);
    let mut times = Vec::new();
    for beside in [false, true, false, true, false, true] {
        let (leecher, _quic) = cluster.leecher(of_leecher)?;
        let large = if beside {
            Some(leecher.open(cluster.blobs[0]).await?)
        } else {
            None
        };
        tokio::time::sleep(if beside { SECOND } else { SECOND / 5 }).await;
        let begun = Instant::now();
        leecher
            .fetch(&Namespace::default(), cluster.blobs[1])
            .await?;
        let took = begun.elapsed();
        let runs = large.is_none_or(|large| large.pieces().0 < large.pieces().1);
        times.push((took, runs));
        leecher.shutdown().await;
    }
    println!("10 MB beside a large blob, {what}");
    for pair in times.chunks(2) {
        let ((alone, _), (beside, runs)) = (pair[0], pair[1]);
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!(
            "  alone {alone:.0?}, beside {beside:.0?}: {ratio:.2} (the large one still ran: {runs})"
        );
    }
    Ok(())
}

/// Every second, and any.
async fn watch(seconds: u32, count: impl Fn() -> u64) -> Watched {
    Watched::of(SECOND * seconds, SECOND, count).await
}

/// A seeder of some blobs.
struct Cluster {
    authority: CertAuthority,
    seeder: (Agent, Quic),
    blobs: Vec<Digest>,
    known: Known,
}

impl Cluster {
    async fn start(lengths: &[u64]) -> Outcome<Self> {
        let authority = CertAuthority::create()?;
        let store = MemStore::new();
        let mut metas = Vec::new();
        for (seed, length) in (1..).zip(lengths) {
            let bytes: Vec<u8> = (0..*length)
                .map(|i| ((i ^ (i >> 9)) * seed) as u8)
                .collect();
            let upload = store.upload_start().await?;
            let digest = Digest::of(&bytes);
            store.upload_append(&upload, 0, bytes.into()).await?;
            metas.push(store.upload_commit(&upload, digest).await?);
        }
        let blobs = metas.iter().map(MetaInfo::digest).collect();
        let mut known = Known {
            seeder: None,
            metas,
        };
        let seeder = spawn(&authority, store, known.clone(), Limits::NONE)?;
        seeder.0.seed_all().await?;
        known.seeder = Some(seeder.0.local().clone());
        Ok(Self {
            authority,
            seeder,
            blobs,
            known,
        })
    }

    fn leecher(&self, limits: Limits) -> Outcome<(Agent, Quic)> {
        spawn(&self.authority, MemStore::new(), self.known.clone(), limits)
    }
}

fn spawn(
    authority: &CertAuthority,
    store: MemStore,
    known: Known,
    limits: Limits,
) -> Outcome<(Agent, Quic)> {
    let (cert, key) = authority.issue("agent", &[])?;
    let identity = Identity::from_pem(&cert, &key, &authority.to_pem().0)?;
    let quic = Quic::bind("127.0.0.1:0".parse()?, &identity)?;
    let builder = Agent::builder(store, quic.clone()).discovery(known);
    Ok((builder.limits(limits).spawn()?, quic))
}

/// Knows the seeder, and what the blobs consist of.
#[derive(Clone)]
struct Known {
    seeder: Option<PeerInfo>,
    metas: Vec<MetaInfo>,
}

impl Discovery for Known {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let handouts = request.blobs.iter().map(|blob| Handout {
            digest: blob.digest,
            peers: self.seeder.iter().cloned().collect(),
        });
        Ok(AnnounceReply {
            interval_ms: 1000,
            handouts: handouts.collect(),
        })
    }

    async fn metainfo(&self, _: &Namespace, digest: Digest) -> Result<MetaInfo, DiscoveryError> {
        let known = self.metas.iter().find(|meta| meta.digest() == digest);
        known.cloned().ok_or(DiscoveryError::NotFound(digest))
    }
}
