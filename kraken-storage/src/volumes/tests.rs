use std::path::Path;

use super::*;
use crate::fs::FsOptions;
use crate::mem::MemStore;
use crate::testkit;

fn three() -> Volumes<MemStore> {
    let volume = |name: &str| (name.to_string(), 1.0, MemStore::new());
    Volumes::new(["a", "b", "c"].map(volume))
}

#[tokio::test]
async fn several_are_as_one() {
    testkit::conforms(async || three()).await;
    testkit::uploads_conform(async || three()).await;
}

async fn push(store: &impl UploadStore, seed: u64) -> (Vec<u8>, Digest) {
    let (bytes, meta) = testkit::blob(10_000, seed);
    let upload = store.upload_start().await.unwrap();
    let data = Bytes::from(bytes.clone());
    store.upload_append(&upload, 0, data).await.unwrap();
    store.upload_commit(&upload, meta.digest()).await.unwrap();
    (bytes, meta.digest())
}

#[tokio::test]
async fn blobs_are_shared_out_by_weight_and_found_whatever_the_weights_are() {
    let stores = [MemStore::new(), MemStore::new(), MemStore::new()];
    let with = |weights: [f64; 3]| {
        let named = ["a", "b", "c"].into_iter().zip(weights).zip(stores.clone());
        Volumes::new(named.map(|((name, weight), store)| (name.to_string(), weight, store)))
    };
    let volumes = with([1.0, 3.0, 0.0]);
    let mut pushed = Vec::new();
    for seed in 0..400 {
        pushed.push(push(&volumes, seed).await);
    }
    let mut counts = Vec::new();
    for store in &stores {
        counts.push(store.list().await.unwrap().len());
    }
    assert!(
        (70..130).contains(&counts[0]) && counts[2] == 0,
        "{counts:?}"
    );
    let volumes = with([0.0, 0.0, 1.0]);
    for (bytes, digest) in &pushed {
        assert_eq!(volumes.read(*digest, 0, 10_000).await.unwrap(), bytes[..]);
    }
    assert_eq!(volumes.list().await.unwrap().len(), 400);
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_kept_twice_and_wrong_bytes_are_still_refused() {
    let volumes = three();
    let (bytes, digest) = push(&volumes, 1).await;
    for _ in 0..4 {
        push(&volumes, 1).await;
        let wrong = volumes.upload_start().await.unwrap();
        let data = Bytes::from_static(b"something else");
        volumes.upload_append(&wrong, 0, data).await.unwrap();
        let committed = volumes.upload_commit(&wrong, digest).await;
        let refused = matches!(committed, Err(StoreError::DigestMismatch { .. }));
        assert!(refused, "{committed:?}");
    }
    let mut holders = 0;
    for store in volumes.each() {
        holders += store.list().await.unwrap().len();
    }
    assert_eq!(holders, 1);
    assert_eq!(volumes.read(digest, 0, 10_000).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_commit_one_blob_at_once_both_are_right_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = on_disk(dir.path(), 1 << 30).await;
    for seed in 0..40 {
        let (bytes, meta) = testkit::blob(10_000, seed);
        let mut uploads = Vec::new();
        // One on each.
        while uploads.len() < 2 {
            let name = volumes.upload_start().await.unwrap();
            if name.contains(BETWEEN) == (uploads.len() == 1) {
                let data = Bytes::from(bytes.clone());
                volumes.upload_append(&name, 0, data).await.unwrap();
                uploads.push(name);
            } else {
                volumes.upload_abort(&name).await.unwrap();
            }
        }
        let commits = uploads.into_iter().map(|name| {
            let (volumes, digest) = (volumes.clone(), meta.digest());
            tokio::spawn(async move { volumes.upload_commit(&name, digest).await })
        });
        for commit in join_all(commits).await {
            assert_eq!(commit.unwrap().unwrap(), meta);
        }
        let status = volumes.status(meta.digest()).await.unwrap();
        assert_eq!(status, BlobStatus::Sealed { meta }, "blob {seed}");
    }
    assert_eq!(volumes.usage().unwrap().blobs, 40, "one copy of each");
}

#[tokio::test]
async fn an_upload_has_one_name() {
    let volumes = three();
    let mut far = None;
    while far.is_none() {
        let name = volumes.upload_start().await.unwrap();
        far = name.starts_with("1_").then_some(name);
    }
    let name = far.unwrap();
    let bare = name.strip_prefix("1_").unwrap();
    volumes.upload_len(&name).await.unwrap();
    for other in ["01_", "+1_", "3_", "0_", "x_", "_"] {
        let len = volumes.upload_len(&format!("{other}{bare}")).await;
        assert!(matches!(len, Err(StoreError::UploadUnknown(_))), "{other}");
    }
}

async fn on_disk(dir: &Path, most: u64) -> Volumes<FsStore> {
    let mut volumes = Vec::new();
    for name in ["a", "b"] {
        let options = FsOptions {
            ceiling: Some(Ceiling::of(most)),
            ..FsOptions::default()
        };
        let store = FsStore::open_with(dir.join(name), options).await.unwrap();
        volumes.push((name.to_string(), 1.0, store));
    }
    Volumes::new(volumes)
}

#[tokio::test]
async fn what_does_not_fit_on_one_goes_to_another_and_then_something_must_go() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = on_disk(dir.path(), 25_000).await;
    let metas: Vec<_> = (0..5).map(|seed| testkit::blob(10_000, seed).1).collect();
    for meta in &metas[..4] {
        volumes.open(meta.clone()).await.unwrap();
    }
    let full = volumes.open(metas[4].clone()).await;
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    let usage = volumes.usage().unwrap();
    assert_eq!((usage.bytes, usage.blobs), (40_000, 4));
    assert_eq!(usage.ceiling.unwrap().most(), 50_000);
    // The two that came last are used again: not their volumes' turn.
    let victims = volumes
        .victims(Need::blob(10_000), &HashSet::new())
        .await
        .unwrap();
    assert!(
        !victims.is_empty() && victims.contains(&metas[0].digest()),
        "{victims:?}"
    );
    volumes.remove(victims[0]).await.unwrap();
    volumes.open(metas[4].clone()).await.unwrap();
    assert_eq!(volumes.page(None, 9).len(), 4);
}

#[tokio::test]
async fn an_upload_begins_where_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = on_disk(dir.path(), 10_000).await;
    // The first of the two is full from then on.
    let first = volumes.each().next().unwrap();
    first.open(testkit::blob(9_900, 1).1).await.unwrap();
    for _ in 0..20 {
        let name = volumes.upload_start().await.unwrap();
        assert!(name.starts_with("1_"), "{name}");
    }
}
