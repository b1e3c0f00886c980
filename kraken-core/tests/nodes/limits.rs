//! Limits and fairness of agents in one process, on paused time: no second here is a real one.

use std::num::NonZeroU64;
use std::time::Duration;

use kraken_core::net::MemNetwork;
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{BlobStatus, MemStore, PieceStore as _, UploadStore as _};
use kraken_core::{Agent, Digest, Limits, Namespace, PeerId, ReadError};
use tokio::time::Instant;

use crate::common::Known;

const MB: u64 = 1_000_000;

/// One seeder of some blobs, and agents that want them.
struct World {
    network: MemNetwork,
    known: Known,
    seeder: Agent,
}

impl World {
    async fn new(lengths: &[u64]) -> Self {
        let (network, store) = (MemNetwork::new(), MemStore::new());
        let mut known = Known::default();
        for (seed, length) in (1..).zip(lengths) {
            let (bytes, meta) = blob(usize::try_from(*length).unwrap(), seed);
            let upload = store.upload_start().await.unwrap();
            let appended = store.upload_append(&upload, 0, bytes.into()).await;
            appended.unwrap();
            store.upload_commit(&upload, meta.digest()).await.unwrap();
            known.metas.push(meta);
        }
        let transport = network.transport(PeerId::from_bytes([1; 32]));
        let builder = Agent::builder(store, transport).discovery(known.clone());
        let seeder = builder.seed(1).spawn().unwrap();
        assert_eq!(seeder.seed_all().await.unwrap(), lengths.len());
        known.seeders.push(seeder.local().clone());
        Self {
            network,
            known,
            seeder,
        }
    }

    fn agent(&self, number: u8, limits: Limits) -> Agent {
        let transport = self.network.transport(PeerId::from_bytes([number; 32]));
        let builder = Agent::builder(MemStore::new(), transport)
            .discovery(self.known.clone())
            .limits(limits);
        builder.seed(u64::from(number)).spawn().unwrap()
    }

    fn digest(&self, index: usize) -> Digest {
        self.known.metas[index].digest()
    }

    /// Fetches a blob, and says how long it took.
    async fn fetch(&self, agent: &Agent, index: usize) -> Duration {
        let begun = Instant::now();
        let namespace = Namespace::default();
        let fetched = agent.fetch(&namespace, self.digest(index)).await;
        fetched.unwrap();
        begun.elapsed()
    }
}

fn upload(rate: u64) -> Limits {
    Limits::NONE.with_upload(NonZeroU64::new(rate))
}

fn download(rate: u64) -> Limits {
    Limits::NONE.with_download(NonZeroU64::new(rate))
}

/// `took` is what `bytes` take at `rate`, less 2 % of a second, and a little for the connection.
fn assert_took(took: Duration, bytes: u64, rate: u64) {
    let ideal = bytes as f64 / rate as f64;
    let (least, most) = (ideal - 0.02, ideal * 1.02 + 0.1);
    assert!(
        (least..most).contains(&took.as_secs_f64()),
        "{took:?}, not {ideal} s"
    );
}

#[tokio::test(start_paused = true)]
async fn a_seeder_keeps_its_limit_over_all_peers() {
    let world = World::new(&[10 * MB]).await;
    world.seeder.set_limits(upload(10 * MB));
    // Alone, each would have everything within a second.
    let agents: Vec<_> = (2..5)
        .map(|number| world.agent(number, Limits::NONE))
        .collect();
    let fetches = agents.iter().map(|agent| world.fetch(agent, 0));
    let begun = Instant::now();
    futures::future::join_all(fetches).await;
    assert_took(
        begun.elapsed(),
        world.seeder.metrics().bytes_sent(),
        10 * MB,
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_keeps_its_limit_over_all_blobs() {
    let world = World::new(&[10 * MB, 20 * MB]).await;
    let agent = world.agent(2, download(10 * MB));
    let both = futures::future::join(world.fetch(&agent, 0), world.fetch(&agent, 1));
    let (first, second) = both.await;
    assert_took(second, 30 * MB, 10 * MB);
    assert_took(first, 20 * MB, 10 * MB);
}

#[tokio::test(start_paused = true)]
async fn limits_change_while_transfers_run() {
    let world = World::new(&[60 * MB]).await;
    world.seeder.set_limits(upload(10 * MB));
    let agent = world.agent(2, Limits::NONE);
    let change = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.seeder.set_limits(upload(40 * MB));
        assert_eq!(world.seeder.limits(), upload(40 * MB));
    };
    let (took, ()) = futures::future::join(world.fetch(&agent, 0), change).await;
    // 2 s at 10 MB/s, and the rest at 40 MB/s: 3 s.
    assert_took(took, 30 * MB, 10 * MB);
    world.seeder.set_limits(Limits::NONE);
    let agent = world.agent(3, Limits::NONE);
    assert!(world.fetch(&agent, 0).await < Duration::from_secs(1));
}

/// How long a small blob takes, beside a large one and alone.
async fn beside_and_alone(of_seeder: Limits, of_agent: Limits) -> (Duration, Duration) {
    let world = World::new(&[60 * MB, 10 * MB]).await;
    world.seeder.set_limits(of_seeder);
    let agent = world.agent(2, of_agent);
    let large = agent.open(world.digest(0)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = world.fetch(&agent, 1).await;
    let (have, of) = large.pieces();
    assert!(0 < have && have < of, "the large one runs");
    agent.forget(world.digest(0)).await.unwrap();
    let agent = world.agent(3, of_agent);
    (beside, world.fetch(&agent, 1).await)
}

#[tokio::test(start_paused = true)]
async fn a_small_blob_beside_a_large_one_takes_no_longer_than_twice() {
    let (beside, alone) = beside_and_alone(upload(20 * MB), Limits::NONE).await;
    assert_took(alone, 10 * MB, 20 * MB);
    assert!(
        beside <= 2 * alone,
        "upload: {beside:?} beside, {alone:?} alone"
    );
    let (beside, alone) = beside_and_alone(Limits::NONE, download(20 * MB)).await;
    assert_took(alone, 10 * MB, 20 * MB);
    assert!(
        beside <= 2 * alone,
        "download: {beside:?} beside, {alone:?} alone"
    );
}

#[tokio::test(start_paused = true)]
async fn a_paused_fetch_goes_on_from_where_it_was() {
    let world = World::new(&[60 * MB]).await;
    let (digest, namespace, store) = (world.digest(0), Namespace::default(), MemStore::new());
    let transport = world.network.transport(PeerId::from_bytes([2; 32]));
    let builder = Agent::builder(store.clone(), transport).discovery(world.known.clone());
    let agent = builder.limits(download(10 * MB)).seed(2).spawn().unwrap();

    let reader = agent.open(digest).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    agent.pause(digest).await.unwrap();
    assert!(matches!(reader.complete().await, Err(ReadError::Paused(it)) if it == digest));
    // What was on its way may still be written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let BlobStatus::Partial { have, meta } = store.status(digest).await.unwrap() else {
        panic!("its pieces stay, and no more come");
    };
    let sizes = (0..meta.piece_count()).filter(|piece| have.has(*piece));
    let here: u64 = sizes.map(|piece| u64::from(meta.piece_size(piece))).sum();
    assert!(here >= 10 * MB, "{here}");
    let before = agent.metrics().bytes_from_agents();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(agent.metrics().bytes_from_agents(), before);

    agent.fetch(&namespace, digest).await.unwrap();
    let after = agent.metrics().bytes_from_agents();
    assert_eq!(after - before, meta.length() - here);
    // What is whole is not stopped, nor its readers.
    let reader = agent.open(digest).await.unwrap();
    agent.pause(digest).await.unwrap();
    assert!(reader.is_usable());
    agent.pause(Digest::of(b"not opened")).await.unwrap();
}
