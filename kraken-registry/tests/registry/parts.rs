//! An agent's registry, asked for ranges of blobs that it does not hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kraken_core::net::{Discovery, DiscoveryError, MemNetwork};
use kraken_core::storage::{BlobStatus, MemStore, PieceStore as _, UploadStore as _};
use kraken_core::{Agent, Digest, MetaInfo, Namespace, PeerId};
use kraken_proto::{AnnounceReply, AnnounceRequest, Handout, PeerInfo};
use kraken_registry::memory::MemoryTags;
use kraken_registry::pull::{self, PullState};
use reqwest::{Client, Method, Response, StatusCode};

use crate::common::{client, header, serve};

/// 16 pieces of 256 KiB.
const LEN: usize = 4 << 20;
const PIECE: usize = 256 << 10;

/// Names one peer for everything.
#[derive(Clone)]
struct Fixed {
    seeder: Arc<Mutex<Option<PeerInfo>>>,
    metas: BTreeMap<Digest, MetaInfo>,
}

impl Discovery for Fixed {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let peers: Vec<_> = self.seeder.lock().unwrap().iter().cloned().collect();
        let handout = |digest| Handout {
            digest,
            peers: peers.clone(),
        };
        Ok(AnnounceReply {
            interval_ms: 1000,
            handouts: request.blobs.iter().map(|it| handout(it.digest)).collect(),
        })
    }

    async fn metainfo(&self, _: &Namespace, digest: Digest) -> Result<MetaInfo, DiscoveryError> {
        let meta = self.metas.get(&digest).cloned();
        meta.ok_or(DiscoveryError::NotFound(digest))
    }
}

/// A seeder, and an agent with its registry.
struct Mirror {
    bytes: Vec<u8>,
    url: String,
    agent: Agent,
    store: MemStore,
    http: Client,
    digest: Digest,
    _seeder: Agent,
}

impl Mirror {
    async fn start() -> Self {
        let bytes: Vec<_> = (0..LEN as u32 / 4).flat_map(u32::to_be_bytes).collect();
        let meta = MetaInfo::of(&bytes);
        let digest = meta.digest();
        let discovery = Fixed {
            seeder: Arc::default(),
            metas: BTreeMap::from([(digest, meta)]),
        };
        let (full, network) = (MemStore::new(), MemNetwork::new());
        let upload = full.upload_start().await.unwrap();
        let all = bytes.clone().into();
        full.upload_append(&upload, 0, all).await.unwrap();
        full.upload_commit(&upload, digest).await.unwrap();
        let agent = |number: u8, store: MemStore| {
            let transport = network.transport(PeerId::from_bytes([number; 32]));
            let builder = Agent::builder(store, transport).discovery(discovery.clone());
            builder.spawn().unwrap()
        };
        let seeder = agent(1, full);
        seeder.seed_all().await.unwrap();
        *discovery.seeder.lock().unwrap() = Some(seeder.local().clone());
        let store = MemStore::new();
        let agent = agent(2, store.clone());
        let state = PullState::mirror(agent.clone(), MemoryTags::default());
        let base = serve(pull::router(state)).await;
        Self {
            bytes,
            url: format!("{base}/v2/team/app/blobs/{digest}"),
            agent,
            store,
            http: client(),
            digest,
            _seeder: seeder,
        }
    }

    async fn ask(&self, method: Method, range: &str) -> Response {
        let request = self.http.request(method, &self.url);
        request.header("range", range).send().await.unwrap()
    }

    /// Asks for a range and checks what comes.
    async fn part(&self, range: std::ops::Range<usize>) {
        let text = format!("bytes={}-{}", range.start, range.end - 1);
        let response = self.ask(Method::GET, &text).await;
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        let of = format!("bytes {}-{}/{LEN}", range.start, range.end - 1);
        assert_eq!(header(&response, "content-range"), of);
        assert!(response.bytes().await.unwrap() == self.bytes[range]);
    }

    /// How many pieces are here, after what was not asked for has had the time to come.
    async fn held(&self) -> u32 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        match self.store.status(self.digest).await.unwrap() {
            BlobStatus::Absent => 0,
            BlobStatus::Partial { have, .. } => have.count(),
            BlobStatus::Sealed { meta } => meta.piece_count(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_brings_its_pieces_and_a_whole_read_the_rest() {
    let mirror = Mirror::start().await;
    let head = mirror.ask(Method::HEAD, "bytes=0-9").await;
    assert_eq!(header(&head, "content-length"), LEN.to_string());
    for refused in [format!("bytes={LEN}-"), "bytes=9-5".into()] {
        let response = mirror.ask(Method::GET, &refused).await;
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    }
    assert_eq!(mirror.held().await, 0, "nothing was read");
    // The end of a blob is where lazy formats keep their table of contents.
    mirror.part(LEN - 100..LEN).await;
    assert_eq!(mirror.held().await, 1);
    mirror.part(3 * PIECE + 5..4 * PIECE + 5).await;
    assert_eq!(mirror.held().await, 3);
    let response = mirror.http.get(&mirror.url).send().await.unwrap();
    assert!(response.bytes().await.unwrap() == mirror.bytes);
    assert_eq!(mirror.held().await, 16);
    assert_eq!(mirror.agent.metrics().bytes_ahead(), 0);
    assert_eq!(mirror.agent.metrics().bytes_from_agents(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_in_a_row_are_fetched_ahead_in_parallel_too() {
    let mirror = Mirror::start().await;
    for at in (0..8 * PIECE).step_by(2 * PIECE) {
        let halves = [at, at + PIECE].map(|at| mirror.part(at..at + PIECE));
        futures::future::join_all(halves).await;
    }
    // In whatever order they came, nearly as much again as was read.
    let held = mirror.held().await;
    assert!((12..=16).contains(&held), "{held}");
    let ahead = mirror.agent.metrics().bytes_ahead();
    assert!(ahead >= 4 * PIECE as u64, "{ahead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resumes_a_download_wants_the_rest() {
    let mirror = Mirror::start().await;
    let from = 10 * PIECE;
    let response = mirror.ask(Method::GET, &format!("bytes={from}-")).await;
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    assert!(response.bytes().await.unwrap() == mirror.bytes[from..]);
    assert_eq!(mirror.held().await, 16);
}
