//! Garbage goes from origins and from the storages behind them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kraken_core::net::MemNetwork;
use kraken_core::net::http::HttpClient;
use kraken_core::net::origin::{OriginCluster, router};
use kraken_core::origin::RingMember;
use kraken_core::storage::backend::{Route, RoutedBackend};
use kraken_core::storage::{
    Backend as _, BoxBackend, DurableQueue, MemStore, OpendalBackend, PieceStore as _,
    UploadStore as _,
};
use kraken_core::{Digest, Namespace, Origin, PeerId};
use kraken_registry::RepoName;
use kraken_registry::garbage::{Collected, Collector, GarbageError, GarbageOptions};
use kraken_registry::link::Link;
use kraken_registry::tags::LinkService;
use kraken_registry::tags::ring::TagRing;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// An origin with two storages, and a build-index.
struct Cluster {
    storages: [OpendalBackend; 2],
    store: MemStore,
    addr: SocketAddr,
    origins: OriginCluster,
    ring: TagRing,
    running: Option<(Origin, JoinHandle<()>)>,
    dirs: [TempDir; 2],
}

impl Cluster {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let (ring, tags_dir) = super::tags::store().await;
        let mut cluster = Self {
            storages: [OpendalBackend::memory(), OpendalBackend::memory()],
            store: MemStore::new(),
            addr,
            origins: client(addr),
            ring,
            running: None,
            dirs: [tempfile::tempdir().unwrap(), tags_dir],
        };
        cluster.start_origin().await;
        cluster
    }

    async fn start_origin(&mut self) {
        let route = |pattern: &str, storage: &OpendalBackend| Route {
            pattern: pattern.parse().unwrap(),
            backend: BoxBackend::new(storage.clone()),
            must_ready: false,
        };
        let backend = BoxBackend::new(RoutedBackend::new(vec![
            route("^one/", &self.storages[0]),
            route("^two/", &self.storages[1]),
        ]));
        let dir = self.dirs[0].path();
        // What still runs of an earlier life has the file open.
        let queue = loop {
            match DurableQueue::open(dir.join("queue.redb")) {
                Ok(queue) => break queue,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let transport = MemNetwork::new().transport(PeerId::from_bytes([1; 32]));
        let store = self.store.clone();
        let origin = Origin::builder("origin-0", store, transport, backend, queue)
            .ring(members(self.addr), HttpClient::new(None).unwrap())
            .replicas(1)
            .asked_file(dir.join("asked"))
            .spawn()
            .unwrap();
        let routes = router(Arc::new(origin.clone()));
        let listener = loop {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        self.running = Some((origin, serving));
    }

    async fn restart_origin(&mut self) {
        let (origin, serving) = self.running.take().unwrap();
        serving.abort();
        origin.shutdown().await;
        drop(origin);
        // What it served ends with the connections of those who asked.
        self.origins = client(self.addr);
        self.start_origin().await;
    }

    async fn run(&self) -> Result<Collected, GarbageError> {
        let options = GarbageOptions {
            grace_seconds: 1,
            stored: true,
            dry_run: false,
        };
        let collector = Collector::new(self.ring.clone(), self.origins.clone());
        collector.run(options).await
    }

    /// Puts a file into a repository, which holds it from then on, and waits until it is stored.
    async fn put(&self, repo: &str, text: &str, storage: usize) -> Link {
        let (repo, digest) = (
            repo.parse::<RepoName>().unwrap(),
            Digest::of(text.as_bytes()),
        );
        let (ns, bytes) = (repo.namespace(), text.to_owned().into());
        self.origins.put(&ns, digest, bytes).await.unwrap();
        while !self.stores(storage, digest).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.hold(&repo, Link::Blob(digest), true).await;
        Link::Blob(digest)
    }

    async fn hold(&self, repo: &RepoName, link: Link, is_held: bool) {
        let set = LinkService::set_link(&self.ring, repo, link, is_held);
        set.await.unwrap();
    }

    async fn stores(&self, storage: usize, digest: Digest) -> bool {
        let ns = Namespace::default();
        let found = self.storages[storage].stat(&ns, digest).await;
        found.unwrap().is_some()
    }

    /// Once the origin has run for long enough, and nobody has asked lately.
    async fn collect(&self) -> Collected {
        loop {
            match self.run().await {
                Ok(collected) if collected.garbage == collected.removed => return collected,
                Ok(_) | Err(GarbageError::Origin(_)) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn client(addr: SocketAddr) -> OriginCluster {
    OriginCluster::new(members(addr), HttpClient::new(None).unwrap(), 1)
}

fn members(addr: SocketAddr) -> Vec<RingMember> {
    let url = format!("http://{addr}").parse().unwrap();
    vec![RingMember::new("origin-0", url)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_whose_repositories_are_all_empty_is_emptied() {
    let cluster = Cluster::start().await;
    let kept = cluster.put("one/files", "kept", 0).await.digest();
    let removed = cluster.put("two/files", "removed", 1).await;
    let collected = cluster.collect().await;
    assert_eq!((collected.referenced, collected.removed), (2, 0));
    let repo = "two/files".parse().unwrap();
    cluster.hold(&repo, removed, false).await;
    let collected = cluster.collect().await;
    assert_eq!((collected.referenced, collected.removed_stored), (1, 1));
    assert!(!cluster.stores(1, removed.digest()).await);
    assert!(cluster.stores(0, kept).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_was_restarted_does_not_hold_it_up() {
    let mut cluster = Cluster::start().await;
    // It lies there, and nobody ever asks about it.
    let orphan = Digest::of(b"orphan");
    let upload = cluster.store.upload_start().await.unwrap();
    let bytes = "orphan".into();
    cluster
        .store
        .upload_append(&upload, 0, bytes)
        .await
        .unwrap();
    cluster.store.upload_commit(&upload, orphan).await.unwrap();
    cluster.put("one/files", "kept", 0).await;
    let removed = cluster.put("one/files", "removed", 0).await;
    let repo = "one/files".parse().unwrap();
    cluster.hold(&repo, removed, false).await;
    let ns = RepoName::namespace(&repo);
    // It has run for the grace period before it is restarted, and not since.
    while cluster.run().await.is_err() {
        let asked = cluster.origins.stat(&ns, removed.digest()).await;
        asked.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let upload = cluster.store.upload_start().await.unwrap();
    let bytes = "orphan".into();
    cluster
        .store
        .upload_append(&upload, 0, bytes)
        .await
        .unwrap();
    cluster.store.upload_commit(&upload, orphan).await.unwrap();
    cluster.restart_origin().await;
    let collected = cluster.run().await.unwrap();
    let counts = (collected.referenced, collected.garbage, collected.removed);
    assert_eq!(counts, (1, 2, 1), "what was just asked about stays");
    let here = cluster.store.list().await.unwrap();
    assert!(here.contains(&removed.digest()) && !here.contains(&orphan));
}
