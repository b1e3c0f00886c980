//! Blobs that are being pushed, under a digest and with a length that are known before their bytes.

use kraken_core::net::http::ApiError;

use super::*;

/// What one request of a client brings.
const PORTION: usize = 100_000;

/// A cluster whose backend has nothing, and a blob to push.
async fn lab(seed: u8) -> (Cluster, Vec<u8>, Digest) {
    let (tap, _) = Tap::new(seed);
    let (bytes, meta) = blob(LEN, u64::from(seed) + 100);
    let digest = meta.digest();
    (Cluster::of(tap, meta).await, bytes, digest)
}

async fn start(origin: &Origin, digest: Digest) -> String {
    let ns = Namespace::default();
    let started = origin.upload_start_known(&ns, digest, LEN as u64);
    started.await.unwrap()
}

/// Adds the bytes in front of `end` that are missing.
async fn push(origin: &Origin, id: &str, bytes: &[u8], end: usize) {
    let mut at = origin.upload_len(id).await.unwrap() as usize;
    while at < end {
        let stop = end.min(at + PORTION);
        let portion = Bytes::copy_from_slice(&bytes[at..stop]);
        let len = origin.upload_append(id, at as u64, portion).await.unwrap();
        assert_eq!(len as usize, stop);
        at = stop;
    }
}

async fn commit(origin: &Origin, id: &str, digest: Digest) -> Result<MetaInfo, ApiError> {
    origin
        .upload_commit(id, &Namespace::default(), digest)
        .await
}

async fn all_hold_it(cluster: &Cluster, bytes: &[u8]) {
    for (read, end) in cluster.read_all(u64::MAX).await {
        assert_eq!(end, None);
        assert!(read == bytes);
    }
    let digest = cluster.meta.digest();
    for node in &cluster.origins {
        let status = node.store.status(digest).await.unwrap();
        assert!(matches!(status, BlobStatus::Sealed { .. }), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_read_a_blob_while_it_is_pushed() {
    let (cluster, bytes, digest) = lab(11).await;
    let first = &cluster.origins[0].origin;
    let id = start(first, digest).await;
    // The last portion waits for the next one.
    push(first, &id, &bytes, 4 * PIECE as usize + 2 * PORTION).await;
    for (read, end) in cluster.read_all(4 * PIECE).await {
        assert_eq!(end, None);
        assert!(read == bytes[..4 * PIECE as usize]);
    }
    push(first, &id, &bytes, LEN).await;
    let status = cluster.origins[0].store.status(digest).await.unwrap();
    let whole = matches!(status, BlobStatus::Sealed { .. });
    assert!(!whole, "whole before its commit: {status:?}");
    assert_eq!(commit(first, &id, digest).await.unwrap(), cluster.meta);
    all_hold_it(&cluster, &bytes).await;
    eventually("it is written back", async || {
        cluster.tap.written.lock().unwrap().contains(&digest)
    })
    .await;
    // A client that did not hear the answer asks again.
    assert_eq!(commit(first, &id, digest).await.unwrap(), cluster.meta);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_wrong_bytes_is_refused_and_its_readers_do_not_end_well() {
    let (cluster, bytes, digest) = lab(12).await;
    let first = &cluster.origins[0].origin;
    let id = start(first, digest).await;
    let mut wrong = bytes.clone();
    wrong[3 * PIECE as usize] ^= 1;
    push(first, &id, &wrong, LEN).await;
    let readers = cluster.read_all(u64::MAX);
    let committed = async {
        eventually("the wrong bytes have spread", async || {
            let status = cluster.agents[0].1.status(digest).await.unwrap();
            matches!(status, BlobStatus::Partial { have, .. } if have.has(3))
        })
        .await;
        commit(first, &id, digest).await
    };
    let (ends, committed) = tokio::join!(readers, committed);
    assert!(
        matches!(committed, Err(ApiError::BadRequest(_))),
        "{committed:?}"
    );
    for (read, end) in ends {
        end.expect("no reader ends well");
        assert!(read.len() < LEN);
    }
    let stores = cluster.agents.iter().map(|(_, store)| store);
    for store in stores.chain(cluster.origins.iter().map(|node| &node.store)) {
        eventually("nothing of it is kept", async || {
            store.status(digest).await.unwrap() == BlobStatus::Absent
        })
        .await;
    }
    // The right bytes are welcome at once.
    let id = start(first, digest).await;
    push(first, &id, &bytes, LEN).await;
    assert_eq!(commit(first, &id, digest).await.unwrap(), cluster.meta);
    eventually("readers are well again", async || {
        let mut ends = cluster.read_all(u64::MAX).await.into_iter();
        ends.all(|(read, end)| end.is_none() && read == bytes)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_given_up_leaves_nothing_and_tells_its_readers() {
    let (cluster, bytes, digest) = lab(13).await;
    let first = &cluster.origins[0].origin;
    let id = start(first, digest).await;
    push(first, &id, &bytes, 6 * PIECE as usize).await;
    let reader = read(&cluster.agents[0].0, digest, 2 * PIECE).await;
    assert_eq!(reader.1, None);
    first.upload_abort(&id).await.unwrap();
    assert!(matches!(
        first.upload_len(&id).await,
        Err(ApiError::NotFound)
    ));
    let status = cluster.origins[0].store.status(digest).await.unwrap();
    assert_eq!(status, BlobStatus::Absent);
    let gone = commit(first, &id, digest).await;
    assert!(matches!(gone, Err(ApiError::NotFound)), "{gone:?}");
    let id = start(first, digest).await;
    push(first, &id, &bytes, LEN).await;
    commit(first, &id, digest).await.unwrap();
    all_hold_it(&cluster, &bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pushes_of_one_blob_both_succeed() {
    let (cluster, bytes, digest) = lab(14).await;
    let first = &cluster.origins[0].origin;
    let (one, other) = (start(first, digest).await, start(first, digest).await);
    push(first, &one, &bytes, 5 * PIECE as usize).await;
    push(first, &other, &bytes, LEN).await;
    assert_eq!(commit(first, &other, digest).await.unwrap(), cluster.meta);
    push(first, &one, &bytes, LEN).await;
    assert_eq!(commit(first, &one, digest).await.unwrap(), cluster.meta);
    all_hold_it(&cluster, &bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_on_after_a_restart_where_its_pieces_end() {
    let (mut cluster, bytes, digest) = lab(15).await;
    let node = cluster.origins.remove(0);
    let id = start(&node.origin, digest).await;
    push(&node.origin, &id, &bytes, 4 * PIECE as usize + 2 * PORTION).await;
    let store = node.store.clone();
    eventually("what has come whole is kept", async || {
        let status = store.status(digest).await.unwrap();
        matches!(status, BlobStatus::Partial { have, .. } if have.count() == 4)
    })
    .await;
    let name = cluster.cluster.owners(&digest)[0].to_string();
    node.stop().await;
    let node = cluster.spawn_origin(&name, store);
    let (again, ns) = (&node.origin, Namespace::default());
    assert_eq!(again.upload_len(&id).await.unwrap(), 4 * PIECE);
    let behind = again.upload_append(&id, 5 * PIECE, Bytes::new()).await;
    assert!(matches!(behind, Err(ApiError::RangeInvalid { len }) if len == 4 * PIECE));
    push(again, &id, &bytes, LEN).await;
    assert_eq!(
        again.upload_commit(&id, &ns, digest).await.unwrap(),
        cluster.meta
    );
    cluster.origins.insert(0, node);
    all_hold_it(&cluster, &bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_an_announced_push_is_refused_and_loses_nothing() {
    let (cluster, bytes, digest) = lab(16).await;
    let first = &cluster.origins[0].origin;
    let id = start(first, digest).await;
    push(first, &id, &bytes, 2 * PORTION).await;
    let hole = first.upload_append(&id, 0, Bytes::from_static(b"x")).await;
    assert!(matches!(hole, Err(ApiError::RangeInvalid { len }) if len as usize == 2 * PORTION));
    let early = commit(first, &id, digest).await;
    let goes_on =
        matches!(early, Err(ApiError::RangeInvalid { len }) if len as usize == 2 * PORTION);
    assert!(goes_on, "{early:?}");
    let other = commit(first, &id, Digest::of(b"other")).await;
    assert!(matches!(other, Err(ApiError::BadRequest(_))), "{other:?}");
    push(first, &id, &bytes, LEN).await;
    let more = first.upload_append(&id, LEN as u64, Bytes::from_static(b"x"));
    assert!(matches!(more.await, Err(ApiError::BadRequest(_))));
    assert_eq!(commit(first, &id, digest).await.unwrap(), cluster.meta);
    all_hold_it(&cluster, &bytes).await;
    // A made-up id of a blob that nobody has pushed.
    let made_up = id.replace(&digest.hex(), &Digest::of(b"other").hex());
    assert!(matches!(
        first.upload_len(&made_up).await,
        Err(ApiError::NotFound)
    ));
    // A blob that the backend has is not announced anew: wrong bytes would take its place.
    let stored = cluster.tap.digest;
    let ns = Namespace::default();
    let id = first
        .upload_start_known(&ns, stored, LEN as u64)
        .await
        .unwrap();
    push(first, &id, &bytes, LEN).await;
    cluster.tap.open(LEN as u64);
    let (read, end) = read(&cluster.agents[0].0, stored, u64::MAX).await;
    assert_eq!(end, None);
    assert!(read == cluster.tap.bytes);
    let refused = commit(first, &id, stored).await;
    assert!(
        matches!(refused, Err(ApiError::BadRequest(_))),
        "{refused:?}"
    );
}
