//! Origins that die, come back, join and leave: every blob has its copies again, and none is lost.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use kraken_core::net::MemNetwork;
use kraken_core::net::http::{HttpClient, HttpServer, serve};
use kraken_core::net::origin::{OriginCluster, router};
use kraken_core::origin::{HealConfig, RingMember};
use kraken_core::proto::ring::health::HealthConfig;
use kraken_core::storage::testkit::{FlakyBackend, blob};
use kraken_core::storage::{Backend as _, DurableQueue, MemStore, OpendalBackend, PieceStore as _};
use kraken_core::{Digest, Namespace, Origin, PeerId};
use tokio_util::sync::CancellationToken;

const REPLICAS: usize = 3;
const LEN: usize = 20_000;

struct Node {
    origin: Origin,
    store: MemStore,
    shutdown: CancellationToken,
    server: HttpServer,
}

struct Group {
    dir: tempfile::TempDir,
    network: MemNetwork,
    backend: FlakyBackend<OpendalBackend>,
    http: HttpClient,
    addrs: Vec<SocketAddr>,
    /// The nodes that run, by their numbers.
    nodes: BTreeMap<usize, Node>,
}

impl Group {
    /// So many nodes, of which the first `running` run and are the ring.
    fn new(count: usize, running: usize) -> Self {
        let held: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addrs = held.iter().map(|it| it.local_addr().unwrap()).collect();
        drop(held);
        let mut group = Self {
            dir: tempfile::tempdir().unwrap(),
            network: MemNetwork::new(),
            backend: FlakyBackend::new(OpendalBackend::memory()),
            http: HttpClient::new(None).unwrap(),
            addrs,
            nodes: BTreeMap::new(),
        };
        for number in 0..running {
            group.start(number, MemStore::new(), running);
        }
        group
    }

    fn members(&self, count: usize) -> Vec<RingMember> {
        let member = |(number, addr): (usize, &SocketAddr)| {
            let url = format!("http://{addr}").parse().unwrap();
            RingMember::new(format!("origin-{number}"), url)
        };
        self.addrs
            .iter()
            .take(count)
            .enumerate()
            .map(member)
            .collect()
    }

    fn start(&mut self, number: usize, store: MemStore, count: usize) {
        let path = self.dir.path().join(format!("{number}.redb"));
        // A call on the queue that ran while its origin was stopped may still be ending.
        let queue = (0..100).find_map(|_| {
            let opened = DurableQueue::open(&path);
            if opened.is_err() {
                std::thread::sleep(Duration::from_millis(50));
            }
            opened.ok()
        });
        let transport = self
            .network
            .transport(PeerId::from_bytes([number as u8 + 1; 32]));
        let name = format!("origin-{number}");
        let backend = self.backend.clone();
        let mut health = HealthConfig::default();
        health.failures = 2;
        health.answers = 1;
        health.grace = Duration::from_secs(1);
        let mut heal = HealConfig::default();
        heal.every = Duration::from_secs(1);
        let origin = Origin::builder(name, store.clone(), transport, backend, queue.unwrap())
            .ring(self.members(count), self.http.clone())
            .replicas(REPLICAS)
            .retry(Duration::from_millis(100), Duration::from_secs(1))
            .stagger(Duration::from_secs(2))
            .health(health)
            .heal(heal)
            .spawn()
            .unwrap();
        let shutdown = CancellationToken::new();
        let routes = router(Arc::new(origin.clone()));
        let server = serve(self.addrs[number], routes, None, shutdown.clone()).unwrap();
        let node = Node {
            origin,
            store,
            shutdown,
            server,
        };
        self.nodes.insert(number, node);
    }

    /// Ends a node, and gives what it had on its disk.
    async fn stop(&mut self, number: usize) -> MemStore {
        let node = self.nodes.remove(&number).unwrap();
        node.shutdown.cancel();
        node.server.stopped().await.unwrap();
        node.origin.shutdown().await;
        node.store
    }

    fn client(&self, count: usize) -> OriginCluster {
        OriginCluster::new(self.members(count), self.http.clone(), REPLICAS)
    }

    async fn push(&self, client: &OriginCluster, seeds: std::ops::Range<u64>) -> Vec<Digest> {
        let mut pushed = Vec::new();
        for seed in seeds {
            let (bytes, meta) = blob(LEN, seed);
            let put = client
                .put(&Namespace::default(), meta.digest(), bytes.into())
                .await;
            put.unwrap();
            pushed.push(meta.digest());
        }
        pushed
    }

    /// How many running nodes hold a blob.
    async fn copies(&self, digest: Digest) -> usize {
        let mut copies = 0;
        for node in self.nodes.values() {
            copies += usize::from(node.store.list().await.unwrap().contains(&digest));
        }
        copies
    }

    /// Waits until each blob has so many copies; one that its pusher does not own goes from there when
    /// it is in the backend.
    async fn each_has(&self, blobs: &[Digest], copies: std::ops::RangeInclusive<usize>) {
        for _ in 0..1200 {
            let mut all = true;
            for digest in blobs {
                all &= copies.contains(&self.copies(*digest).await);
            }
            if all {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut counts = BTreeMap::<usize, usize>::new();
        for digest in blobs {
            *counts.entry(self.copies(*digest).await).or_default() += 1;
        }
        panic!("not {copies:?} copies of each within 60 s: {counts:?}");
    }

    async fn written_back(&self) {
        for _ in 0..1200 {
            if self
                .nodes
                .values()
                .all(|node| node.origin.queued() == Ok(0))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not written back within 60 s");
    }
}

async fn assert_reads(client: &OriginCluster, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (bytes, meta) = blob(LEN, seed);
        let read = client
            .read(&Namespace::default(), meta.digest(), None)
            .await;
        let chunks: Vec<_> = read.unwrap().body.collect().await;
        let read: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        assert!(read == bytes, "blob {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_for_long_an_upload_is_refused_before_its_bytes_are_sent() {
    let mut group = Group::new(3, 3);
    let client = group.client(3);
    group.stop(0).await;
    group.push(&client, 0..2).await;
    group.stop(1).await;
    let refused = async {
        loop {
            match client.upload_start().await {
                // Those that died may still be back.
                Ok((origin, id)) => client.upload_abort(&origin, &id).await.unwrap(),
                Err(refused) => return refused.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(30), refused).await;
    let refused = refused.unwrap();
    assert!(refused.contains("origin-0, origin-1"), "{refused}");
    group.start(1, MemStore::new(), 3);
    let taken = async {
        while client.upload_start().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let taken = tokio::time::timeout(Duration::from_secs(30), taken).await;
    taken.expect("uploads begin again");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_two_of_five_die_pushes_and_reads_go_on_and_the_copies_are_made_again() {
    let mut group = Group::new(5, 5);
    group.backend.set_down(true);
    let client = group.client(5);
    let mut blobs = group.push(&client, 0..60).await;
    group.each_has(&blobs, 3..=4).await;
    group.stop(1).await;
    group.stop(3).await;
    // At once, before anybody has noticed.
    blobs.extend(group.push(&client, 60..80).await);
    assert_reads(&client, 0..80).await;
    group.each_has(&blobs, 3..=4).await;
    // Those that got a copy so bring it to the backend, too, were they the last to have it.
    group.backend.set_down(false);
    group.written_back().await;
    for digest in &blobs {
        let stored = group
            .backend
            .stat(&Namespace::default(), *digest)
            .await
            .unwrap();
        assert_eq!(stored, Some(LEN as u64));
    }
    assert_reads(&client, 0..80).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_empty_gets_its_share_and_the_stand_ins_let_go() {
    let mut group = Group::new(4, 4);
    let client = group.client(4);
    let mut blobs = group.push(&client, 0..40).await;
    group.stop(2).await;
    blobs.extend(group.push(&client, 40..60).await);
    group.each_has(&blobs, 3..=3).await;
    group.start(2, MemStore::new(), 4);
    let share = |group: &Group| group.nodes[&2].store.clone();
    // Its share of four nodes with three copies is three quarters.
    for _ in 0..1200 {
        if share(&group).list().await.unwrap().len() > 30 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(share(&group).list().await.unwrap().len() > 30);
    group.each_has(&blobs, 3..=3).await;
    assert_reads(&client, 0..60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_gets_its_part_and_reads_go_on_meanwhile() {
    let mut group = Group::new(5, 4);
    let client = group.client(4);
    let blobs = group.push(&client, 0..100).await;
    group.written_back().await;
    group.each_has(&blobs, 3..=3).await;
    let reads = Arc::new(AtomicBool::new(true));
    let (reading, goes_on) = (client.clone(), reads.clone());
    let reader = tokio::spawn(async move {
        let mut rounds = 0;
        while goes_on.load(Ordering::Relaxed) {
            assert_reads(&reading, 0..100).await;
            rounds += 1;
        }
        rounds
    });
    group.start(4, MemStore::new(), 5);
    let members = group.members(5);
    for node in group.nodes.values() {
        node.origin.set_ring(members.clone()).unwrap();
    }
    let new = group.nodes[&4].store.clone();
    for _ in 0..1200 {
        if new.list().await.unwrap().len() >= 40 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    group.each_has(&blobs, 3..=3).await;
    reads.store(false, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 0);
    // Three of five copies of 100 blobs, and five standard deviations of it.
    let moved = new.list().await.unwrap().len();
    assert!((36..=84).contains(&moved), "{moved}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_hands_its_share_over_first() {
    let mut group = Group::new(4, 4);
    let client = group.client(4);
    let blobs = group.push(&client, 0..40).await;
    group.written_back().await;
    group.each_has(&blobs, 3..=3).await;
    let leaving = &group.nodes[&0].origin;
    assert_eq!(leaving.heirs(), ["origin-1", "origin-2", "origin-3"]);
    leaving.leave_ring(true);
    // Who leaves, too, takes nothing: its neighbours hear of it when they ask whether it answers.
    let other = &group.nodes[&1].origin;
    for _ in 0..1200 {
        if other.heirs() == ["origin-2", "origin-3"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(other.heirs(), ["origin-2", "origin-3"]);
    for _ in 0..1200 {
        if group.nodes[&0].store.list().await.unwrap().is_empty() {
            break;
        }
        assert_reads(&client, 0..5).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(leaving.left_to_hand_over().await.unwrap().blobs, 0);
    assert_eq!(group.nodes[&0].store.list().await.unwrap(), []);
    group.stop(0).await;
    group.each_has(&blobs, 3..=3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_three_takes_nothing_that_it_cannot_keep_and_gives_what_it_has() {
    let mut group = Group::new(3, 3);
    let client = group.client(3);
    let blobs = group.push(&client, 0..10).await;
    group.each_has(&blobs, 3..=3).await;
    let stores = [group.stop(1).await, group.stop(2).await];
    let (bytes, meta) = blob(LEN, 10);
    let put = client
        .put(&Namespace::default(), meta.digest(), bytes.into())
        .await;
    assert!(put.is_err_and(|error| error.is_retryable()));
    assert_reads(&client, 0..10).await;
    for (number, store) in (1..).zip(stores) {
        group.start(number, store, 3);
    }
    let more = group.push(&client, 11..15).await;
    group.each_has(&more, 3..=3).await;
    // Also what was refused is at all of them, once one holds it: a client may come back for it.
    group.each_has(&[meta.digest()], 3..=3).await;
}
