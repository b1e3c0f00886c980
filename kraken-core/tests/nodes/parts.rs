//! Blobs that are read in parts: an origin, a tracker over HTTP on loopback and two agents.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt as _;
use kraken_core::net::MemNetwork;
use kraken_core::net::announce::{self, TrackerClient};
use kraken_core::net::http::{HttpClient, HttpServer, serve};
use kraken_core::net::origin::{OriginCluster, router};
use kraken_core::origin::RingMember;
use kraken_core::proto::Message;
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{
    BoxBackend, DurableQueue, MemStore, OpendalBackend, PieceStore as _, UploadStore as _,
};
use kraken_core::{Agent, BlobReader, Limits, MetaInfo, Namespace, Origin, PeerId, Tracker};
use tokio_util::sync::CancellationToken;

use crate::common::eventually;

/// 32 pieces of 512 KiB.
const LEN: usize = 16 << 20;
const PIECE: u64 = 512 << 10;

struct Cluster {
    bytes: Vec<u8>,
    meta: MetaInfo,
    network: MemNetwork,
    http: HttpClient,
    tracker_url: String,
    _origin: Origin,
    _servers: [HttpServer; 2],
    _tracker: Tracker,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start(seed: u64) -> Self {
        let (bytes, meta) = blob(LEN, seed);
        let store = MemStore::new();
        let upload = store.upload_start().await.unwrap();
        let all = bytes.clone().into();
        store.upload_append(&upload, 0, all).await.unwrap();
        store.upload_commit(&upload, meta.digest()).await.unwrap();
        let (network, dir) = (MemNetwork::new(), tempfile::tempdir().unwrap());
        let http = HttpClient::new(None).unwrap();
        let addr = free_addr();
        let url = format!("http://{addr}").parse().unwrap();
        let members = vec![RingMember::new("origin-0", url)];
        let queue = DurableQueue::open(dir.path().join("queue.redb")).unwrap();
        let backend = BoxBackend::new(OpendalBackend::memory());
        let transport = network.transport(PeerId::from_bytes([200; 32]));
        let origin = Origin::builder("origin-0", store, transport, backend, queue)
            .ring(members.clone(), http.clone())
            .replicas(1)
            .spawn()
            .unwrap();
        let stop = CancellationToken::new();
        let server = serve(addr, router(Arc::new(origin.clone())), None, stop.clone()).unwrap();
        let tracker = Tracker::builder(OriginCluster::new(members, http.clone(), 1)).spawn();
        let (any, routes) = ("127.0.0.1:0", announce::router(Arc::new(tracker.clone())));
        let tracking = serve(any.parse().unwrap(), routes, None, stop).unwrap();
        while tracker.live_origins() < 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self {
            bytes,
            meta,
            network,
            http,
            tracker_url: format!("http://{}", tracking.local_addr()),
            _origin: origin,
            _servers: [server, tracking],
            _tracker: tracker,
            _dir: dir,
        }
    }

    fn agent(&self, number: u8, store: MemStore) -> Agent {
        let discovery = TrackerClient::new([&self.tracker_url], self.http.clone()).unwrap();
        let transport = self.network.transport(PeerId::from_bytes([number; 32]));
        let agent = Agent::builder(store, transport).discovery(discovery);
        agent.spawn().unwrap()
    }

    /// Which pieces some peers send to another.
    fn pieces_sent_to(&self, to: u8, from: [u8; 2]) -> Arc<Mutex<Vec<u32>>> {
        let sent = Arc::<Mutex<Vec<u32>>>::default();
        for from in from {
            let (from, to) = (PeerId::from_bytes([from; 32]), PeerId::from_bytes([to; 32]));
            let sent = sent.clone();
            self.network.tamper(from, to, move |frame| {
                if let Message::Piece { piece, .. } = frame.message {
                    sent.lock().unwrap().push(piece);
                }
                Some(frame)
            });
        }
        sent
    }

    async fn parts(&self, agent: &Agent) -> BlobReader {
        let namespace = Namespace::default();
        let opened = agent.open_parts(&namespace, self.meta.digest());
        opened.await.unwrap()
    }

    /// Reads these pieces as a client does that asks for one range.
    async fn read(&self, agent: &Agent, pieces: Range<u64>) {
        let range = pieces.start * PIECE..pieces.end * PIECE;
        let reader = self.parts(agent).await;
        let chunks: Vec<_> = reader.stream(range.clone()).try_collect().await.unwrap();
        let expected = &self.bytes[range.start as usize..range.end as usize];
        assert!(chunks.concat() == expected, "wrong bytes");
    }

    async fn held(&self, agent: &Agent) -> u32 {
        self.parts(agent).await.pieces().0
    }
}

fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn received(agent: &Agent) -> u64 {
    agent.metrics().bytes_from_origins() + agent.metrics().bytes_from_agents()
}

/// What comes unasked would come meanwhile.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_all_that_is_fetched_of_whom_reads_at_random() {
    let cluster = Cluster::start(1).await;
    let agent = cluster.agent(1, MemStore::new());
    for (count, piece) in [20, 3, 28, 11].into_iter().enumerate() {
        cluster.read(&agent, piece..piece + 1).await;
        a_while().await;
        assert_eq!(cluster.held(&agent).await as usize, count + 1);
    }
    cluster.read(&agent, 3..4).await;
    assert_eq!(received(&agent), 4 * PIECE);
    assert_eq!(agent.metrics().bytes_ahead(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_on_is_fed_ahead_and_no_further_than_it_has_read() {
    let cluster = Cluster::start(2).await;
    let agent = cluster.agent(1, MemStore::new());
    for piece in 0..6 {
        cluster.read(&agent, piece..piece + 1).await;
        let read = piece + 1;
        if read > 1 {
            let fed = async || u64::from(cluster.held(&agent).await) == 2 * read;
            eventually("as much again comes ahead", fed).await;
        }
    }
    a_while().await;
    assert_eq!(cluster.held(&agent).await, 12);
    assert_eq!(agent.metrics().bytes_ahead(), 10 * PIECE);
    let text = agent.metrics().text();
    assert!(text.contains("kraken_piece_bytes_ahead_total 5242880"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_read_later_fetches_the_rest_and_others_take_what_is_held() {
    let cluster = Cluster::start(3).await;
    let came = cluster.pieces_sent_to(1, [200, 2]);
    let partial = cluster.agent(1, MemStore::new());
    cluster.read(&partial, 8..16).await;
    cluster.read(&partial, 30..31).await;
    assert_eq!(cluster.held(&partial).await, 9);
    let whole = cluster.agent(2, MemStore::new());
    let (namespace, digest) = (Namespace::default(), cluster.meta.digest());
    whole.fetch(&namespace, digest).await.unwrap();
    assert_eq!(received(&whole), LEN as u64);
    let from_partial = whole.metrics().bytes_from_agents();
    assert!(from_partial > 0, "it took nothing from the other agent");
    a_while().await;
    assert_eq!(cluster.held(&partial).await, 9, "it is offered nothing");
    let mut before = came.lock().unwrap().clone();
    before.sort_unstable();
    assert_eq!(before, (8..16).chain([30]).collect::<Vec<_>>());
    came.lock().unwrap().clear();
    partial.fetch(&namespace, digest).await.unwrap();
    assert_eq!(received(&partial), LEN as u64);
    let again = came.lock().unwrap();
    let again: Vec<_> = again.iter().filter(|it| before.contains(it)).collect();
    assert!(again.is_empty(), "{again:?} came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_before_a_restart_is_read_and_the_rest_stays_away() {
    let cluster = Cluster::start(4).await;
    let store = MemStore::new();
    let agent = cluster.agent(1, store.clone());
    cluster.read(&agent, 4..7).await;
    agent.shutdown().await;
    let agent = cluster.agent(2, store.clone());
    agent.seed_all().await.unwrap();
    cluster.read(&agent, 5..6).await;
    assert_eq!(received(&agent), 0, "it was here");
    cluster.read(&agent, 20..21).await;
    a_while().await;
    assert_eq!(cluster.held(&agent).await, 4);
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_leaves_nothing_to_be_fetched() {
    let cluster = Cluster::start(5).await;
    let agent = cluster.agent(1, MemStore::new());
    // So slow that most of it is missing when the reader goes.
    agent.set_limits(Limits::NONE.with_download(NonZeroU64::new(8_000_000)));
    let reader = cluster.parts(&agent).await;
    let mut stream = Box::pin(reader.stream(0..LEN as u64));
    assert!(stream.try_next().await.unwrap().is_some());
    drop((stream, reader));
    // What was asked for still comes.
    let mut held = 0;
    let settled = async || {
        a_while().await;
        let before = std::mem::replace(&mut held, cluster.held(&agent).await);
        before == held
    };
    eventually("nothing more comes", settled).await;
    assert!((1..32).contains(&held), "{held} pieces came");
}
