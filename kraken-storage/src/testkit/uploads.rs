//! What every store that takes uploads does.

use bytes::Bytes;
use futures::future::join_all;
use kraken_proto::Digest;

use super::pieces::assert_reads;
use super::{blob, piece};
use crate::store::{BlobStatus, StoreError, UploadStore};

/// Runs the suite over the stores that `make` gives, an empty one each time.
///
/// # Panics
/// The store does not do what [`UploadStore`] promises.
pub async fn uploads_conform<S: UploadStore>(make: impl AsyncFn() -> S) {
    an_upload_becomes_a_blob(&make().await).await;
    offsets_are_checked(&make().await).await;
    a_wrong_digest_leaves_nothing(&make().await).await;
    aborted_and_made_up_uploads_are_unknown(&make().await).await;
    a_blob_that_is_there_stays(&make().await).await;
    an_upload_completes_a_partial_blob(&make().await).await;
    appends_do_not_mix(&make().await).await;
    one_blob_may_be_uploaded_many_times_at_once(&make().await).await;
}

/// Several pieces and a short last one.
const LEN: usize = 2 * (256 << 10) + 777;

async fn an_upload_becomes_a_blob(store: &impl UploadStore) {
    for len in [0, 1, LEN] {
        let (bytes, meta) = blob(len, 1);
        let upload = start(store).await;
        let mut at = 0;
        for chunk in bytes.chunks(100_001) {
            at = append(store, &upload, at, chunk).await;
            let len = store.upload_len(&upload).await.expect("is known");
            assert_eq!(len, at);
        }
        let committed = store.upload_commit(&upload, meta.digest()).await;
        assert_eq!(committed.expect("the digest is right"), meta);
        let status = store.status(meta.digest()).await.expect("reads");
        assert_eq!(status, BlobStatus::Sealed { meta: meta.clone() });
        if len == LEN {
            assert_reads(store, &meta, &bytes).await;
        }
        let again = store.upload_commit(&upload, meta.digest()).await;
        assert_unknown(again);
    }
    assert_eq!(store.list().await.expect("lists").len(), 3);
}

async fn offsets_are_checked(store: &impl UploadStore) {
    let upload = start(store).await;
    append(store, &upload, 0, b"abc").await;
    for offset in [0, 2, 4, u64::MAX] {
        let wrong = store.upload_append(&upload, offset, Bytes::from_static(b"x"));
        let wrong = wrong.await;
        assert!(
            matches!(wrong, Err(StoreError::UploadOffset { len: 3, offset: it }) if it == offset),
            "{wrong:?}"
        );
    }
    append(store, &upload, 3, b"").await;
    append(store, &upload, 3, b"d").await;
    let committed = store.upload_commit(&upload, Digest::of(b"abcd")).await;
    committed.expect("a refused append changes nothing");
}

async fn a_wrong_digest_leaves_nothing(store: &impl UploadStore) {
    let upload = start(store).await;
    append(store, &upload, 0, b"abc").await;
    let (expected, found) = (Digest::of(b"abd"), Digest::of(b"abc"));
    match store.upload_commit(&upload, expected).await {
        Err(StoreError::DigestMismatch {
            expected: e,
            found: f,
        }) => {
            assert_eq!((e, f), (expected, found));
        }
        other => panic!("a wrong digest gave {other:?}"),
    }
    assert_unknown(store.upload_len(&upload).await);
    for digest in [expected, found] {
        let status = store.status(digest).await.expect("reads");
        assert_eq!(status, BlobStatus::Absent);
    }
}

async fn aborted_and_made_up_uploads_are_unknown(store: &impl UploadStore) {
    let upload = start(store).await;
    append(store, &upload, 0, b"abc").await;
    store.upload_abort(&upload).await.expect("aborts");
    let never = "018f4e2a-7c3b-7def-8abc-0123456789ab".to_string();
    let names = [
        upload,
        never,
        String::new(),
        ".".into(),
        "../lock".into(),
        "/etc/passwd".into(),
    ];
    for name in names {
        assert_unknown(store.upload_len(&name).await);
        assert_unknown(store.upload_append(&name, 0, Bytes::new()).await);
        assert_unknown(store.upload_commit(&name, Digest::of(b"abc")).await);
        store.upload_abort(&name).await.expect("no error");
    }
}

async fn a_blob_that_is_there_stays(store: &impl UploadStore) {
    let (bytes, meta) = blob(LEN, 2);
    for _ in 0..2 {
        let upload = start(store).await;
        append(store, &upload, 0, &bytes).await;
        let committed = store.upload_commit(&upload, meta.digest()).await;
        assert_eq!(committed.expect("the digest is right"), meta);
        assert_unknown(store.upload_len(&upload).await);
        assert_reads(store, &meta, &bytes).await;
    }
}

async fn an_upload_completes_a_partial_blob(store: &impl UploadStore) {
    let (bytes, meta) = blob(LEN, 3);
    store.open(meta.clone()).await.expect("opens");
    let first = piece(&bytes, &meta, 0);
    let written = store.write(meta.digest(), 0, first.clone()).await;
    written.expect("the piece fits");
    let read = store.read(meta.digest(), 0, 10).await;
    assert_eq!(read.expect("is there"), first[..10]);

    let upload = start(store).await;
    append(store, &upload, 0, &bytes).await;
    let committed = store.upload_commit(&upload, meta.digest()).await;
    committed.expect("the digest is right");
    assert_reads(store, &meta, &bytes).await;
    store.seal(meta.digest()).await.expect("is sealed already");
}

async fn appends_do_not_mix(store: &impl UploadStore) {
    let upload = start(store).await;
    let chunks: Vec<_> = (0..8).map(|i| super::bytes(70_000, i)).collect();
    let appends = chunks.iter().map(|chunk| {
        let upload = upload.clone();
        async move {
            let chunk = Bytes::copy_from_slice(chunk);
            store.upload_append(&upload, 0, chunk).await
        }
    });
    let results = join_all(appends).await;
    let winner = results.iter().position(Result::is_ok);
    let winner = winner.expect("one append comes first");
    let wins = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(wins, 1, "offset 0 is taken once");
    let digest = Digest::of(&chunks[winner]);
    let committed = store.upload_commit(&upload, digest).await;
    committed.expect("the bytes are those of one append");
}

async fn one_blob_may_be_uploaded_many_times_at_once(store: &impl UploadStore) {
    let (bytes, meta) = blob(LEN, 4);
    let upload = async |_| {
        let upload = start(store).await;
        append(store, &upload, 0, &bytes).await;
        let committed = store.upload_commit(&upload, meta.digest()).await;
        assert_eq!(committed.expect("the digest is right"), meta);
    };
    join_all((0..6).map(upload)).await;
    assert_reads(store, &meta, &bytes).await;
}

async fn start(store: &impl UploadStore) -> String {
    let upload = store.upload_start().await.expect("starts");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let fits = (1..=128).contains(&upload.len()) && upload.bytes().all(plain);
    assert!(fits, "{upload:?} is no part of a URL");
    upload
}

async fn append(store: &impl UploadStore, upload: &str, at: u64, data: &[u8]) -> u64 {
    let data = Bytes::copy_from_slice(data);
    let end = at + data.len() as u64;
    let appended = store.upload_append(upload, at, data).await;
    assert_eq!(appended.expect("appends"), end);
    end
}

fn assert_unknown<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(
        matches!(result, Err(StoreError::UploadUnknown(_))),
        "{result:?}"
    );
}
