//! Agents in one process: the real driver, store and scheduler over a network in memory.

use std::time::Duration;

use futures::StreamExt as _;
use kraken_core::net::{Discovery, DiscoveryError, MemNetwork};
use kraken_core::proto::{AnnounceReply, AnnounceRequest, Message};
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{BlobStatus, MemStore, PieceStore as _, UploadStore as _};
use kraken_core::{
    Agent, Config, Digest, Limits, MetaInfo, Namespace, OpenError, PeerId, ReadError, SpawnError,
};
use tokio::io::AsyncReadExt as _;

use crate::common::Local;

struct World {
    network: MemNetwork,
    discovery: Local,
}

impl World {
    fn new() -> Self {
        Self {
            network: MemNetwork::new(),
            discovery: Local::new(),
        }
    }

    fn agent(&self, number: u8, store: MemStore) -> Agent {
        // A lost piece is noticed sooner than in a data centre: the network here has no delay.
        let mut config = Config::lan();
        config.stall_after = Duration::from_millis(300);
        config.drop_after = Duration::from_secs(2);
        let transport = self.network.transport(PeerId::from_bytes([number; 32]));
        Agent::builder(store, transport)
            .config(config)
            .discovery(self.discovery.clone())
            .read_patience(Duration::from_secs(20))
            .lookup_patience(Duration::from_millis(300))
            .seed(u64::from(number))
            .spawn()
            .unwrap()
    }

    /// An agent that holds the blob whole and seeds it.
    async fn seeder(&self, number: u8, bytes: &[u8], meta: &MetaInfo) -> Agent {
        let store = MemStore::new();
        let upload = store.upload_start().await.unwrap();
        store
            .upload_append(&upload, 0, bytes.to_vec().into())
            .await
            .unwrap();
        store.upload_commit(&upload, meta.digest()).await.unwrap();
        self.discovery
            .metas
            .lock()
            .unwrap()
            .insert(meta.digest(), meta.clone());
        let agent = self.agent(number, store);
        assert_eq!(agent.seed_all().await.unwrap(), 1);
        agent
    }
}

async fn read_all(agent: &Agent, digest: Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    agent
        .open(digest)
        .await
        .unwrap()
        .read_to_end(&mut bytes)
        .await
        .unwrap();
    bytes
}

/// Tells what is announced, and knows no metainfo but this one.
#[derive(Clone)]
struct Listening {
    meta: MetaInfo,
    announces: tokio::sync::mpsc::UnboundedSender<AnnounceRequest>,
}

impl Discovery for Listening {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let _ = self.announces.send(request);
        Err(DiscoveryError::Unavailable("it only listens".into()))
    }

    async fn metainfo(&self, _: &Namespace, _: Digest) -> Result<MetaInfo, DiscoveryError> {
        Ok(self.meta.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_announces_its_zone() {
    let (_, meta) = blob(1_000_000, 1);
    let (announces, mut announced) = tokio::sync::mpsc::unbounded_channel();
    let transport = MemNetwork::new().transport(PeerId::from_bytes([1; 32]));
    let agent = Agent::builder(MemStore::new(), transport)
        .discovery(Listening {
            meta: meta.clone(),
            announces,
        })
        .zone("rack-17".parse().unwrap())
        .spawn()
        .unwrap();
    let reader = agent.open(meta.digest()).await.unwrap();
    let request = announced.recv().await.unwrap();
    assert_eq!(request.peer.zone, Some("rack-17".parse().unwrap()));
    assert_eq!(&request.peer, agent.local());
    drop(reader);
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_hands_over_what_nobody_else_has() {
    let world = World::new();
    let (bytes, meta) = blob(16_000_000, 5);
    let seeder = world.seeder(1, &bytes, &meta).await;
    // So slow that nobody is done before it goes.
    let slow = std::num::NonZeroU64::new(10_000_000);
    seeder.set_limits(Limits::NONE.with_upload(slow));
    let others = [2, 3].map(|number| world.agent(number, MemStore::new()));
    let reads = others.iter().map(|agent| read_all(agent, meta.digest()));
    let reads = futures::future::join_all(reads);
    let going = async {
        while others
            .iter()
            .any(|it| it.metrics().bytes_from_agents() == 0)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = seeder.hand_over(Duration::from_secs(20)).await;
        seeder.shutdown().await;
        left
    };
    let (reads, left) = tokio::join!(reads, going);
    assert_eq!(left, 0);
    assert!(reads.iter().all(|read| *read == bytes), "wrong bytes");
    let sent = seeder.metrics().bytes_sent();
    assert!(sent < meta.length() * 2, "{sent} bytes are two copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn six_agents_fetch_from_each_other() {
    let world = World::new();
    let (bytes, meta) = blob(6_000_000, 1);
    let seeder = world.seeder(1, &bytes, &meta).await;
    let agents: Vec<_> = (2..8)
        .map(|number| world.agent(number, MemStore::new()))
        .collect();
    let reads = agents.iter().map(|agent| read_all(agent, meta.digest()));
    for read in futures::future::join_all(reads).await {
        assert!(read == bytes, "wrong bytes");
    }
    let fetched: u64 = agents
        .iter()
        .map(|agent| agent.metrics().bytes_from_agents())
        .sum();
    assert_eq!(
        fetched,
        6 * meta.length(),
        "every piece is fetched once by each"
    );
    assert!(
        seeder.metrics().bytes_sent() < fetched,
        "the agents served each other"
    );
    let text = agents[0].metrics().text();
    assert!(
        text.contains("kraken_piece_bytes_from_agents_total 6000000"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_bytes_while_the_last_piece_is_missing() {
    let world = World::new();
    let (bytes, meta) = blob(1_500_000, 2);
    let seeder = world.seeder(1, &bytes, &meta).await;
    let agent = world.agent(2, MemStore::new());
    let (from, to) = (seeder.local().id, agent.local().id);
    let last = meta.piece_count() - 1;
    world
        .network
        .tamper(from, to, move |frame| match frame.message {
            Message::Piece { piece, .. } if piece == last => None,
            _ => Some(frame),
        });
    let reader = agent.open(meta.digest()).await.unwrap();
    let cut = meta.piece_range(last).start;
    let mut stream = Box::pin(reader.stream(0..u64::MAX));
    let mut read = Vec::new();
    while (read.len() as u64) < cut {
        read.extend_from_slice(&stream.next().await.unwrap().unwrap());
    }
    assert!(read == bytes[..read.len()] && (reader.pieces().0) == last);
    world.network.mend(from, to);
    // Its only holder is dropped as silent, met again, and asked again.
    while let Some(chunk) = stream.next().await {
        read.extend_from_slice(&chunk.unwrap());
    }
    assert!(read == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_cut_to_the_blob() {
    let world = World::new();
    let (bytes, meta) = blob(700_000, 3);
    let _seeder = world.seeder(1, &bytes, &meta).await;
    let agent = world.agent(2, MemStore::new());
    let reader = agent.open(meta.digest()).await.unwrap();
    for range in [
        0..0,
        5..6,
        262_143..262_145,
        600_000..u64::MAX,
        700_000..800_000,
    ] {
        let chunks: Vec<_> = reader.stream(range.clone()).collect().await;
        let read: Vec<u8> = chunks
            .into_iter()
            .flat_map(|chunk| chunk.unwrap())
            .collect();
        let (start, end) = (
            range.start.min(700_000) as usize,
            range.end.min(700_000) as usize,
        );
        assert!(read == bytes[start..end], "{range:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_caught_and_the_blob_comes_from_others() {
    let world = World::new();
    let (bytes, meta) = blob(4_000_000, 4);
    let liar = world.seeder(1, &bytes, &meta).await;
    let _honest = world.seeder(2, &bytes, &meta).await;
    let agent = world.agent(3, MemStore::new());
    world
        .network
        .tamper(liar.local().id, agent.local().id, |mut frame| {
            if !frame.payload.is_empty() {
                let mut wrong = frame.payload.to_vec();
                wrong[17] ^= 1;
                frame.payload = wrong.into();
            }
            Some(frame)
        });
    assert!(read_all(&agent, meta.digest()).await == bytes);
    let metrics = agent.metrics();
    assert_eq!(metrics.peers_banned(), 1);
    assert_eq!(metrics.pieces_rejected(), 1, "its first piece gave it away");
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_survive_a_restart() {
    let world = World::new();
    let (bytes, meta) = blob(3_000_000, 5);
    let seeder = world.seeder(1, &bytes, &meta).await;
    let store = MemStore::new();
    let agent = world.agent(2, store.clone());
    let withheld = meta.piece_count() - 1;
    world.network.tamper(
        seeder.local().id,
        agent.local().id,
        move |frame| match frame.message {
            Message::Piece { piece, .. } if piece == withheld => None,
            _ => Some(frame),
        },
    );
    let reader = agent.open(meta.digest()).await.unwrap();
    while reader.pieces().0 < withheld {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(reader);
    agent.shutdown().await;
    let BlobStatus::Partial { have, .. } = store.status(meta.digest()).await.unwrap() else {
        panic!("the blob should be partial");
    };
    assert_eq!(have.count(), withheld);
    let agent = world.agent(3, store);
    assert!(read_all(&agent, meta.digest()).await == bytes);
    // The reader may have the last bytes a moment before they are counted.
    let fetched = || agent.metrics().bytes_from_agents();
    let counted = async {
        while fetched() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted)
        .await
        .unwrap();
    let missing = u64::from(meta.piece_size(withheld));
    assert_eq!(fetched(), missing, "only what was missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said_clearly() {
    let world = World::new();
    let agent = world.agent(2, MemStore::new());
    let nowhere = Digest::of(b"nowhere");
    assert!(
        matches!(agent.open(nowhere).await, Err(OpenError::NotFound(digest)) if digest == nowhere)
    );
    assert_eq!(
        agent.stat(&Namespace::default(), nowhere).await.unwrap(),
        None
    );
    let (bytes, meta) = blob(900_000, 6);
    // Known, but nobody has it: the reader waits, until the blob is forgotten.
    world
        .discovery
        .metas
        .lock()
        .unwrap()
        .insert(meta.digest(), meta.clone());
    assert_eq!(
        agent
            .stat(&Namespace::default(), meta.digest())
            .await
            .unwrap(),
        Some(bytes.len() as u64)
    );
    let reader = agent.open(meta.digest()).await.unwrap();
    let waiting = tokio::spawn(async move { reader.complete().await });
    agent.forget(meta.digest()).await.unwrap();
    assert!(matches!(
        waiting.await.unwrap(),
        Err(ReadError::Gone { digest, .. }) if digest == meta.digest()
    ));
    agent.shutdown().await;
    assert!(matches!(
        agent.open(meta.digest()).await,
        Err(OpenError::Stopped)
    ));
    // Also of a blob that it would have to look up: whoever tries again would do so for ever.
    assert!(matches!(agent.open(nowhere).await, Err(OpenError::Stopped)));
    assert!(!agent.alive().await);
}

#[test]
fn outside_of_a_runtime_an_agent_is_refused() {
    let transport = MemNetwork::new().transport(PeerId::from_bytes([1; 32]));
    let builder = Agent::builder(MemStore::new(), transport).discovery(Local::new());
    assert!(matches!(builder.spawn(), Err(SpawnError::NoRuntime)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_blob_is_complete_at_once() {
    let world = World::new();
    let meta = MetaInfo::of(b"");
    world
        .discovery
        .metas
        .lock()
        .unwrap()
        .insert(meta.digest(), meta.clone());
    let agent = world.agent(2, MemStore::new());
    assert!(read_all(&agent, meta.digest()).await.is_empty());
    agent
        .fetch(&Namespace::default(), meta.digest())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_handle_ends_the_agent() {
    let world = World::new();
    let (bytes, meta) = blob(600_000, 7);
    let seeder = world.seeder(1, &bytes, &meta).await;
    let agent = world.agent(2, MemStore::new());
    let reader = agent.open(meta.digest()).await.unwrap();
    drop(seeder);
    drop(agent);
    // Whatever had come is read; then the reader is told, instead of waiting for ever.
    let ended = tokio::time::timeout(Duration::from_secs(10), reader.complete()).await;
    assert!(matches!(
        ended.expect("it ends"),
        Ok(()) | Err(ReadError::Stopped)
    ));
}
