//! Agents that learn from peers what a blob consists of, because nobody else tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kraken_core::net::{
    Discovery, DiscoveryError, Frame, MemNetwork, MemTransport, NetError, PeerConn as _,
    Transport as _,
};
use kraken_core::proto::{
    AnnounceBlob, AnnounceReply, AnnounceRequest, AnnounceState, Bitfield, Message, PeerInfo,
    PeerRole,
};
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{MemStore, UploadStore as _};
use kraken_core::{Agent, Config, Digest, MetaInfo, Namespace, OpenError, PeerId};
use tokio::io::AsyncReadExt as _;

use crate::common::Local;

/// A discovery whose halves can fail: trackers, and the origins behind them.
#[derive(Clone)]
struct Fickle {
    local: Local,
    trackers: Arc<AtomicBool>,
    origins: Arc<AtomicBool>,
}

impl Discovery for Fickle {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        if !self.trackers.load(Ordering::Relaxed) {
            return Err(DiscoveryError::Unavailable("no tracker answers".into()));
        }
        self.local.announce(request).await
    }

    async fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, DiscoveryError> {
        let trackers = self.trackers.load(Ordering::Relaxed);
        if !trackers || !self.origins.load(Ordering::Relaxed) {
            return Err(DiscoveryError::Unavailable("nobody answers".into()));
        }
        self.local.metainfo(namespace, digest).await
    }
}

struct World {
    network: MemNetwork,
    discovery: Fickle,
}

impl World {
    fn new() -> Self {
        Self {
            network: MemNetwork::new(),
            discovery: Fickle {
                local: Local::new(),
                trackers: Arc::new(AtomicBool::new(true)),
                origins: Arc::new(AtomicBool::new(true)),
            },
        }
    }

    fn agent(&self, number: u8, store: MemStore) -> Agent {
        let mut config = Config::lan();
        config.stall_after = Duration::from_millis(300);
        config.ban = Duration::from_millis(500);
        let transport = self.network.transport(PeerId::from_bytes([number; 32]));
        Agent::builder(store, transport)
            .config(config)
            .discovery(self.discovery.clone())
            .read_patience(Duration::from_secs(20))
            .lookup_patience(Duration::from_secs(5))
            .seed(u64::from(number))
            .spawn()
            .unwrap()
    }

    /// An agent that holds blobs whole and seeds them.
    async fn seeder(&self, number: u8, blobs: &[&[u8]]) -> Agent {
        let store = MemStore::new();
        for bytes in blobs {
            let upload = store.upload_start().await.unwrap();
            let data = bytes.to_vec().into();
            store.upload_append(&upload, 0, data).await.unwrap();
            let meta = MetaInfo::of(bytes);
            store.upload_commit(&upload, meta.digest()).await.unwrap();
            let mut metas = self.discovery.local.metas.lock().unwrap();
            metas.insert(meta.digest(), meta);
        }
        let agent = self.agent(number, store);
        assert_eq!(agent.seed_all().await.unwrap(), blobs.len());
        agent
    }
}

async fn read_all(agent: &Agent, digest: Digest) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = Vec::new();
    let mut reader = agent.open(digest).await.map_err(std::io::Error::other)?;
    reader.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_trackers_dead_neighbours_tell() {
    let world = World::new();
    let (first, _) = blob(700_000, 1);
    // Its metainfo does not fit one part.
    let (second, second_meta) = blob(80 << 20, 2);
    assert!(second_meta.encoded_len() > 2000);
    let seeder = world.seeder(1, &[&first, &second]).await;
    let agent = world.agent(2, MemStore::new());
    // They meet over one blob, and the other is pulled without any tracker.
    read_all(&agent, Digest::of(&first)).await.unwrap();
    world.discovery.trackers.store(false, Ordering::Relaxed);
    let bytes = read_all(&agent, second_meta.digest()).await.unwrap();
    assert!(bytes == second);
    // What nobody has is still not there, and the answer says so in time.
    let missing = agent.open(Digest::of(b"missing")).await;
    assert!(matches!(missing, Err(OpenError::Unavailable { .. })));
    seeder.shutdown().await;
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_origins_dead_those_tell_whom_the_tracker_names() {
    let world = World::new();
    let (bytes, meta) = blob(3_000_000, 3);
    let seeder = world.seeder(1, &[&bytes]).await;
    // A tracker that started anew, and no origin that could tell it.
    world.discovery.origins.store(false, Ordering::Relaxed);
    let agents: Vec<_> = (2..6).map(|it| world.agent(it, MemStore::new())).collect();
    let pulls = agents.iter().map(|agent| read_all(agent, meta.digest()));
    for pulled in futures::future::join_all(pulls).await {
        assert!(pulled.unwrap() == bytes);
    }
    seeder.shutdown().await;
    for agent in agents {
        agent.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pull_learns_the_rest_from_peers_when_the_trackers_die() {
    let world = World::new();
    let (bytes, meta) = blob(3_000_000, 12);
    let seeder = world.seeder(1, &[&bytes]).await;
    // As from an origin that has taken five pieces in.
    let begun = MetaInfo::open(meta.digest(), meta.length()).unwrap();
    let states = (1..=5).map(|piece| meta.state_before(piece));
    let begun = begun.continued(states).unwrap();
    {
        let mut metas = world.discovery.local.metas.lock().unwrap();
        metas.insert(meta.digest(), begun.clone());
    }
    let agent = world.agent(2, MemStore::new());
    let mut reader = agent.open(meta.digest()).await.unwrap();
    let mut first = vec![0; 1000];
    reader.read_exact(&mut first).await.unwrap();
    while reader.pieces().0 < begun.provable() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.discovery.trackers.store(false, Ordering::Relaxed);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    assert!(rest == bytes[1000..] && first == bytes[..1000]);
    seeder.shutdown().await;
    agent.shutdown().await;
}

/// Says that a blob consists of other pieces than it does, and serves these if it has any.
async fn lie(liar: MemTransport, meta: MetaInfo, pieces: Option<Vec<u8>>) {
    let pieces = pieces.map(Bytes::from);
    while let Ok(conn) = liar.accept().await {
        let (meta, pieces) = (meta.clone(), pieces.clone());
        tokio::spawn(async move {
            let (role, contact) = (PeerRole::Agent, None);
            conn.send(Frame::control(Message::Hello { role, contact }))
                .await?;
            loop {
                let answer = match conn.recv().await?.message {
                    Message::AskMetaInfo { digest, offset } => {
                        Message::metainfo_part(digest, &meta.encode(), offset)
                    }
                    Message::Subscribe { digest, .. } if pieces.is_none() => {
                        Message::Unsubscribe { digest }
                    }
                    Message::Subscribe { digest, .. } => Message::Subscribe {
                        digest,
                        piece_length: meta.piece_length(),
                        have: Bitfield::full(meta.piece_count()),
                        is_partial: false,
                    },
                    Message::Request { digest, piece } => {
                        let range = meta.piece_range(piece);
                        let (from, to) = (range.start as usize, range.end as usize);
                        let bytes = pieces.as_ref().map(|it| it.slice(from..to));
                        let payload = bytes.unwrap_or_default();
                        let len = meta.piece_size(piece);
                        let message = Message::Piece { digest, piece, len };
                        let first = false;
                        conn.send(Frame {
                            message,
                            payload,
                            first,
                        })
                        .await?;
                        continue;
                    }
                    _ => continue,
                };
                conn.send(Frame::control(answer)).await?;
            }
            #[expect(unreachable_code, reason = "names the type of the errors")]
            Ok::<_, NetError>(())
        });
    }
}

/// A blob, and what a liar says that it consists of: all but the last piece of another.
struct Lie {
    bytes: Vec<u8>,
    meta: MetaInfo,
    invented: Vec<u8>,
    made_up: MetaInfo,
}

impl Lie {
    fn new(seed: u64) -> Self {
        let ((bytes, meta), (invented, other)) = (blob(3_000_000, seed), blob(3_000_000, seed + 1));
        let states = (1..meta.piece_count()).map(|it| other.state_before(it));
        let made_up = MetaInfo::new(
            meta.digest(),
            meta.length(),
            meta.piece_length(),
            states.collect(),
        );
        Self {
            bytes,
            meta,
            invented,
            made_up: made_up.unwrap(),
        }
    }

    /// Lets the tracker know the liar, and nobody else.
    async fn tell(&self, world: &World, pieces: Option<Vec<u8>>) -> tokio::task::JoinHandle<()> {
        let transport = world.network.transport(PeerId::from_bytes([66; 32]));
        let peer = PeerInfo {
            id: transport.local_id(),
            addr: transport.local_addr(),
            role: PeerRole::Agent,
            zone: None,
        };
        let lying = tokio::spawn(lie(transport, self.made_up.clone(), pieces));
        let blobs = vec![AnnounceBlob {
            namespace: Namespace::default(),
            digest: self.meta.digest(),
            state: AnnounceState::Seeding,
            links: 0,
            progress: None,
            needy: false,
        }];
        let request = AnnounceRequest { peer, blobs };
        world.discovery.announce(request).await.unwrap();
        world.discovery.origins.store(false, Ordering::Relaxed);
        lying
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_what_a_liar_invents() {
    let (world, lie) = (World::new(), Lie::new(6));
    let lying = lie.tell(&world, Some(lie.invented.clone())).await;
    let agent = world.agent(2, MemStore::new());
    let mut reader = agent.open(lie.meta.digest()).await.unwrap();
    // Eleven of twelve pieces fit what it says.
    let invented = async {
        while reader.pieces().0 + 1 < reader.pieces().1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let arrive = tokio::time::timeout(Duration::from_secs(10), invented).await;
    let gone = !reader.is_usable();
    assert!(arrive.is_ok() || gone, "{:?}", reader.pieces());
    let mut bytes = Vec::new();
    let error = reader.read_to_end(&mut bytes).await.unwrap_err();
    assert!(error.to_string().contains("metainfo was wrong"), "{error}");
    assert_eq!(bytes, b"", "not one byte of it was read");
    lying.abort();
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metainfo_that_was_made_up_is_dropped_with_what_it_spoilt() {
    let (world, lie) = (World::new(), Lie::new(4));
    let lying = lie.tell(&world, None).await;
    let (bytes, meta) = (&lie.bytes, &lie.meta);
    let agent = world.agent(2, MemStore::new());
    let reader = agent.open(meta.digest()).await.unwrap();
    // Then comes somebody with the right pieces, which do not fit: all is dropped.
    let seeder = world.seeder(1, &[bytes]).await;
    let error = reader.complete().await.unwrap_err();
    assert!(error.to_string().contains("metainfo was wrong"), "{error}");
    lying.abort();
    // The next attempt begins anew, and the origins are there again.
    world.discovery.origins.store(true, Ordering::Relaxed);
    let again = async {
        while !matches!(read_all(&agent, meta.digest()).await, Ok(read) if read == *bytes) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .unwrap();
    seeder.shutdown().await;
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_said_is_read_as_soon_as_the_discovery_says_the_same() {
    let world = World::new();
    let (bytes, meta) = blob(3_000_000, 9);
    let seeder = world.seeder(1, &[&bytes]).await;
    world.discovery.origins.store(false, Ordering::Relaxed);
    let agent = world.agent(2, MemStore::new());
    let mut reader = agent.open(meta.digest()).await.unwrap();
    while reader.pieces().0 == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.discovery.origins.store(true, Ordering::Relaxed);
    let mut first = vec![0; 1000];
    reader.read_exact(&mut first).await.unwrap();
    assert!(first == bytes[..1000]);
    seeder.shutdown().await;
    agent.shutdown().await;
}
