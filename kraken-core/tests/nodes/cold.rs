//! Blobs that no origin holds whole: what agents get while the origins are still taking them in, from
//! the backend or from an upload.

mod uploads;

use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt as _, stream};
use kraken_core::net::announce::{self, TrackerClient};
use kraken_core::net::http::{HttpClient, HttpServer, serve};
use kraken_core::net::origin::{OriginApi as _, OriginCluster, router};
use kraken_core::net::{MemNetwork, MemTransport};
use kraken_core::origin::RingMember;
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{
    Backend, BackendError, BlobStatus, ByteStream, DurableQueue, MemStore, PieceStore as _,
};
use kraken_core::{Agent, Digest, MetaInfo, Namespace, Origin, PeerId, Tracker};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::common::eventually;

const PIECE: u64 = 256 << 10;
/// 12 pieces and a short one.
const LEN: usize = 12 * PIECE as usize + 1000;

/// A backend with one blob, which gives its bytes up to a gate and counts them.
#[derive(Clone)]
struct Tap {
    digest: Digest,
    bytes: Bytes,
    /// What it says and gives; from the end of `bytes` on, these come again.
    length: u64,
    gate: watch::Sender<u64>,
    given: Arc<AtomicU64>,
    /// Where each read began.
    reads: Arc<Mutex<Vec<u64>>>,
    /// The next read breaks off at this byte.
    breaks: Arc<Mutex<Option<u64>>>,
    /// A byte in the middle is another.
    damaged: Arc<AtomicBool>,
    /// What was written back.
    written: Arc<Mutex<Vec<Digest>>>,
}

impl Tap {
    fn new(seed: u8) -> (Self, MetaInfo) {
        let (bytes, meta) = blob(LEN, seed.into());
        let tap = Self {
            digest: meta.digest(),
            bytes: bytes.into(),
            length: LEN as u64,
            gate: watch::Sender::new(0),
            given: Arc::default(),
            reads: Arc::default(),
            breaks: Arc::default(),
            damaged: Arc::default(),
            written: Arc::default(),
        };
        (tap, meta)
    }

    /// Some of the bytes from `at` on.
    fn part(&self, at: u64, stop: u64) -> Vec<u8> {
        let begin = (at % LEN as u64) as usize;
        let end = (begin + (stop - at) as usize).min(LEN);
        self.bytes[begin..end].to_vec()
    }

    /// Lets the bytes before `end` pass.
    fn open(&self, end: u64) {
        self.gate.send_replace(end);
    }
}

impl Backend for Tap {
    async fn stat(&self, _: &Namespace, digest: Digest) -> Result<Option<u64>, BackendError> {
        Ok((digest == self.digest).then_some(self.length))
    }

    async fn read(
        &self,
        _: &Namespace,
        _: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let Range {
            start: from,
            end: stop,
        } = range;
        let whole = stop.min(self.length);
        self.reads.lock().unwrap().push(from);
        let (tap, end) = (self.clone(), self.breaks.lock().unwrap().take());
        let mut gate = self.gate.subscribe();
        gate.mark_changed();
        Ok(
            stream::try_unfold((tap, gate, from), move |(tap, mut gate, at)| async move {
                if at >= whole {
                    return Ok(None);
                }
                if end.is_some_and(|end| at >= end) {
                    return Err(BackendError::Unavailable("broken for a test".into()));
                }
                let open = *gate.wait_for(|open| *open > at).await.unwrap();
                let stop = open
                    .min(at + 10_000)
                    .min(end.unwrap_or(u64::MAX))
                    .min(whole);
                let mut chunk = tap.part(at, stop);
                let stop = at + chunk.len() as u64;
                if tap.damaged.load(Ordering::SeqCst) && (at..stop).contains(&(5 * PIECE)) {
                    chunk[(5 * PIECE - at) as usize] ^= 1;
                }
                tap.given.fetch_add(stop - at, Ordering::SeqCst);
                Ok(Some((Bytes::from(chunk), (tap, gate, stop))))
            })
            .boxed(),
        )
    }

    async fn write(
        &self,
        _: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        assert_ne!(
            digest, self.digest,
            "what comes from it is not written back"
        );
        let chunks: Vec<_> = bytes.collect().await;
        let found: usize = chunks
            .iter()
            .map(|chunk| chunk.as_ref().unwrap().len())
            .sum();
        assert_eq!(found as u64, length);
        self.written.lock().unwrap().push(digest);
        Ok(())
    }

    async fn delete(&self, _: &Namespace, _: Digest) -> Result<(), BackendError> {
        panic!("nobody deletes it");
    }
}

struct Node {
    origin: Origin,
    store: MemStore,
    shutdown: CancellationToken,
    server: HttpServer,
}

impl Node {
    async fn stop(self) {
        // The other way round, those who read from it would be waited for.
        self.origin.shutdown().await;
        self.shutdown.cancel();
        self.server.stopped().await.unwrap();
    }
}

/// Three origins, a tracker and four agents.
struct Cluster {
    tap: Tap,
    meta: MetaInfo,
    /// In the order in which the ring asks them about the blob.
    origins: Vec<Node>,
    agents: Vec<(Agent, MemStore)>,
    /// A client of all origins.
    cluster: OriginCluster,
    members: Vec<RingMember>,
    network: MemNetwork,
    /// How many transports there were.
    hosts: u8,
    _tracker: Option<(Tracker, HttpServer, CancellationToken)>,
    dir: tempfile::TempDir,
}

impl Cluster {
    async fn start(seed: u8) -> Self {
        let (tap, meta) = Tap::new(seed);
        Self::of(tap, meta).await
    }

    async fn of(tap: Tap, meta: MetaInfo) -> Self {
        let http = HttpClient::new(None).unwrap();
        let held: Vec<_> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addrs: Vec<_> = held.iter().map(|it| it.local_addr().unwrap()).collect();
        drop(held);
        let members: Vec<_> = addrs.iter().enumerate().map(member).collect();
        let mut lab = Self {
            tap,
            origins: Vec::new(),
            agents: Vec::new(),
            cluster: OriginCluster::new(members.clone(), http.clone(), 3),
            members,
            network: MemNetwork::new(),
            hosts: 0,
            _tracker: None,
            dir: tempfile::tempdir().unwrap(),
            meta,
        };
        for name in lab.cluster.clone().owners(&lab.meta.digest()) {
            let node = lab.spawn_origin(&name, MemStore::new());
            lab.origins.push(node);
        }
        let tracker = Tracker::builder(lab.cluster.clone()).spawn();
        let (any, stop) = ("127.0.0.1:0".parse().unwrap(), CancellationToken::new());
        let routes = announce::router(Arc::new(tracker.clone()));
        let server = serve(any, routes, None, stop.clone()).unwrap();
        while tracker.live_origins() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let url = format!("http://{}", server.local_addr());
        lab._tracker = Some((tracker, server, stop));
        for _ in 0..4 {
            let discovery = TrackerClient::new([&url], http.clone()).unwrap();
            let store = MemStore::new();
            let agent = Agent::builder(store.clone(), lab.transport())
                .discovery(discovery)
                .spawn()
                .unwrap();
            lab.agents.push((agent, store));
        }
        lab
    }

    /// An origin of the ring, over what a store holds.
    fn spawn_origin(&mut self, name: &str, store: MemStore) -> Node {
        let http = HttpClient::new(None).unwrap();
        let transport = self.transport();
        let queue = self.dir.path().join(format!("{}.redb", self.hosts));
        let queue = DurableQueue::open(queue).unwrap();
        let origin = Origin::builder(name, store.clone(), transport, self.tap.clone(), queue)
            .ring(self.members.clone(), http)
            .replicas(3)
            .spawn()
            .unwrap();
        let shutdown = CancellationToken::new();
        let routes = router(Arc::new(origin.clone()));
        let index: usize = name.rsplit('-').next().unwrap().parse().unwrap();
        let url = self.members[index].url.to_string();
        let addr = url.trim_start_matches("http://").trim_end_matches('/');
        let server = serve(addr.parse().unwrap(), routes, None, shutdown.clone()).unwrap();
        Node {
            origin,
            store,
            shutdown,
            server,
        }
    }

    fn transport(&mut self) -> MemTransport {
        self.hosts += 1;
        self.network.transport(PeerId::from_bytes([self.hosts; 32]))
    }

    /// Every agent reads from the first byte on, and says what came and how it ended.
    async fn read_all(&self, end: u64) -> Vec<(Vec<u8>, Option<String>)> {
        join_all(
            self.agents
                .iter()
                .map(|(agent, _)| read(agent, self.meta.digest(), end)),
        )
        .await
    }
}

fn member((index, addr): (usize, &SocketAddr)) -> RingMember {
    let url = format!("http://{addr}").parse().unwrap();
    RingMember::new(format!("origin-{index}"), url)
}

async fn read(agent: &Agent, digest: Digest, end: u64) -> (Vec<u8>, Option<String>) {
    let mut bytes = Vec::new();
    let reader = match agent.open(digest).await {
        Ok(reader) => reader,
        Err(error) => return (bytes, Some(error.to_string())),
    };
    let mut stream = Box::pin(reader.stream(0..end));
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => return (bytes, Some(error.to_string())),
        }
    }
    (bytes, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_read_what_has_passed_before_the_backend_has_given_the_rest() {
    let cluster = Cluster::start(1).await;
    let tap = &cluster.tap;
    tap.open(4 * PIECE + 7);
    for (bytes, end) in cluster.read_all(4 * PIECE).await {
        assert_eq!(end, None);
        assert!(bytes == tap.bytes[..4 * PIECE as usize]);
    }
    assert_eq!(tap.given.load(Ordering::SeqCst), 4 * PIECE + 7);
    // The other owners take it in from the first, whoever is asked.
    let ns = Namespace::default();
    for node in &cluster.origins {
        let read = node
            .origin
            .read(&ns, cluster.meta.digest(), Some(PIECE..2 * PIECE))
            .await;
        let chunks: Vec<_> = read.unwrap().body.collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        assert!(bytes == tap.bytes[PIECE as usize..2 * PIECE as usize]);
    }
    tap.open(LEN as u64);
    for (bytes, end) in cluster.read_all(u64::MAX).await {
        assert_eq!(end, None);
        assert!(bytes == tap.bytes);
    }
    for (agent, store) in &cluster.agents {
        agent.fetch(&ns, cluster.meta.digest()).await.unwrap();
        let sealed = BlobStatus::Sealed {
            meta: cluster.meta.clone(),
        };
        assert_eq!(store.status(cluster.meta.digest()).await.unwrap(), sealed);
    }
    for node in &cluster.origins {
        eventually("all owners hold it", async || {
            let status = node.store.status(cluster.meta.digest()).await.unwrap();
            matches!(status, BlobStatus::Sealed { .. })
        })
        .await;
    }
    assert_eq!(
        tap.given.load(Ordering::SeqCst),
        LEN as u64,
        "each byte once"
    );
    assert_eq!(*tap.reads.lock().unwrap(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_turns_out_damaged_is_dropped_everywhere_and_no_reader_ends_well() {
    let cluster = Cluster::start(2).await;
    let tap = &cluster.tap;
    tap.damaged.store(true, Ordering::SeqCst);
    tap.open(8 * PIECE);
    let readers = cluster.read_all(u64::MAX);
    let watched = async {
        eventually("the wrong bytes have spread", async || {
            let status = cluster.agents[0].1.status(tap.digest).await.unwrap();
            matches!(status, BlobStatus::Partial { have, .. } if have.has(5))
        })
        .await;
        tap.open(LEN as u64);
    };
    let (ends, ()) = tokio::join!(readers, watched);
    for (bytes, end) in ends {
        let end = end.expect("no reader ends well");
        assert!(end.contains("do not have the digest"), "{end}");
        assert!(bytes.len() < LEN);
    }
    let stores = cluster.agents.iter().map(|(_, store)| store);
    for store in stores.chain(cluster.origins.iter().map(|node| &node.store)) {
        eventually("nothing of it is kept", async || {
            store.status(tap.digest).await.unwrap() == BlobStatus::Absent
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_breaks_off_is_read_on_from_the_same_byte() {
    let cluster = Cluster::start(3).await;
    let (tap, at) = (&cluster.tap, 3 * PIECE + 777);
    *tap.breaks.lock().unwrap() = Some(at);
    tap.open(LEN as u64);
    for (bytes, end) in cluster.read_all(u64::MAX).await {
        assert_eq!(end, None);
        assert!(bytes == tap.bytes);
    }
    assert_eq!(*tap.reads.lock().unwrap(), [0, at]);
    assert_eq!(tap.given.load(Ordering::SeqCst), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_first_origin_dies_the_next_goes_on_from_what_it_has() {
    let mut cluster = Cluster::start(4).await;
    cluster.tap.open(4 * PIECE);
    cluster.read_all(4 * PIECE).await;
    let second = cluster.origins[1].store.clone();
    let digest = cluster.meta.digest();
    eventually("the second has as much", async || {
        let status = second.status(digest).await.unwrap();
        matches!(status, BlobStatus::Partial { have, .. } if have.count() == 4)
    })
    .await;
    let first = cluster.origins.remove(0);
    first.stop().await;
    cluster.tap.open(LEN as u64);
    for (bytes, end) in cluster.read_all(u64::MAX).await {
        assert_eq!(end, None);
        assert!(bytes == cluster.tap.bytes);
    }
    assert_eq!(*cluster.tap.reads.lock().unwrap(), [0, 4 * PIECE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_100_gb_begins_to_move_with_its_first_piece() {
    let (mut tap, _) = Tap::new(5);
    tap.length = 100_000_000_000;
    // Its name would be known at its end.
    let meta = MetaInfo::open(tap.digest, tap.length).unwrap();
    assert!(32 * u64::from(meta.piece_count()) < 1 << 20);
    let piece = u64::from(meta.piece_size(0));
    let cluster = Cluster::of(tap, meta).await;
    cluster.tap.open(piece + 7);
    for (bytes, end) in cluster.read_all(piece).await {
        assert_eq!((bytes.len() as u64, end), (piece, None));
        assert!(
            bytes
                .chunks(LEN)
                .all(|part| *part == cluster.tap.bytes[..part.len()])
        );
    }
    assert_eq!(cluster.tap.given.load(Ordering::SeqCst), piece + 7);
}
