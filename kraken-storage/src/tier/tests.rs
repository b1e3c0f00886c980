use super::*;
use crate::mem::MemStore;
use crate::testkit::{self, blob, piece};

const LEN: usize = 3 * (256 << 10) + 1000;

#[tokio::test]
async fn whatever_its_size_it_changes_nothing() {
    for bytes in [0, 300 << 10, 1 << 30] {
        testkit::conforms(async || MemoryTier::new(MemStore::new(), bytes)).await;
    }
}

#[cfg(feature = "fs")]
#[tokio::test]
async fn it_conforms_over_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let number = std::sync::atomic::AtomicU32::new(0);
    for bytes in [300 << 10, 1 << 30] {
        testkit::conforms(async || {
            let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let store = crate::FsStore::open(dir.path().join(number.to_string())).await;
            MemoryTier::new(store.unwrap(), bytes)
        })
        .await;
    }
}

/// A store that takes no piece until it may.
#[derive(Debug, Clone)]
struct Slow {
    store: MemStore,
    may: Arc<tokio::sync::Semaphore>,
}

impl Slow {
    fn new() -> Self {
        Self {
            store: MemStore::new(),
            may: Arc::new(tokio::sync::Semaphore::new(0)),
        }
    }
}

impl PieceStore for Slow {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        self.store.status(digest).await
    }
    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        self.store.open(meta).await
    }
    async fn write(&self, digest: Digest, piece: u32, data: Bytes) -> Result<(), StoreError> {
        match self.may.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(StoreError::Full),
        }
        self.store.write(digest, piece, data).await
    }
    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        self.store.read(digest, offset, len).await
    }
    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        self.store.seal(digest).await
    }
    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        self.store.remove(digest).await
    }
    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        self.store.list().await
    }
}

#[tokio::test]
async fn pieces_are_there_before_the_store_behind_has_them_and_sealing_waits() {
    let slow = Slow::new();
    let tier = MemoryTier::new(slow.clone(), 1 << 20);
    let (bytes, meta) = blob(LEN, 1);
    let digest = meta.digest();
    tier.open(meta.clone()).await.unwrap();
    for index in 0..4 {
        tier.write(digest, index, piece(&bytes, &meta, index))
            .await
            .unwrap();
    }
    assert_eq!(tier.held(), LEN as u64);
    assert_eq!(tier.read(digest, 0, u32::MAX).await.unwrap(), bytes);
    let BlobStatus::Partial { have, .. } = tier.status(digest).await.unwrap() else {
        panic!("not sealed yet");
    };
    assert!(have.is_full());
    let sealing = tokio::spawn({
        let tier = tier.clone();
        async move { tier.seal(digest).await }
    });
    slow.may.add_permits(3);
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!sealing.is_finished());
    slow.may.add_permits(1);
    sealing.await.unwrap().unwrap();
    assert!(matches!(
        slow.status(digest).await,
        Ok(BlobStatus::Sealed { .. })
    ));
    // It stays in memory until others need the room.
    assert_eq!(tier.held(), LEN as u64);
    slow.may.add_permits(8);
    for seed in 2..4 {
        let (bytes, meta) = blob(LEN, seed);
        tier.open(meta.clone()).await.unwrap();
        for index in 0..4 {
            let data = piece(&bytes, &meta, index);
            tier.write(meta.digest(), index, data).await.unwrap();
            assert!(tier.held() <= 1 << 20);
        }
        tier.seal(meta.digest()).await.unwrap();
    }
    assert_eq!(tier.read(digest, 7, 1000).await.unwrap(), bytes[7..1007]);
}

#[tokio::test]
async fn what_the_store_behind_does_not_take_is_not_there_and_the_blob_is_not_sealed() {
    let slow = Slow::new();
    let tier = MemoryTier::new(slow.clone(), 1 << 20);
    let (bytes, meta) = blob(LEN, 1);
    let digest = meta.digest();
    tier.open(meta.clone()).await.unwrap();
    tier.write(digest, 0, piece(&bytes, &meta, 0))
        .await
        .unwrap();
    slow.may.close();
    let sealed = tier.seal(digest).await;
    assert!(matches!(sealed, Err(StoreError::Full)), "{sealed:?}");
    assert_eq!(tier.held(), 0);
    let read = tier.read(digest, 0, 10).await;
    assert!(
        matches!(read, Err(StoreError::Missing { piece: 0, .. })),
        "{read:?}"
    );
}

#[tokio::test]
async fn what_the_store_behind_lost_is_not_there_although_it_is_in_memory() {
    let store = MemStore::new();
    let tier = MemoryTier::new(store.clone(), 1 << 20);
    let (bytes, meta) = blob(LEN, 1);
    let digest = meta.digest();
    tier.open(meta.clone()).await.unwrap();
    for index in 0..4 {
        tier.write(digest, index, piece(&bytes, &meta, index))
            .await
            .unwrap();
    }
    tier.seal(digest).await.unwrap();
    store.remove(digest).await.unwrap();
    let have = tier.open(meta.clone()).await.unwrap();
    assert_eq!(have, Bitfield::empty(4));
    for index in 0..4 {
        tier.write(digest, index, piece(&bytes, &meta, index))
            .await
            .unwrap();
    }
    tier.seal(digest).await.unwrap();
    assert_eq!(store.read(digest, 0, u32::MAX).await.unwrap(), bytes);
}

#[tokio::test]
async fn when_it_is_full_of_what_is_under_way_writers_wait_for_the_store() {
    let slow = Slow::new();
    let tier = MemoryTier::new(slow.clone(), 300 << 10);
    let (bytes, meta) = blob(LEN, 1);
    let digest = meta.digest();
    tier.open(meta.clone()).await.unwrap();
    tier.write(digest, 0, piece(&bytes, &meta, 0))
        .await
        .unwrap();
    let second = tier.write(digest, 1, piece(&bytes, &meta, 1));
    tokio::pin!(second);
    assert!(futures::poll!(&mut second).is_pending());
    assert!(tier.held() <= 300 << 10);
    slow.may.add_permits(2);
    second.await.unwrap();
}
