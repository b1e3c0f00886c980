//! Bits that flip on disk.

use std::fs::{self, File, FileTimes};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use kraken_proto::MetaInfo;

use super::*;
use crate::testkit;

async fn sealed(dir: &Path, seed: u64) -> (FsStore, Vec<u8>, MetaInfo) {
    let store = FsStore::open(dir).await.unwrap();
    let (bytes, meta) = testkit::blob(900_000, seed);
    store.open(meta.clone()).await.unwrap();
    for piece in 0..meta.piece_count() {
        let data = testkit::piece(&bytes, &meta, piece);
        store.write(meta.digest(), piece, data).await.unwrap();
    }
    store.seal(meta.digest()).await.unwrap();
    (store, bytes, meta)
}

/// Lets also those write to a sealed file who are not root.
pub(super) fn unprotect(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::Permissions::from_mode(0o644);
    fs::set_permissions(path, mode).unwrap();
}

/// Flips a bit. With `quietly` as a disk does it: no time changes, and the page cache has the old
/// bytes no more.
fn flip(path: &Path, at: u64, quietly: bool) {
    unprotect(path);
    let file = File::options().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    if quietly {
        let times = FileTimes::new().set_modified(before.modified().unwrap());
        file.set_times(times).unwrap();
        file.sync_all().unwrap();
        disk::wont_need(&file, 0, before.len());
    }
}

async fn is_told(store: &FsStore, meta: &MetaInfo) {
    let told = tokio::time::timeout(Duration::from_secs(10), store.damaged());
    assert_eq!(told.await.unwrap(), meta.digest());
    let status = store.status(meta.digest()).await.unwrap();
    assert_eq!(status, BlobStatus::Absent);
    assert!(store.shared.layout.damaged(meta.digest()).exists());
}

#[tokio::test]
async fn a_changed_file_is_found_before_its_bytes_are_given() {
    for open_first in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, bytes, meta) = sealed(dir.path(), 1).await;
        let digest = meta.digest();
        let store = match open_first {
            true => store,
            false => {
                drop(store);
                FsStore::open(dir.path()).await.unwrap()
            }
        };
        if open_first {
            assert_eq!(store.read(digest, 0, 100).await.unwrap(), bytes[..100]);
            assert!(store.file(digest).await.unwrap().is_some());
        }
        flip(&store.shared.layout.sealed_data(digest), 700_000, false);
        // A part that is still right is not given either: the file is not trusted any more.
        let read = store.read(digest, 0, 100).await;
        assert!(
            matches!(
                read,
                Err(StoreError::Damaged { .. } | StoreError::Absent(_))
            ),
            "{read:?}"
        );
        is_told(&store, &meta).await;
    }
}

#[tokio::test]
async fn a_changed_file_is_not_sent_as_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, meta) = sealed(dir.path(), 2).await;
    assert!(store.file(meta.digest()).await.unwrap().is_some());
    flip(&store.shared.layout.sealed_data(meta.digest()), 5, false);
    assert!(store.file(meta.digest()).await.unwrap().is_none());
    is_told(&store, &meta).await;
}

#[tokio::test]
async fn a_file_that_was_only_touched_is_trusted_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bytes, meta) = sealed(dir.path(), 3).await;
    let path = store.shared.layout.sealed_data(meta.digest());
    for _ in 0..2 {
        flip(&path, 5, false);
    }
    assert_eq!(
        store.read(meta.digest(), 3, 100).await.unwrap(),
        bytes[3..103]
    );
    assert!(store.file(meta.digest()).await.unwrap().is_some());
    drop(store);
    // The new time was noted: nothing is hashed again.
    let store = FsStore::open(dir.path()).await.unwrap();
    let stamp = trust::stamp(&path).unwrap().unwrap();
    let noted = meta::read_sealed(
        &store.shared.layout.sealed_meta(meta.digest()),
        meta.digest(),
    );
    assert_eq!(noted.unwrap(), Some((meta.clone(), stamp)));
}

#[tokio::test]
async fn a_bit_that_rots_is_found_when_it_comes_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bytes, meta) = sealed(dir.path(), 4).await;
    let digest = meta.digest();
    let path = store.shared.layout.sealed_data(digest);
    flip(&path, 700_000, true);
    // What lies in memory has no other copy to come back as.
    const TMPFS: i64 = 0x0102_1994;
    if rustix::fs::statfs(&path).unwrap().f_type == TMPFS {
        return;
    }
    assert_eq!(store.read(digest, 0, 100).await.unwrap(), bytes[..100]);
    // Another byte of the same piece.
    let read = store.read(digest, 700_100, 10).await;
    assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
    is_told(&store, &meta).await;
}

#[tokio::test]
async fn a_scrub_finds_what_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, good) = sealed(dir.path(), 5).await;
    let (bytes, bad) = testkit::blob(500_000, 6);
    store.open(bad.clone()).await.unwrap();
    for piece in 0..bad.piece_count() {
        let data = testkit::piece(&bytes, &bad, piece);
        store.write(bad.digest(), piece, data).await.unwrap();
    }
    store.seal(bad.digest()).await.unwrap();
    assert_eq!(store.verify(good.digest()).await.unwrap(), Verdict::Right);
    assert_eq!(
        store.verify(Digest::of(b"none")).await.unwrap(),
        Verdict::Absent
    );
    flip(&store.shared.layout.sealed_data(bad.digest()), 3, true);
    let scrubbing = store.clone();
    let scrub = tokio::spawn(async move { scrubbing.scrub(NonZeroU64::MAX).await });
    is_told(&store, &bad).await;
    assert_eq!(store.verify(good.digest()).await.unwrap(), Verdict::Right);
    assert_eq!(store.verify(bad.digest()).await.unwrap(), Verdict::Absent);
    scrub.abort();
}

#[tokio::test]
async fn few_damaged_blobs_are_kept_and_their_room_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for seed in 10..17 {
        let (store, _, meta) = sealed(dir.path(), seed).await;
        drop(store);
        all.push(meta);
    }
    let store = FsStore::open(dir.path()).await.unwrap();
    let each = all[0].length();
    for meta in &all {
        flip(&store.shared.layout.sealed_data(meta.digest()), 9, false);
        assert_eq!(store.verify(meta.digest()).await.unwrap(), Verdict::Absent);
    }
    let kept = fs::read_dir(store.shared.layout.damaged_dir())
        .unwrap()
        .count();
    assert_eq!(kept, 4);
    assert_eq!(store.usage().unwrap().bytes, 4 * each);
}
