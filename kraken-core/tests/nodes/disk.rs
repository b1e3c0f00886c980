//! Disks that are too small for all that comes: what goes, what stays, and what is refused.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use kraken_core::net::http::{ApiError, HttpClient, HttpServer, serve};
use kraken_core::net::origin::{OriginApi as _, router};
use kraken_core::net::{MemNetwork, MemTransport};
use kraken_core::origin::{HealConfig, RingMember};
use kraken_core::proto::cache::ledger::{Ceiling, Lifetimes};
use kraken_core::storage::backend::NoopBackend;
use kraken_core::storage::testkit::blob;
use kraken_core::storage::{
    Backend, BlobStatus, DurableQueue, FsOptions, FsStore, Goal, MemStore, OpendalBackend,
    PieceStore as _, StoreError, UploadStore as _,
};
use kraken_core::{Agent, Digest, MetaInfo, Namespace, OpenError, Origin, PeerId};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use crate::common::Local;

const MIB: usize = 1 << 20;
const BLOBS: u64 = 20;

fn transport(network: &MemNetwork, number: u8) -> MemTransport {
    network.transport(PeerId::from_bytes([number; 32]))
}

/// A store for four and a half blobs.
async fn within(dir: &Path) -> FsStore {
    let mut options = FsOptions::default();
    options.ceiling = Some(Ceiling::of((4 * MIB + MIB / 2) as u64));
    FsStore::open_with(dir, options).await.unwrap()
}

fn used(store: &FsStore) -> u64 {
    store.usage().unwrap().bytes
}

/// Some blobs of a MiB at a seeder, and an agent whose disk is for four and a half of them.
struct Lab {
    blobs: Vec<(Vec<u8>, Digest)>,
    agent: Agent,
    store: FsStore,
    _seeder: Agent,
}

impl Lab {
    async fn start(dir: &Path) -> Self {
        let (network, discovery, from) = (MemNetwork::new(), Local::new(), MemStore::new());
        let mut blobs = Vec::new();
        for seed in 0..BLOBS {
            let (bytes, meta) = blob(MIB, seed);
            let upload = from.upload_start().await.unwrap();
            let appended = from.upload_append(&upload, 0, bytes.clone().into());
            appended.await.unwrap();
            from.upload_commit(&upload, meta.digest()).await.unwrap();
            blobs.push((bytes, meta.digest()));
            discovery.metas.lock().unwrap().insert(meta.digest(), meta);
        }
        let seeder = Agent::builder(from, transport(&network, 1)).discovery(discovery.clone());
        let seeder = seeder.spawn().unwrap();
        seeder.seed_all().await.unwrap();
        let store = within(dir).await;
        let agent = Agent::builder(store.clone(), transport(&network, 2)).discovery(discovery);
        Self {
            blobs,
            agent: agent.spawn().unwrap(),
            store,
            _seeder: seeder,
        }
    }

    async fn read(&self, index: usize) {
        let (bytes, digest) = &self.blobs[index];
        let mut read = Vec::new();
        let mut reader = self.agent.open(*digest).await.unwrap();
        reader.read_to_end(&mut read).await.unwrap();
        assert!(read == *bytes, "blob {index}");
        reader.complete().await.unwrap();
        assert!(used(&self.store) <= (4 * MIB + MIB / 2) as u64);
    }

    async fn holds(&self, index: usize) -> bool {
        let status = self.store.status(self.blobs[index].1).await.unwrap();
        matches!(status, BlobStatus::Sealed { .. })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_disk_holds_is_pulled_through_it_and_every_byte_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path()).await;
    for round in 0..2 {
        for index in 0..BLOBS as usize {
            lab.read(index).await;
            // What is read again and again stays.
            lab.read(0).await;
            assert!(lab.holds(0).await, "round {round}, blob {index}");
        }
    }
    assert!(lab.agent.metrics().blobs_evicted() >= 2 * BLOBS - 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_at_once_stay_under_the_ceiling_and_none_finds_a_blob_half_gone() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path()).await;
    let pulls = (0..3 * BLOBS as usize).map(async |index| {
        for _ in 0..300 {
            // Some want the same blob, just when it goes.
            let (bytes, digest) = &lab.blobs[index % 7];
            let mut reader = match lab.agent.open(*digest).await {
                Ok(reader) => reader,
                // All that is there is being read.
                Err(OpenError::Store(StoreError::Full)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let mut read = Vec::new();
            reader.read_to_end(&mut read).await.unwrap();
            assert!(read == *bytes, "blob {index}");
            assert!(used(&lab.store) <= (4 * MIB + MIB / 2) as u64);
            return;
        }
        panic!("no room for blob {index} in six seconds and more");
    });
    join_all(pulls).await;
    for index in 0..7 {
        lab.read(index).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_read_stays_and_what_cannot_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path()).await;
    let mut readers = Vec::new();
    for index in 0..4 {
        lab.read(index).await;
        readers.push(lab.agent.open(lab.blobs[index].1).await.unwrap());
    }
    let refused = lab.agent.open(lab.blobs[9].1).await;
    let full = matches!(refused, Err(OpenError::Store(StoreError::Full)));
    assert!(full, "{refused:?}");
    for (index, reader) in readers.iter().enumerate() {
        let chunks: Vec<_> = reader.stream(0..u64::MAX).collect().await;
        let read: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        assert!(read == lab.blobs[index].0, "blob {index}");
    }
    readers.remove(2);
    lab.read(9).await;
    let held = join_all((0..4).map(|index| lab.holds(index))).await;
    assert_eq!(held, [true, true, false, true]);
}

/// Changes a byte of a blob on the agent's disk.
fn flip(dir: &Path, digest: Digest) {
    let hex = digest.hex();
    let path = dir.join("sealed").join(&hex[..2]).join(&hex);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[MIB / 2] ^= 1;
    // Not only for root.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&path, mode).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_rots_on_disk_is_fetched_anew_and_no_wrong_byte_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path()).await;
    lab.read(0).await;
    lab.read(1).await;
    for (round, index) in [(1, 0), (2, 1)] {
        let (bytes, digest) = &lab.blobs[index];
        flip(dir.path(), *digest);
        let mut whole = false;
        for _ in 0..200 {
            let mut read = Vec::new();
            let mut reader = lab.agent.open(*digest).await.unwrap();
            whole = reader.read_to_end(&mut read).await.is_ok();
            assert!(bytes.starts_with(&read), "no wrong byte");
            if whole {
                assert_eq!(read.len(), bytes.len());
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(whole, "it heals");
        assert_eq!(lab.agent.metrics().blobs_damaged(), round);
    }
    // Nobody reads this one: it is found by looking.
    lab.read(2).await;
    flip(dir.path(), lab.blobs[2].1);
    lab.store.verify(lab.blobs[2].1).await.unwrap();
    for _ in 0..200 {
        if lab.holds(2).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(lab.holds(2).await, "it heals");
    lab.read(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_lets_go_of_what_is_old_or_above_the_mark_but_not_of_what_is_read_or_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path()).await;
    for index in 0..4 {
        lab.read(index).await;
    }
    let digest = |index: usize| lab.blobs[index].1;
    lab.store.pin(digest(0), true).await.unwrap();
    let reader = lab.agent.open(digest(1)).await.unwrap();
    let half = lab.agent.rehearse_sweep(Goal::Percent(50)).await.unwrap();
    assert_eq!(half.blobs.len(), 2);
    assert_eq!(used(&lab.store), 4 * MIB as u64, "nothing went yet");
    let swept = lab.agent.sweep(Goal::Percent(50)).await.unwrap();
    let gone: Vec<_> = swept.blobs.iter().map(|kept| kept.digest).collect();
    assert_eq!(gone, [digest(2), digest(3)]);
    assert_eq!((swept.bytes(), swept.errors), (2 * MIB as u64, 0));
    let lifetimes = Lifetimes {
        to_live: Some(Duration::from_secs(3600)),
        to_idle: None,
    };
    let over = Goal::Lifetimes {
        lifetimes,
        now_ms: u64::MAX,
    };
    let swept = lab.agent.sweep(over).await.unwrap();
    assert_eq!((swept.blobs.len(), swept.spared), (0, 1));
    drop(reader);
    let swept = lab.agent.sweep(over).await.unwrap();
    assert_eq!(swept.blobs[0].digest, digest(1));
    assert!(lab.holds(0).await && !lab.holds(1).await);
    // What has gone comes again.
    lab.read(1).await;
}

/// One origin whose disk is for four and a half blobs, over a directory that can be away.
async fn origin(dir: &Path) -> (Origin, FsStore) {
    let backend = OpendalBackend::local_disk(dir.join("backend")).unwrap();
    origin_over(dir, backend).await
}

/// The same over any backend.
async fn origin_over(dir: &Path, backend: impl Backend) -> (Origin, FsStore) {
    let store = within(&dir.join("store")).await;
    let queue = DurableQueue::open(dir.join("queue.redb")).unwrap();
    let network = transport(&MemNetwork::new(), 1);
    let url = "http://127.0.0.1:1".parse().unwrap();
    let name = "origin-1".to_string();
    let origin = Origin::builder("origin-1", store.clone(), network, backend, queue)
        .ring(
            vec![RingMember::new(name, url)],
            HttpClient::new(None).unwrap(),
        )
        .replicas(1)
        .spawn()
        .unwrap();
    (origin, store)
}

async fn push(origin: &Origin, bytes: &[u8], meta: &MetaInfo) -> Result<(), ApiError> {
    let id = origin.upload_start().await?;
    for (number, part) in (0..).zip(bytes.chunks(MIB / 4)) {
        let part = Bytes::copy_from_slice(part);
        let at = number * MIB as u64 / 4;
        if let Err(error) = origin.upload_append(&id, at, part).await {
            // One that cannot go on does not keep its room from others.
            let left = origin.upload_len(&id).await;
            assert!(matches!(left, Err(ApiError::NotFound)), "{left:?}");
            return Err(error);
        }
    }
    let (ns, digest) = (Namespace::default(), meta.digest());
    origin.upload_commit(&id, &ns, digest).await.map(drop)
}

async fn written_back(origin: &Origin) {
    for _ in 0..600 {
        if origin.queued().unwrap() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not written back within 30 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_lets_go_only_of_what_its_backend_has() {
    let dir = tempfile::tempdir().unwrap();
    let away = dir.path().join("backend");
    // No directory can be made where a file is.
    std::fs::write(&away, b"in the way").unwrap();
    let (origin, store) = origin(dir.path()).await;
    let blobs: Vec<_> = (0..8).map(|seed| blob(MIB, seed)).collect();
    for (bytes, meta) in &blobs[..4] {
        push(&origin, bytes, meta).await.unwrap();
    }
    let refused = push(&origin, &blobs[4].0, &blobs[4].1).await;
    assert!(matches!(refused, Err(ApiError::Full(_))), "{refused:?}");
    for (_, meta) in &blobs[..4] {
        let status = store.status(meta.digest()).await.unwrap();
        assert!(
            matches!(status, BlobStatus::Sealed { .. }),
            "nothing is lost"
        );
    }
    let swept = origin.sweep(Goal::Percent(0)).await.unwrap();
    assert_eq!(swept.blobs.len(), 0, "they are nowhere else");
    let rehearsed = origin.rehearse_sweep(Goal::Percent(0)).await.unwrap();
    assert_eq!(rehearsed.blobs.len(), 0);
    std::fs::remove_file(&away).unwrap();
    written_back(&origin).await;
    let rehearsed = origin.rehearse_sweep(Goal::Percent(0)).await.unwrap();
    assert_eq!(rehearsed.blobs.len(), 4);
    for (bytes, meta) in &blobs[4..] {
        push(&origin, bytes, meta).await.unwrap();
        assert!(used(&store) <= (4 * MIB + MIB / 2) as u64);
        written_back(&origin).await;
    }
    assert!(origin.metrics().blobs_evicted() >= 4);
    // What has gone from the disk comes from the backend again, and others go for it.
    let origin = Arc::new(origin);
    for (bytes, meta) in blobs.iter().chain(&blobs) {
        let read = origin
            .read(&Namespace::default(), meta.digest(), None)
            .await;
        let chunks: Vec<_> = read.unwrap().body.collect().await;
        let read: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        assert!(read == *bytes);
        assert!(used(&store) <= (4 * MIB + MIB / 2) as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_storage_behind_it_an_origin_lets_nothing_go() {
    let dir = tempfile::tempdir().unwrap();
    let (origin, store) = origin_over(dir.path(), NoopBackend).await;
    let blobs: Vec<_> = (0..5).map(|seed| blob(MIB, seed)).collect();
    for (bytes, meta) in &blobs[..4] {
        push(&origin, bytes, meta).await.unwrap();
    }
    // That the backend has taken them all means nothing.
    written_back(&origin).await;
    let refused = push(&origin, &blobs[4].0, &blobs[4].1).await;
    assert!(matches!(refused, Err(ApiError::Full(_))), "{refused:?}");
    let swept = origin.sweep(Goal::Percent(0)).await.unwrap();
    assert_eq!(swept.blobs.len(), 0, "they are nowhere else");
    for (_, meta) in &blobs[..4] {
        let status = store.status(meta.digest()).await.unwrap();
        let is_there = matches!(status, BlobStatus::Sealed { .. });
        assert!(is_there, "nothing is lost");
    }
    // One that somebody removes makes room.
    origin.remove(blobs[0].1.digest()).await.unwrap();
    push(&origin, &blobs[4].0, &blobs[4].1).await.unwrap();
}

/// An origin of a ring where the origins' disks are the storage, and what serves it.
fn one_of_two(
    number: u8,
    (store, dir): (FsStore, &Path),
    network: &MemNetwork,
    (addrs, http): ([SocketAddr; 2], &HttpClient),
) -> (Origin, HttpServer) {
    let member = |(at, addr): (usize, &SocketAddr)| {
        let url = format!("http://{addr}").parse().unwrap();
        RingMember::new(format!("origin-{at}"), url)
    };
    let queue = DurableQueue::open(dir.join(format!("{number}.redb"))).unwrap();
    let mut heal = HealConfig::default();
    heal.every = Duration::from_millis(200);
    let (name, network) = (format!("origin-{number}"), transport(network, number + 1));
    let origin = Origin::builder(name, store, network, NoopBackend, queue)
        .ring(
            addrs.iter().enumerate().map(member).collect::<Vec<_>>(),
            http.clone(),
        )
        .replicas(2)
        .heal(heal)
        .spawn()
        .unwrap();
    let face = router(Arc::new(origin.clone()));
    let server = serve(
        addrs[usize::from(number)],
        face,
        None,
        CancellationToken::new(),
    );
    (origin, server.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_storage_behind_it_an_origin_says_to_hold_only_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (network, http) = (MemNetwork::new(), HttpClient::new(None).unwrap());
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addrs = held.each_ref().map(|it| it.local_addr().unwrap());
    drop(held);
    let ample = FsStore::open(dir.path().join("ample")).await.unwrap();
    let small = within(&dir.path().join("small")).await;
    let ring = (addrs, &http);
    let (one, _one) = one_of_two(0, (ample, dir.path()), &network, ring);
    let (other, _other) = one_of_two(1, (small.clone(), dir.path()), &network, ring);
    let blobs: Vec<_> = (0..5).map(|seed| blob(MIB, seed)).collect();
    for (bytes, meta) in &blobs[..4] {
        push(&one, bytes, meta).await.unwrap();
    }
    // It is durable at one, and has no room at the other.
    push(&one, &blobs[4].0, &blobs[4].1).await.unwrap_err();
    let fifth = blobs[4].1.digest();
    for _ in 0..60 {
        let said = other.holds(vec![fifth]).await.unwrap();
        assert!(
            said.is_empty(),
            "whoever believes it would let its own copy go"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(one.holds(vec![fifth]).await.unwrap() == [fifth]);
    for (_, meta) in &blobs[..4] {
        let status = small.status(meta.digest()).await.unwrap();
        assert!(
            matches!(status, BlobStatus::Sealed { .. }),
            "nothing went for it"
        );
    }
}
