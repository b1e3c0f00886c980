//! A backend that is away, and one that many want to read from.

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::join_all;
use kraken::client::Registry;
use kraken::cluster::{Cluster, ClusterOptions};
use kraken::image;
use kraken_core::net::http::{ApiError, HttpClient, HttpServer, serve};
use kraken_core::net::origin::{Copies, OriginClient, router};
use kraken_core::net::{CertAuthority, Identity, Quic};
use kraken_core::storage::queue::DurableQueue;
use kraken_core::storage::{Backend as _, OpendalBackend};
use kraken_core::{Digest, Namespace, Origin};
use kraken_registry::Manifest;
use kraken_storage::testkit::FlakyBackend;
use tokio_util::sync::CancellationToken;

use crate::common::{chunks, identity, open_store, random, until, within};

type Flaky = FlakyBackend<OpendalBackend>;

/// An origin with its HTTP face, and a client of it.
struct Running {
    origin: Origin,
    client: OriginClient,
    server: HttpServer,
    shutdown: CancellationToken,
}

impl Running {
    async fn start(dir: &Path, backend: &Flaky, identity: &Identity) -> Self {
        let store = open_store(&dir.join("blobs")).await;
        let queue = dir.join("queue.redb");
        let queue = until("the queue is free", async || {
            DurableQueue::open(&queue).ok()
        })
        .await;
        let any = "127.0.0.1:0".parse().unwrap();
        let quic = Quic::bind(any, identity).unwrap();
        let origin = Origin::builder("origin-1", store, quic, backend.clone(), queue)
            .spawn()
            .unwrap();
        let shutdown = CancellationToken::new();
        let face = router(Arc::new(origin.clone()));
        let server = serve(any, face, Some(identity), shutdown.clone()).unwrap();
        let url = format!("https://{}", server.local_addr());
        let http = HttpClient::new(Some(identity)).unwrap();
        let client = OriginClient::new(url.parse().unwrap(), http);
        Self {
            origin,
            client,
            server,
            shutdown,
        }
    }

    async fn stop(self) {
        drop(self.client);
        self.shutdown.cancel();
        self.server.stopped().await.unwrap();
        self.origin.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_outlives_an_outage_of_the_backend_and_a_restart() {
    within(80, "an outage", async {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(&CertAuthority::create().unwrap(), "origin");
        let disk = OpendalBackend::local_disk(dir.path().join("backend")).unwrap();
        let backend = Flaky::new(disk);
        let namespace: Namespace = "faults".parse().unwrap();
        let bytes = random(16 << 20, 11);
        let (digest, length) = (Digest::of(&bytes), bytes.len() as u64);

        backend.set_down(true);
        let running = Running::start(dir.path(), &backend, &identity).await;
        let client = &running.client;
        let upload = client.upload_start().await.unwrap();
        let body = futures::stream::iter(chunks(&bytes)).boxed();
        assert_eq!(
            client.upload_append(&upload, 0, body).await.unwrap(),
            length
        );
        let meta = client.upload_commit(&upload, &namespace, digest).await;
        assert_eq!(meta.unwrap().length(), length);
        assert_eq!(running.origin.queued().unwrap(), 1);
        assert!(running.origin.oldest_task().await.unwrap().is_some());
        let refused = client.remove(digest).await.unwrap_err();
        assert!(matches!(refused, ApiError::Conflict(_)), "{refused}");
        running.stop().await;

        let running = Running::start(dir.path(), &backend, &identity).await;
        assert_eq!(running.origin.queued().unwrap(), 1);
        let local = running.client.stat(&namespace, digest, Copies::Here).await;
        assert_eq!(local.unwrap(), Some(length));
        assert_eq!((backend.writes(), backend.stats()), (0, 0));
        backend.set_down(false);
        until("the blob is in the backend", async || {
            let found = backend.inner().stat(&namespace, digest).await.unwrap();
            found.map(|found| assert_eq!(found, length))
        })
        .await;
        until("the queue is empty", async || {
            (running.origin.queued().unwrap() == 0).then_some(())
        })
        .await;
        assert_eq!(running.origin.oldest_task().await.unwrap(), None);
        assert_eq!((backend.writes(), backend.bytes_written()), (1, length));
        running.client.remove(digest).await.unwrap();
        running.stop().await;
    })
    .await;
}

/// What a user does: an image is pushed through the proxy while the storage is away, the whole
/// cluster restarts meanwhile, and the image is pulled. Then the storage is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_pulled_while_the_storage_is_away() {
    within(80, "an outage of a cluster", async {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions {
            agents: 1,
            origins: 3,
            dir: dir.path().to_path_buf(),
            base_port: None,
        };
        let (backend, away) = (dir.path().join("backend"), dir.path().join("away"));
        std::fs::create_dir(&away).unwrap();
        std::fs::write(&backend, "not a directory").unwrap();

        let cluster = Cluster::start(&options).await.unwrap();
        let proxy = Registry::new(&cluster.proxy.addr.to_string()).unwrap();
        let unknown = Digest::of(b"unknown");
        assert!(!proxy.has_blob("away/image", unknown).await.unwrap());
        let size = 3 << 20;
        let pushed = image::push_random(&proxy, "away/image", "v1", size, 2, 5, |_| {}).await;
        pushed.unwrap();
        cluster.stop().await;

        let cluster = Cluster::start(&options).await.unwrap();
        let agent = Registry::new(&cluster.agents[0].registry.to_string()).unwrap();
        let (_, manifest) = until("the image's manifest", async || {
            agent.manifest("away/image", "v1").await.ok()
        })
        .await;
        let manifest = Manifest::parse(&manifest).unwrap();
        let digests: Vec<_> = manifest.blobs().map(|blob| blob.digest).collect();
        assert_eq!(digests.len(), 3);
        for digest in &digests {
            crate::common::pull(&cluster.agents[0].registry.to_string(), *digest).await;
        }
        std::fs::remove_file(&backend).unwrap();
        std::fs::rename(&away, &backend).unwrap();
        let disk = OpendalBackend::local_disk(&backend).unwrap();
        let namespace: Namespace = "away/image".parse().unwrap();
        for digest in digests {
            until("the blob is in the storage", async || {
                disk.stat(&namespace, digest).await.unwrap()
            })
            .await;
        }
        cluster.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_want_a_blob_cost_one_read_of_the_backend() {
    within(60, "many readers", async {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(&CertAuthority::create().unwrap(), "origin");
        let backend = Flaky::new(OpendalBackend::memory());
        let namespace: Namespace = "faults".parse().unwrap();
        let bytes = random(32 << 20, 12);
        let (digest, length) = (Digest::of(&bytes), bytes.len() as u64);
        let stored = futures::stream::iter([Ok(bytes.clone())]).boxed();
        let written = backend.write(&namespace, digest, length, stored).await;
        written.unwrap();

        let running = Running::start(dir.path(), &backend, &identity).await;
        let asks = (0..32).map(|_| running.client.metainfo(&namespace, digest));
        for meta in join_all(asks).await {
            let meta = meta.unwrap();
            assert_eq!((meta.digest(), meta.length()), (digest, length));
        }
        assert_eq!((backend.reads(), backend.bytes_read()), (1, length));
        assert_eq!(running.origin.backend_reads(), 1);
        running.stop().await;
    })
    .await;
}
