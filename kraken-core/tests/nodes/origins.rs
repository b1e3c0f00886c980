//! Three origins over HTTP on loopback: copies, quorum, misses, and the backend behind them.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kraken_core::net::MemNetwork;
use kraken_core::net::http::{ApiError, HttpClient, HttpServer, serve};
use kraken_core::net::origin::{Copies, OriginApi as _, OriginClient, OriginCluster, router};
use kraken_core::origin::RingMember;
use kraken_core::storage::backend::{Route, RoutedBackend};
use kraken_core::storage::testkit::{FlakyBackend, blob};
use kraken_core::storage::{Backend as _, BoxBackend, DurableQueue, MemStore, OpendalBackend};
use kraken_core::{Namespace, Origin, PeerId};
use tokio_util::sync::CancellationToken;

use crate::common::eventually;

struct Node {
    origin: Origin,
    store: MemStore,
    shutdown: CancellationToken,
    server: HttpServer,
}

struct Group {
    dir: tempfile::TempDir,
    network: MemNetwork,
    backend: FlakyBackend<BoxBackend>,
    http: HttpClient,
    addrs: Vec<SocketAddr>,
    dead_after: Duration,
}

impl Group {
    fn new(count: usize) -> Self {
        Self::over(BoxBackend::new(OpendalBackend::memory()), count)
    }

    fn over(backend: BoxBackend, count: usize) -> Self {
        let held: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        Self {
            dir: tempfile::tempdir().unwrap(),
            network: MemNetwork::new(),
            backend: FlakyBackend::new(backend),
            http: HttpClient::new(None).unwrap(),
            addrs: held
                .iter()
                .map(|listener| listener.local_addr().unwrap())
                .collect(),
            dead_after: Duration::from_secs(3600),
        }
    }

    fn members(&self) -> Vec<RingMember> {
        let member = |(index, addr): (usize, &SocketAddr)| {
            let url = format!("http://{addr}").parse().unwrap();
            RingMember::new(format!("origin-{index}"), url)
        };
        self.addrs.iter().enumerate().map(member).collect()
    }

    fn start(&self, index: usize, store: MemStore) -> Node {
        let path = self.dir.path().join(format!("{index}.redb"));
        // A call on the queue that ran while its origin was stopped may still be ending.
        let mut attempts = (0..100)
            .map(|_| DurableQueue::open(&path))
            .inspect(|attempt| {
                if attempt.is_err() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        let queue = attempts
            .find_map(Result::ok)
            .expect("the queue is free within 5 s");
        let transport = self
            .network
            .transport(PeerId::from_bytes([index as u8 + 1; 32]));
        let name = format!("origin-{index}");
        let origin = Origin::builder(name, store.clone(), transport, self.backend.clone(), queue)
            .ring(self.members(), self.http.clone())
            .replicas(3)
            .zone(format!("rack-{index}").parse().unwrap())
            .retry(Duration::from_millis(100), Duration::from_secs(2))
            .dead_after(self.dead_after)
            .spawn()
            .unwrap();
        let shutdown = CancellationToken::new();
        let routes = router(Arc::new(origin.clone()));
        let server = serve(self.addrs[index], routes, None, shutdown.clone()).unwrap();
        Node {
            origin,
            store,
            shutdown,
            server,
        }
    }

    fn client(&self) -> OriginCluster {
        OriginCluster::new(self.members(), self.http.clone(), 3)
    }
}

impl Node {
    async fn stop(self) -> MemStore {
        self.shutdown.cancel();
        self.server.stopped().await.unwrap();
        self.origin.shutdown().await;
        self.store
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_all_have_is_brought_to_another_namespace_by_all() {
    let group = Group::new(3);
    let nodes: Vec<_> = (0..3)
        .map(|index| group.start(index, MemStore::new()))
        .collect();
    let client = group.client();
    group.backend.set_down(true);
    let (bytes, meta) = blob(10_000, 1);
    for namespace in ["one/app", "two/app"] {
        let namespace: Namespace = namespace.parse().unwrap();
        let put = client.put(&namespace, meta.digest(), bytes.clone().into());
        put.await.unwrap();
        for node in &nodes {
            let tasks = node.origin.waiting_tasks(10).await.unwrap();
            let key = format!("{} {namespace}", meta.digest());
            assert!(
                tasks.iter().any(|task| task.key == key),
                "{namespace}: {tasks:?}"
            );
        }
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_tells_its_zone() {
    let group = Group::new(2);
    let node = group.start(1, MemStore::new());
    let client = OriginClient::new(group.members()[1].url.clone(), group.http.clone());
    let peer = client.peer().await.unwrap();
    assert_eq!(peer.zone, Some("rack-1".parse().unwrap()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_at_every_owner_and_reaches_the_backend_once() {
    let group = Group::new(3);
    let nodes: Vec<_> = (0..3)
        .map(|index| group.start(index, MemStore::new()))
        .collect();
    let (bytes, meta) = blob(2_000_000, 1);
    let ns = Namespace::default();
    let cluster = group.client();
    assert!(matches!(
        cluster.stat(&ns, meta.digest()).await,
        Err(ApiError::NotFound)
    ));
    assert_eq!(
        cluster
            .put(&ns, meta.digest(), bytes.clone().into())
            .await
            .unwrap(),
        meta
    );
    for node in &nodes {
        let held = node
            .origin
            .stat(&ns, meta.digest(), Copies::Here)
            .await
            .unwrap();
        assert_eq!(held, Some(meta.length()));
    }
    eventually("written back", async || group.backend.writes() == 1).await;
    let read = cluster
        .read(&ns, meta.digest(), Some(1_000_000..1_000_010))
        .await
        .unwrap();
    let chunks: Vec<_> = read.body.map(|chunk| chunk.unwrap()).collect().await;
    assert_eq!(chunks.concat(), &bytes[1_000_000..1_000_010]);
    // The copies at the other origins still wait for their turn, so that a blob may not go yet.
    let refused = nodes[0].origin.remove(meta.digest()).await;
    let waits = nodes[0].origin.queued().unwrap() > 0;
    assert_eq!(
        waits,
        matches!(refused, Err(ApiError::Conflict(_))),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_away_gets_its_copy_and_two_are_too_many() {
    let group = Group::new(3);
    let (first, second) = (
        group.start(0, MemStore::new()),
        group.start(1, MemStore::new()),
    );
    let (bytes, meta) = blob(600_000, 2);
    let ns = Namespace::default();
    let upload = first.origin.upload_start().await.unwrap();
    first
        .origin
        .upload_append(&upload, 0, bytes.clone().into())
        .await
        .unwrap();
    first
        .origin
        .upload_commit(&upload, &ns, meta.digest())
        .await
        .unwrap();
    assert_eq!(
        second
            .origin
            .stat(&ns, meta.digest(), Copies::Here)
            .await
            .unwrap(),
        Some(meta.length())
    );
    // With one of three silent, what does not exist is still known not to exist.
    let nowhere = kraken_core::Digest::of(b"nowhere");
    assert!(matches!(
        first.origin.metainfo(&ns, nowhere).await,
        Err(ApiError::NotFound)
    ));
    assert!(matches!(
        group.client().stat(&ns, nowhere).await,
        Err(ApiError::NotFound)
    ));

    let third = group.start(2, MemStore::new());
    eventually("a copy at the owner that was away", async || {
        third
            .origin
            .stat(&ns, meta.digest(), Copies::Here)
            .await
            .unwrap()
            .is_some()
    })
    .await;

    second.stop().await;
    third.stop().await;
    let (bytes, meta) = blob(300_000, 3);
    let upload = first.origin.upload_start().await.unwrap();
    first
        .origin
        .upload_append(&upload, 0, bytes.into())
        .await
        .unwrap();
    let refused = first
        .origin
        .upload_commit(&upload, &ns, meta.digest())
        .await;
    assert!(
        matches!(refused, Err(ApiError::Unavailable(_))),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_fetched_once_however_many_ask() {
    let group = Group::new(3);
    let nodes: Vec<_> = (0..3)
        .map(|index| group.start(index, MemStore::new()))
        .collect();
    let (bytes, meta) = blob(5_000_000, 4);
    let ns = Namespace::default();
    let body = futures::stream::iter([Ok(bytes.into())]).boxed();
    let backend = group.backend.inner();
    kraken_core::storage::Backend::write(backend, &ns, meta.digest(), meta.length(), body)
        .await
        .unwrap();
    let asks = (0..20).map(|_| nodes[0].origin.metainfo(&ns, meta.digest()));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.unwrap(), meta);
    }
    assert_eq!(
        (group.backend.reads(), nodes[0].origin.backend_reads()),
        (1, 1)
    );
    // Another origin takes it from the first, not from the backend.
    assert_eq!(
        nodes[1].origin.metainfo(&ns, meta.digest()).await.unwrap(),
        meta
    );
    assert_eq!(group.backend.reads(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_outage_and_a_restart_lose_nothing() {
    let group = Group::new(1);
    let node = group.start(0, MemStore::new());
    group.backend.set_down(true);
    let (bytes, meta) = blob(1_000_000, 5);
    let ns = Namespace::default();
    group
        .client()
        .put(&ns, meta.digest(), bytes.into())
        .await
        .unwrap();
    assert!(matches!(
        node.origin
            .stat(&ns, kraken_core::Digest::of(b"?"), Copies::Coming)
            .await,
        Err(ApiError::Behind { .. })
    ));
    let store = node.stop().await;
    let node = group.start(0, store);
    assert_eq!(node.origin.queued().unwrap(), 1);
    group.backend.set_down(false);
    eventually("written back", async || node.origin.queued().unwrap() == 0).await;
    assert_eq!(group.backend.writes(), 1);
    node.origin.remove(meta.digest()).await.unwrap();
    assert_eq!(
        node.origin.metainfo(&ns, meta.digest()).await.unwrap(),
        meta,
        "back from the backend"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_uploads_leave_nothing() {
    let group = Group::new(1);
    let node = group.start(0, MemStore::new());
    let ns = Namespace::default();
    let client = OriginClient::new(group.members()[0].url.clone(), group.http.clone());
    let (bytes, meta) = blob(400_000, 6);
    let upload = client.upload_start().await.unwrap();
    let body = || futures::stream::iter([Ok(bytes.clone().into())]).boxed();
    // So short that the connection is good for the next request, though nobody reads it.
    let ahead = futures::stream::iter([Ok("ahead".into())]).boxed();
    let ahead = client.upload_append(&upload, 7, ahead).await;
    assert!(
        matches!(ahead, Err(ApiError::RangeInvalid { len: 0 })),
        "{ahead:?}"
    );
    client.upload_append(&upload, 0, body()).await.unwrap();
    let other = kraken_core::Digest::of(b"other");
    let wrong = client.upload_commit(&upload, &ns, other).await;
    assert!(matches!(wrong, Err(ApiError::BadRequest(_))), "{wrong:?}");
    assert!(matches!(
        client.upload_len(&upload).await,
        Err(ApiError::NotFound)
    ));
    for digest in [other, meta.digest()] {
        assert_eq!(
            node.origin.stat(&ns, digest, Copies::Coming).await.unwrap(),
            None
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_refused_where_nothing_is_written() {
    let open = Route {
        pattern: "^open/".parse().unwrap(),
        backend: BoxBackend::new(OpendalBackend::memory()),
        must_ready: false,
    };
    let group = Group::over(BoxBackend::new(RoutedBackend::new(vec![open])), 1);
    let node = group.start(0, MemStore::new());
    let (bytes, meta) = blob(400_000, 7);
    let (open, closed): (Namespace, Namespace) =
        ("open/a".parse().unwrap(), "closed/a".parse().unwrap());
    let cluster = group.client();
    let put = |ns| cluster.put(ns, meta.digest(), bytes.clone().into());
    let refused = put(&closed).await;
    assert!(
        matches!(&refused, Err(ApiError::Forbidden(why)) if why.contains("closed/a")),
        "{refused:?}"
    );
    let known = node
        .origin
        .upload_start_known(&closed, meta.digest(), 400_000);
    assert!(matches!(known.await, Err(ApiError::Forbidden(_))));
    assert_eq!(node.origin.queued().unwrap(), 0);
    put(&open).await.unwrap();
    eventually("written back", async || group.backend.writes() == 1).await;
}

/// A thousand pushes while the backend is down, and two origins that are restarted meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pushes_into_an_outage_are_each_written_once() {
    const PUSHES: u64 = 1000;
    let group = Group::new(3);
    group.backend.set_down(true);
    let mut nodes: Vec<_> = (0..3)
        .map(|index| Some(group.start(index, MemStore::new())))
        .collect();
    let ns = Namespace::default();
    for part in 0..3 {
        let cluster = group.client();
        let numbers = (0..PUSHES).filter(|number| number % 3 == part);
        let pushes = numbers.map(|number| {
            let (bytes, meta) = blob(2_000 + number as usize, number);
            let (cluster, ns) = (&cluster, &ns);
            async move { cluster.put(ns, meta.digest(), bytes.into()).await.unwrap() }
        });
        let pushed = futures::stream::iter(pushes).buffer_unordered(8);
        assert!(pushed.count().await > 300);
        if part < 2 {
            let index = part as usize;
            let store = nodes[index].take().unwrap().stop().await;
            nodes[index] = Some(group.start(index, store));
        }
    }
    assert_eq!(group.backend.writes(), 0);
    group.backend.set_down(false);
    // The other owners of each blob look later, and find it written.
    eventually("written back", async || {
        let listed = group.backend.inner().list(&ns, None, 2_000).await;
        listed.unwrap().len() as u64 == PUSHES
    })
    .await;
    for number in 0..PUSHES {
        let (bytes, meta) = blob(2_000 + number as usize, number);
        let length = group
            .backend
            .inner()
            .stat(&ns, meta.digest())
            .await
            .unwrap();
        assert_eq!(length, Some(bytes.len() as u64), "blob {number}");
    }
    let writes = group.backend.writes();
    assert!(writes <= PUSHES + PUSHES / 100, "{writes} writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_vain_for_too_long_is_put_aside_and_its_blob_stays() {
    let mut group = Group::new(1);
    group.dead_after = Duration::from_millis(300);
    group.backend.set_down(true);
    let node = group.start(0, MemStore::new());
    let (bytes, meta) = blob(400_000, 8);
    let ns = Namespace::default();
    let put = group.client();
    put.put(&ns, meta.digest(), bytes.into()).await.unwrap();
    let counts = async || node.origin.task_counts().await.unwrap();
    eventually("given up", async || counts().await == (0, 1)).await;
    let text = node.origin.metrics().text();
    assert!(text.contains("kraken_tasks_dead 1"), "{text}");
    let refused = node.origin.remove(meta.digest()).await;
    assert!(matches!(refused, Err(ApiError::Conflict(_))), "{refused:?}");
    group.backend.set_down(false);
    let dead = node.origin.dead_tasks(None, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert!(node.origin.revive_task(dead[0].id).await.unwrap());
    assert!(!node.origin.revive_task(dead[0].id).await.unwrap());
    assert!(node.origin.metrics().text().contains("kraken_tasks_dead 0"));
    eventually("written back", async || group.backend.writes() == 1).await;
    eventually("done", async || counts().await == (0, 0)).await;
    node.origin.remove(meta.digest()).await.unwrap();
}
