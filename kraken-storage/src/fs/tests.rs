use std::fs;
use std::path::Path;
use std::time::Duration;

use kraken_proto::cache::ledger::Lifetimes;
use tempfile::TempDir;

use super::trust_tests::unprotect;
use super::*;
use crate::store::UploadStore;

/// Four pieces, the last one short.
const LEN: usize = 3 * (256 << 10) + 1000;

fn blob(seed: u8) -> (Vec<u8>, MetaInfo) {
    let bytes: Vec<u8> = (0..LEN)
        .map(|at| (at / 251 + at * 7) as u8 ^ seed)
        .collect();
    let meta = MetaInfo::of(&bytes);
    (bytes, meta)
}

fn piece(bytes: &[u8], meta: &MetaInfo, piece: u32) -> Bytes {
    let range = meta.piece_range(piece);
    Bytes::copy_from_slice(&bytes[range.start as usize..range.end as usize])
}

async fn write(store: &FsStore, bytes: &[u8], meta: &MetaInfo, pieces: &[u32]) {
    store.open(meta.clone()).await.unwrap();
    for index in pieces {
        let data = piece(bytes, meta, *index);
        store.write(meta.digest(), *index, data).await.unwrap();
    }
}

async fn open(dir: &Path) -> FsStore {
    FsStore::open(dir).await.unwrap()
}

async fn sealed(dir: &Path, seed: u8) -> (FsStore, Vec<u8>, MetaInfo) {
    let store = open(dir).await;
    let (bytes, meta) = blob(seed);
    write(&store, &bytes, &meta, &[0, 1, 2, 3]).await;
    store.seal(meta.digest()).await.unwrap();
    (store, bytes, meta)
}

async fn assert_sealed(store: &FsStore, bytes: &[u8], meta: &MetaInfo) {
    let status = store.status(meta.digest()).await.unwrap();
    assert_eq!(status, BlobStatus::Sealed { meta: meta.clone() });
    let read = store.read(meta.digest(), 0, u32::MAX).await.unwrap();
    assert!(read == bytes);
    assert_eq!(store.list().await.unwrap(), [meta.digest()]);
    let partial = fs::read_dir(store.shared.layout.partial_dir()).unwrap();
    assert_eq!(partial.count(), 0, "nothing is left under partial/");
}

/// Without a high mark: nothing goes before the ceiling, and a twentieth more than must.
async fn within(dir: &Path, ceiling: Option<Ceiling>) -> FsStore {
    let ceiling = ceiling.and_then(|it| it.with_marks(it.most(), it.most() - it.most() / 20));
    let options = FsOptions {
        ceiling,
        ..FsOptions::default()
    };
    FsStore::open_with(dir, options).await.unwrap()
}

fn used(store: &FsStore) -> u64 {
    store.usage().unwrap().bytes
}

/// A store for three of the test's blobs and a quarter.
async fn narrow(dir: &Path) -> FsStore {
    let ceiling = Some(Ceiling::of((3 * LEN + LEN / 4) as u64));
    within(dir, ceiling).await
}

async fn fill(store: &FsStore, seed: u8) -> Digest {
    let (bytes, meta) = blob(seed);
    write(store, &bytes, &meta, &[0, 1, 2, 3]).await;
    store.seal(meta.digest()).await.unwrap();
    meta.digest()
}

async fn victims(store: &FsStore, spared: &[Digest]) -> Result<Vec<Digest>, StoreError> {
    let spared = spared.iter().copied().collect();
    store.victims(Need::blob(LEN as u64), &spared).await
}

#[tokio::test]
async fn what_would_pass_the_ceiling_is_refused_and_the_longest_unused_is_to_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = narrow(dir.path()).await;
    let (first, second) = (fill(&store, 1).await, fill(&store, 2).await);
    let (bytes, third) = blob(3);
    write(&store, &bytes, &third, &[0]).await;
    let (bytes, fourth) = blob(4);
    let refused = store.open(fourth.clone()).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    assert_eq!(
        store.status(fourth.digest()).await.unwrap(),
        BlobStatus::Absent
    );
    store.read(first, 0, 10).await.unwrap();
    assert_eq!(victims(&store, &[]).await.unwrap(), [second]);
    assert_eq!(victims(&store, &[second]).await.unwrap(), [third.digest()]);
    let all = [first, second, third.digest()];
    assert!(matches!(victims(&store, &all).await, Err(StoreError::Full)));
    // Somebody was refused, if only an empty blob: something goes, or nothing can be done.
    let none = all.into_iter().collect();
    assert!(matches!(
        store.victims(Need::blob(0), &none).await,
        Err(StoreError::Full)
    ));
    let empty = store.victims(Need::blob(0), &HashSet::new()).await.unwrap();
    assert_eq!(empty, [second]);
    store.remove(second).await.unwrap();
    write(&store, &bytes, &fourth, &[0, 1, 2, 3]).await;
    store.seal(fourth.digest()).await.unwrap();
    assert_eq!(used(&store), 3 * LEN as u64);
    // A partial blob gives its room back, too.
    store.discard(third.digest()).await.unwrap();
    assert_eq!(used(&store), 2 * LEN as u64);
}

#[tokio::test]
async fn uploads_count_as_they_grow_and_one_that_is_refused_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = narrow(dir.path()).await;
    let (first, _) = (fill(&store, 1).await, fill(&store, 2).await);
    let (bytes, meta) = blob(3);
    let upload = store.upload_start().await.unwrap();
    let (head, tail) = bytes.split_at(LEN - 1000);
    let append = |at: usize, part: &[u8]| {
        let part = Bytes::copy_from_slice(part);
        store.upload_append(&upload, at as u64, part)
    };
    append(0, head).await.unwrap();
    let refused = append(head.len(), &[0; LEN / 4 + 1001]).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    assert_eq!(
        store.upload_len(&upload).await.unwrap() as usize,
        head.len()
    );
    assert_eq!(used(&store) as usize, 3 * LEN - 1000);
    append(head.len(), tail).await.unwrap();
    assert_eq!(
        store.upload_commit(&upload, meta.digest()).await.unwrap(),
        meta
    );
    assert_eq!(used(&store), 3 * LEN as u64, "counted once");

    let given_up = store.upload_start().await.unwrap();
    let some = Bytes::from_static(&[1; 900]);
    store.upload_append(&given_up, 0, some).await.unwrap();
    assert_eq!(used(&store), 3 * LEN as u64 + 900);
    store.upload_abort(&given_up).await.unwrap();
    assert_eq!(used(&store), 3 * LEN as u64);
    // The same bytes again take nothing more.
    store.remove(first).await.unwrap();
    let again = store.upload_start().await.unwrap();
    store.upload_append(&again, 0, bytes.into()).await.unwrap();
    store.upload_commit(&again, meta.digest()).await.unwrap();
    assert_eq!(used(&store), 2 * LEN as u64);
}

#[tokio::test]
async fn the_order_of_use_and_pins_survive_a_restart_and_looking_is_no_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = narrow(dir.path()).await;
    let (first, second) = (fill(&store, 1).await, fill(&store, 2).await);
    let third = fill(&store, 3).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.read(first, 0, 1).await.unwrap();
    store.note_uses().await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(store.verify(second).await.unwrap(), Verdict::Right);
    store.pin(third, true).await.unwrap();
    let kept = store.kept(first).unwrap();
    drop(store);
    let store = narrow(dir.path()).await;
    let now = store.kept(first).unwrap();
    assert_eq!(now.used_ms, kept.used_ms);
    // A file's time is that of the kernel's last tick.
    assert!(
        kept.born_ms.abs_diff(now.born_ms) < 1000,
        "{kept:?} {now:?}"
    );
    assert!(store.kept(third).unwrap().is_pinned);
    assert_eq!(victims(&store, &[]).await.unwrap(), [second]);
    assert_eq!(victims(&store, &[second]).await.unwrap(), [first]);
    store.pin(third, false).await.unwrap();
    drop(store);
    let store = narrow(dir.path()).await;
    assert!(!store.kept(third).unwrap().is_pinned);
    assert_eq!(victims(&store, &[second]).await.unwrap(), [third]);
}

#[tokio::test]
async fn what_is_over_or_above_a_goal_may_go_without_need() {
    let dir = tempfile::tempdir().unwrap();
    let store = narrow(dir.path()).await;
    let (first, second) = (fill(&store, 1).await, fill(&store, 2).await);
    let none = HashSet::new();
    let hour = Goal::Lifetimes {
        lifetimes: Lifetimes {
            to_live: None,
            to_idle: Some(Duration::from_secs(3600)),
        },
        now_ms: room::now_ms() + 3_601_000,
    };
    let mut over = store.surplus(hour, &none).await.unwrap();
    over.sort_unstable();
    let mut both = [first, second];
    both.sort_unstable();
    assert_eq!(over, both);
    store.pin(second, true).await.unwrap();
    assert_eq!(store.surplus(hour, &none).await.unwrap(), [first]);
    let spared = HashSet::from([first]);
    assert_eq!(store.surplus(hour, &spared).await.unwrap(), []);
    assert_eq!(store.surplus(Goal::Marks, &none).await.unwrap(), []);
    assert_eq!(store.surplus(Goal::Percent(70), &none).await.unwrap(), []);
    let half = store.surplus(Goal::Percent(50), &none).await.unwrap();
    assert_eq!(half, [first]);
}

#[tokio::test]
async fn a_sealed_file_is_not_to_be_written_to() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = narrow(dir.path()).await;
    let digest = fill(&store, 1).await;
    let path = store.path(digest).await.unwrap().unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    let (bytes, partial) = blob(2);
    write(&store, &bytes, &partial, &[0]).await;
    assert_eq!(store.path(partial.digest()).await.unwrap(), None);
}

#[tokio::test]
async fn a_restart_counts_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = narrow(dir.path()).await;
    let (first, second) = (fill(&store, 1).await, fill(&store, 2).await);
    let (bytes, third) = blob(3);
    write(&store, &bytes, &third, &[2]).await;
    let upload = store.upload_start().await.unwrap();
    let some = Bytes::from_static(&[1; 700]);
    store.upload_append(&upload, 0, some).await.unwrap();
    // The second one was used last a day ago, the first one two days ago.
    let day = Duration::from_secs(24 * 3600);
    for (digest, days) in [(first, 2), (second, 1)] {
        let path = store.shared.layout.sealed_data(digest);
        let file = File::open(path).unwrap();
        let time = std::time::SystemTime::now() - day * days;
        let times = fs::FileTimes::new().set_accessed(time).set_modified(time);
        file.set_times(times).unwrap();
    }
    let taken = used(&store);
    assert_eq!(taken, 3 * LEN as u64 + 700);
    drop(store);
    let store = narrow(dir.path()).await;
    assert_eq!(used(&store), taken);
    assert_eq!(victims(&store, &[]).await.unwrap(), [first]);
    assert_eq!(victims(&store, &[first]).await.unwrap(), [second]);
    // A lower ceiling removes nothing by itself.
    drop(store);
    let ceiling = Some(Ceiling::of(LEN as u64));
    let store = within(dir.path(), ceiling).await;
    assert_eq!(used(&store), taken);
    let refused = store.open(blob(4).1).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    write(&store, &bytes, &third, &[0, 1, 3]).await;
    store.seal(third.digest()).await.unwrap();
}

#[cfg(feature = "testkit")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicU32::new(0);
    let make = async || {
        let number = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        open(&dir.path().join(number.to_string())).await
    };
    crate::testkit::conforms(make).await;
    crate::testkit::uploads_conform(make).await;
}

#[tokio::test]
async fn a_directory_has_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let second = FsStore::open(dir.path()).await.unwrap_err();
    assert!(second.to_string().contains("open already"), "{second}");
    drop(first);
    open(dir.path()).await;
}

#[tokio::test]
async fn a_killed_download_resumes_without_the_damaged_piece() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, meta) = blob(1);
    let store = open(dir.path()).await;
    write(&store, &bytes, &meta, &[3, 0, 2]).await;
    let data = store.shared.layout.partial_data(meta.digest());
    drop(store);
    let mut on_disk = fs::read(&data).unwrap();
    on_disk[5] ^= 1;
    fs::write(&data, on_disk).unwrap();

    let store = open(dir.path()).await;
    let have = store.open(meta.clone()).await.unwrap();
    assert_eq!(have.iter().collect::<Vec<_>>(), [2, 3]);
    let read = store.read(meta.digest(), 0, 1).await;
    assert!(matches!(read, Err(StoreError::Missing { piece: 0, .. })));
    write(&store, &bytes, &meta, &[0, 1]).await;
    store.seal(meta.digest()).await.unwrap();
    assert_sealed(&store, &bytes, &meta).await;
}

#[tokio::test]
async fn a_killed_download_of_an_open_blob_keeps_what_its_file_can_prove() {
    let (bytes, whole) = blob(3);
    let mut meta = MetaInfo::open(whole.digest(), LEN as u64).unwrap();
    for known in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        store.open(meta.clone()).await.unwrap();
        for index in meta.known_states()..known {
            let data = piece(&bytes, &whole, index);
            let state = meta.state_before(index).advance(&data);
            meta = meta.continued([state]).unwrap();
            write(&store, &bytes, &meta, &[index]).await;
        }
        drop(store);
        let store = open(dir.path()).await;
        // One state is too little to write the file for, all of them are not.
        let expected = if meta.is_whole() { 2 } else { 0 };
        let BlobStatus::Partial { have, .. } = store.status(whole.digest()).await.unwrap() else {
            panic!("it is partial");
        };
        assert_eq!(have.count(), expected);
        write(&store, &bytes, &whole, &[0, 1, 2, 3]).await;
        store.seal(whole.digest()).await.unwrap();
        assert_sealed(&store, &bytes, &whole).await;
    }
}

#[tokio::test]
async fn a_torn_journal_and_a_short_file_lose_only_what_they_lack() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, meta) = blob(2);
    let store = open(dir.path()).await;
    write(&store, &bytes, &meta, &[0, 1, 3]).await;
    let layout = &store.shared.layout;
    let (data, have) = (
        layout.partial_data(meta.digest()),
        layout.partial_have(meta.digest()),
    );
    drop(store);
    // The last record is torn, and one claims a piece that the blob does not have.
    let mut journal = fs::read(&have).unwrap();
    journal.truncate(10);
    journal.splice(0..0, 77_u32.to_le_bytes());
    fs::write(&have, journal).unwrap();
    File::options()
        .write(true)
        .open(&data)
        .unwrap()
        .set_len(meta.piece_range(1).end - 1)
        .unwrap();

    let store = open(dir.path()).await;
    let have = store.open(meta.clone()).await.unwrap();
    assert_eq!(have.iter().collect::<Vec<_>>(), [0]);
    write(&store, &bytes, &meta, &[1, 2]).await;
    drop(store);
    let store = open(dir.path()).await;
    let have = store.open(meta.clone()).await.unwrap();
    assert_eq!(have.iter().collect::<Vec<_>>(), [0, 1, 2]);
}

#[tokio::test]
async fn a_partial_blob_without_its_metainfo_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, meta) = blob(3);
    for damage in [true, false] {
        let store = open(dir.path()).await;
        write(&store, &bytes, &meta, &[0]).await;
        let path = store.shared.layout.partial_meta(meta.digest());
        drop(store);
        match damage {
            true => fs::write(&path, b"not a metainfo").unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        let store = open(dir.path()).await;
        let status = store.status(meta.digest()).await.unwrap();
        assert_eq!(status, BlobStatus::Absent);
        let left = fs::read_dir(store.shared.layout.partial_dir()).unwrap();
        assert_eq!(left.count(), 0);
    }
}

/// A process that dies after `steps` of a seal leaves a blob that can be sealed, or is.
#[tokio::test]
async fn a_seal_may_die_at_any_step() {
    for steps in 0..=4 {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, meta) = blob(4);
        let digest = meta.digest();
        let store = open(dir.path()).await;
        write(&store, &bytes, &meta, &[0, 1, 2, 3]).await;
        let layout = &store.shared.layout;
        if steps >= 1 {
            meta::write(layout, &layout.temp(), &meta, true).unwrap();
        }
        if steps >= 2 {
            let stamp = trust::stamp(&layout.partial_data(digest)).unwrap().unwrap();
            meta::write_sealed(layout, &layout.sealed_meta(digest), &meta, stamp).unwrap();
        }
        if steps >= 3 {
            fs::rename(layout.partial_data(digest), layout.sealed_data(digest)).unwrap();
        }
        if steps >= 4 {
            fs::remove_file(layout.partial_meta(digest)).unwrap();
        }
        drop(store);

        let store = open(dir.path()).await;
        let status = store.status(digest).await.unwrap();
        let is_sealed = matches!(status, BlobStatus::Sealed { .. });
        assert_eq!(is_sealed, steps >= 3, "after {steps} steps");
        let have = store.open(meta.clone()).await.unwrap();
        assert!(have.is_full(), "after {steps} steps");
        store.seal(digest).await.unwrap();
        assert_sealed(&store, &bytes, &meta).await;
        let left = fs::read_dir(dir.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0, "temporary files are swept");
    }
}

#[tokio::test]
async fn a_lost_metainfo_is_computed_again() {
    for damage in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, bytes, meta) = sealed(dir.path(), 5).await;
        let path = store.shared.layout.sealed_meta(meta.digest());
        drop(store);
        let good = fs::read(&path).unwrap();
        match damage {
            true => fs::write(&path, &good[..good.len() - 40]).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        let store = open(dir.path()).await;
        assert_sealed(&store, &bytes, &meta).await;
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

#[tokio::test]
async fn a_damaged_sealed_blob_is_set_aside_and_never_served() {
    for shorten in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (store, bytes, meta) = sealed(dir.path(), 6).await;
        let layout = &store.shared.layout;
        let (data, info) = (
            layout.sealed_data(meta.digest()),
            layout.sealed_meta(meta.digest()),
        );
        let aside = layout.damaged(meta.digest());
        drop(store);
        let mut on_disk = fs::read(&data).unwrap();
        if shorten {
            on_disk.pop();
        } else {
            on_disk[70] ^= 1;
            fs::remove_file(&info).unwrap();
        }
        unprotect(&data);
        fs::write(&data, &on_disk).unwrap();

        let store = open(dir.path()).await;
        let status = store.status(meta.digest()).await.unwrap();
        assert_eq!(status, BlobStatus::Absent);
        let read = store.read(meta.digest(), 0, 1).await;
        assert!(matches!(read, Err(StoreError::Absent(_))));
        assert_eq!(store.list().await.unwrap(), []);
        assert!(fs::read(aside).unwrap() == on_disk);
        write(&store, &bytes, &meta, &[0, 1, 2, 3]).await;
        store.seal(meta.digest()).await.unwrap();
        assert_sealed(&store, &bytes, &meta).await;
    }
}

#[tokio::test]
async fn a_file_cut_under_a_running_store_is_an_error_and_not_a_short_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, meta) = sealed(dir.path(), 7).await;
    let data = store.shared.layout.sealed_data(meta.digest());
    unprotect(&data);
    File::options()
        .write(true)
        .open(data)
        .unwrap()
        .set_len(100)
        .unwrap();
    let read = store.read(meta.digest(), 50, 100).await;
    assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
}

#[tokio::test]
async fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bytes, meta) = sealed(dir.path(), 8).await;
    drop(store);
    let foreign = [
        "sealed/00/readme".to_string(),
        format!("sealed/00/{}", Digest::of(b"misplaced").hex()),
        "uploads/not-an-upload".to_string(),
        "tmp/notes".to_string(),
    ];
    for name in &foreign {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    let store = open(dir.path()).await;
    assert_sealed(&store, &bytes, &meta).await;
    assert_eq!(store.uploads_expire(Duration::ZERO).await.unwrap(), 0);
    for name in &foreign {
        assert!(dir.path().join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, meta) = blob(9);
    let store = open(dir.path()).await;
    let upload = store.upload_start().await.unwrap();
    let (first, rest) = bytes.split_at(300_001);
    store
        .upload_append(&upload, 0, Bytes::copy_from_slice(first))
        .await
        .unwrap();
    drop(store);

    let store = open(dir.path()).await;
    let len = store.upload_len(&upload).await.unwrap();
    assert_eq!(len, first.len() as u64);
    store
        .upload_append(&upload, len, Bytes::copy_from_slice(rest))
        .await
        .unwrap();
    let committed = store.upload_commit(&upload, meta.digest()).await.unwrap();
    assert_eq!(committed, meta);
    assert_sealed(&store, &bytes, &meta).await;
    let uploads = fs::read_dir(store.shared.layout.uploads_dir()).unwrap();
    assert_eq!(uploads.count(), 0);
    drop(store);
    assert_sealed(&open(dir.path()).await, &bytes, &meta).await;
}

#[tokio::test]
async fn old_uploads_expire_and_young_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let known = store.upload_start().await.unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(store.uploads_expire(hour).await.unwrap(), 0);
    store.upload_len(&known).await.unwrap();
    drop(store);
    let store = open(dir.path()).await;
    let new = store.upload_start().await.unwrap();
    assert_eq!(store.uploads_expire(Duration::ZERO).await.unwrap(), 2);
    for upload in [known, new] {
        let len = store.upload_len(&upload).await;
        assert!(matches!(len, Err(StoreError::UploadUnknown(_))));
    }
    assert!(store.shared.uploads.is_empty());
}

#[tokio::test]
async fn names_that_clients_make_up_are_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for _ in 0..10 {
        let made_up = uuid::Uuid::now_v7().to_string();
        store.upload_len(&made_up).await.unwrap_err();
    }
    assert!(store.shared.uploads.is_empty());
}

#[tokio::test]
async fn a_failed_append_leaves_the_upload_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let upload = store.upload_start().await.unwrap();
    let abc = Bytes::from_static(b"abc");
    store.upload_append(&upload, 0, abc.clone()).await.unwrap();
    let path = store.shared.layout.uploads_dir().join(&upload);
    let away = dir.path().join("away");
    fs::rename(&path, &away).unwrap();
    let failed = store.upload_append(&upload, 3, abc).await;
    assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
    fs::rename(&away, &path).unwrap();
    assert_eq!(store.upload_len(&upload).await.unwrap(), 3);
    let digest = Digest::of(b"abc");
    store.upload_commit(&upload, digest).await.unwrap();
}

/// Removing and beginning anew under readers, writers and sealers: every answer is one that some
/// order of the calls explains, and every byte read is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_may_come_and_go_under_its_users() {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (bytes, meta) = blob(10);
    let users = (0..4_u32).map(|user| {
        let (store, bytes, meta) = (store.clone(), bytes.clone(), meta.clone());
        tokio::spawn(async move {
            let digest = meta.digest();
            for round in 0..20 {
                store.open(meta.clone()).await.unwrap();
                for index in 0..4 {
                    let data = piece(&bytes, &meta, index);
                    match store.write(digest, index, data.clone()).await {
                        Ok(()) | Err(StoreError::Absent(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                    let at = meta.piece_range(index).start;
                    match store.read(digest, at, meta.piece_size(index)).await {
                        Ok(read) => assert!(read == data),
                        Err(StoreError::Absent(_) | StoreError::Missing { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                match store.seal(digest).await {
                    Ok(()) | Err(StoreError::Absent(_) | StoreError::Missing { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                if round % 4 == user {
                    store.remove(digest).await.unwrap();
                }
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.unwrap();
    }
    write(&store, &bytes, &meta, &[0, 1, 2, 3]).await;
    store.seal(meta.digest()).await.unwrap();
    assert_sealed(&store, &bytes, &meta).await;
}

/// What a dropped future began goes on and is seen by the next call, never half of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_may_be_dropped_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (bytes, meta) = blob(11);
    let digest = meta.digest();
    for round in 0..30_u64 {
        let whole = async {
            write(&store, &bytes, &meta, &[0, 1, 2, 3]).await;
            store.seal(digest).await.unwrap();
            store.remove(digest).await.unwrap();
        };
        let _ = tokio::time::timeout(Duration::from_micros(150 * round), whole).await;
    }
    write(&store, &bytes, &meta, &[0, 1, 2, 3]).await;
    store.seal(digest).await.unwrap();
    assert_sealed(&store, &bytes, &meta).await;
}
