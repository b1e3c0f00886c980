//! A ring of origins, some of them ill.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_proto::{Digest, MetaInfo};

use super::fake::{Fake, Origin, blob, collect, namespace};
use crate::http::{ApiError, HttpClient};
use crate::origin::{OriginCluster, RingMember};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn cluster() -> (BTreeMap<&'static str, Origin>, OriginCluster) {
    let origins: BTreeMap<_, _> = NAMES
        .into_iter()
        .map(|name| (name, Origin::start(Arc::new(Fake::default()))))
        .collect();
    let urls = origins
        .iter()
        .map(|(name, origin)| RingMember::new(*name, origin.url.clone()));
    let cluster = OriginCluster::new(urls, HttpClient::new(None).unwrap(), 2);
    (origins, cluster)
}

#[tokio::test]
async fn whoever_has_the_blob_answers() {
    let (origins, cluster) = cluster();
    let ns = namespace();
    for (index, name) in NAMES.into_iter().enumerate() {
        let bytes = blob(1000 + index);
        origins[name].fake.put(&bytes);
        let digest = Digest::of(&bytes);
        assert_eq!(cluster.owners(&digest).len(), 2);
        let length = cluster.stat(&ns, digest).await;
        assert_eq!(length, Ok(bytes.len() as u64));
        let meta = cluster.metainfo(&ns, digest).await;
        assert_eq!(meta, Ok(MetaInfo::of(&bytes)));
        let part = cluster.read(&ns, digest, Some(7..u64::MAX)).await.unwrap();
        assert_eq!(part.length, bytes.len() as u64);
        assert!(collect(part).await.unwrap() == bytes[7..]);
    }
}

#[tokio::test]
async fn missing_is_said_only_when_enough_were_asked() {
    let (mut origins, cluster) = cluster();
    let (ns, missing) = (namespace(), Digest::of(b"missing"));
    assert_eq!(cluster.stat(&ns, missing).await, Err(ApiError::NotFound));
    let error = cluster.read(&ns, missing, None).await.unwrap_err();
    assert_eq!(error, ApiError::NotFound);
    // A blob that exists is at a quorum of two, or in the backend that each origin asks: one silent
    // origin cannot hide it, two can.
    origins["b"].fake.down.store(true, Ordering::Relaxed);
    assert_eq!(
        cluster.metainfo(&ns, missing).await,
        Err(ApiError::NotFound)
    );
    origins.remove("a").unwrap().kill().await;
    let error = cluster.stat(&ns, missing).await.unwrap_err();
    assert!(matches!(error, ApiError::Unavailable(_)), "{error}");
    let none = OriginCluster::new([], HttpClient::new(None).unwrap(), 2);
    let error = none.stat(&ns, missing).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_read_goes_on_at_another_origin() {
    let (origins, cluster) = cluster();
    let bytes = blob(500_000);
    let digest = Digest::of(&bytes);
    let owners = cluster.owners(&digest);
    for owner in &owners {
        origins[&**owner].fake.put(&bytes);
    }
    let first = &origins[&*owners[0]].fake;
    first.breaks.store(true, Ordering::Relaxed);
    let read = cluster.read(&namespace(), digest, None).await.unwrap();
    // On a task of its own: the futures are Send.
    let read = tokio::spawn(collect(read)).await.unwrap().unwrap();
    assert!(read == bytes);
    let reads = |name: &str| origins[name].fake.reads.load(Ordering::Relaxed);
    assert_eq!((reads(&owners[0]), reads(&owners[1])), (1, 1));
    // Who failed lately is asked last.
    let again = cluster.read(&namespace(), digest, Some(5..900)).await;
    assert!(collect(again.unwrap()).await.unwrap() == bytes[5..900]);
    assert_eq!((reads(&owners[0]), reads(&owners[1])), (1, 2));
}

#[tokio::test]
async fn a_read_that_nobody_can_finish_fails() {
    let (origins, cluster) = cluster();
    let bytes = blob(500_000);
    let digest = Digest::of(&bytes);
    let owner = &origins[&*cluster.owners(&digest)[0]].fake;
    owner.put(&bytes);
    // Half of the rest each time, and in the end nothing: a short body must not look whole.
    owner.breaks.store(true, Ordering::Relaxed);
    let read = cluster.read(&namespace(), digest, None).await.unwrap();
    assert!(collect(read).await.is_err());
    assert!(owner.reads.load(Ordering::Relaxed) > NAMES.len());
}

#[tokio::test]
async fn a_range_without_bytes_is_refused() {
    let (origins, cluster) = cluster();
    origins["a"].fake.put(b"0123456789");
    let digest = Digest::of(b"0123456789");
    for range in [3..3, 10..12] {
        let error = cluster.read(&namespace(), digest, Some(range)).await;
        assert_eq!(error.unwrap_err(), ApiError::RangeInvalid { len: 10 });
    }
    let empty = Digest::of(b"");
    origins["a"].fake.put(b"");
    let read = cluster.read(&namespace(), empty, None).await.unwrap();
    assert_eq!(collect(read).await.unwrap(), b"");
}

#[tokio::test]
async fn an_upload_goes_on_when_its_origin_is_back() {
    let (origins, cluster) = cluster();
    let bytes = blob(20 << 20);
    let (name, id) = cluster.upload_start().await.unwrap();
    let fake = origins[&*name].fake.clone();
    let chunks: Vec<_> = bytes.chunks(300_000).map(Bytes::copy_from_slice).collect();
    let body = futures::stream::iter(chunks.into_iter().enumerate()).map(move |(number, chunk)| {
        if number == 40 {
            fake.down.store(true, Ordering::Relaxed);
            let back = fake.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(400)).await;
                back.down.store(false, Ordering::Relaxed);
            });
        }
        Ok(chunk)
    });
    let appended = cluster.upload_append(&name, &id, 0, body.boxed()).await;
    assert_eq!(appended, Ok(20 << 20));
    let digest = Digest::of(&bytes);
    let committed = cluster
        .upload_commit(&name, &id, &namespace(), digest)
        .await;
    assert_eq!(committed.unwrap().digest(), digest);
    assert!(origins[&*name].fake.blobs.lock().unwrap()[&digest] == bytes);
    // Nobody waits for what will not be.
    let unknown = cluster
        .upload_append(&name, &id, 0, futures::stream::empty().boxed())
        .await;
    assert_eq!(unknown, Err(ApiError::NotFound));
}

#[tokio::test]
async fn one_origin_that_reaches_the_backend_is_enough() {
    let (origins, cluster) = cluster();
    for origin in origins.values() {
        origin.fake.is_cut_off.store(true, Ordering::Relaxed);
    }
    let (ns, digest) = (namespace(), Digest::of(b"backend"));
    let error = cluster.stat(&ns, digest).await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, ApiError::Behind { .. }), "{told}");
    assert!(told.contains("the storage behind http"), "{told}");
    // It is the last that is asked.
    let owners = cluster.owners(&digest);
    let last = NAMES.iter().find(|it| !owners.contains(&it.to_string()));
    let fake = &origins[last.unwrap()].fake;
    fake.is_cut_off.store(false, Ordering::Relaxed);
    assert_eq!(cluster.stat(&ns, digest).await, Ok(7));
}

#[tokio::test]
async fn uploads_begin_where_they_may() {
    let (origins, cluster) = cluster();
    let full = || Some(ApiError::Full("the disk is full".into()));
    *origins["a"].fake.refuses.lock().unwrap() = full();
    for _ in 0..6 {
        assert_ne!(cluster.upload_start().await.unwrap().0, "a");
    }
    let (ns, digest) = (namespace(), Digest::of(b"known"));
    let known = cluster.upload_start_known(&ns, digest, 5).await.unwrap();
    assert_ne!(known.0, "a");
    for origin in origins.values() {
        *origin.fake.refuses.lock().unwrap() = full();
    }
    let refused = cluster.upload_start().await.unwrap_err();
    assert!(matches!(refused, ApiError::Full(_)), "{refused}");
    // A copy of what another origin has taken is not an upload.
    let client = cluster.origin("a").unwrap();
    client.upload_start_replica(digest).await.unwrap();
}

#[tokio::test]
async fn uploads_take_turns_and_avoid_the_dead() {
    let (mut origins, cluster) = cluster();
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(cluster.upload_start().await.unwrap().0);
    }
    names.sort();
    assert_eq!(names, NAMES);
    origins.remove("b").unwrap().kill().await;
    for _ in 0..6 {
        let (name, id) = cluster.upload_start().await.unwrap();
        assert_ne!(name, "b");
        assert_eq!(cluster.upload_len(&name, &id).await, Ok(0));
        assert_eq!(cluster.upload_abort(&name, &id).await, Ok(()));
    }
    let unknown = cluster.upload_len("nobody", "upload-0").await;
    assert_eq!(unknown, Err(ApiError::NotFound));
}

#[tokio::test]
async fn bytes_are_put_in_one_call() {
    let (mut origins, cluster) = cluster();
    origins.remove("a").unwrap().kill().await;
    origins["c"].fake.down.store(true, Ordering::Relaxed);
    let bytes = Bytes::from(blob(400_000));
    let (ns, digest) = (namespace(), Digest::of(&bytes));
    for _ in 0..3 {
        let meta = cluster.put(&ns, digest, bytes.clone()).await;
        assert_eq!(meta, Ok(MetaInfo::of(&bytes)));
    }
    assert!(
        origins["b"]
            .fake
            .blobs
            .lock()
            .unwrap()
            .contains_key(&digest)
    );
    let wrong = cluster.put(&ns, Digest::of(b"else"), bytes).await;
    assert!(matches!(wrong, Err(ApiError::BadRequest(_))), "{wrong:?}");
}
