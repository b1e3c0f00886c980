//! What every backend does.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kraken_proto::{Digest, Namespace};

use super::proxy::{Fault, FaultyProxy};
use crate::backend::{Backend, BackendError, ByteStream};

/// Runs the suite over the backends that `make` gives, an empty one each time.
///
/// # Panics
/// The backend does not do what [`Backend`] promises.
pub async fn backend_conforms<B: Backend>(make: impl AsyncFn() -> B) {
    absent_blobs(&make().await).await;
    blobs_come_back(&make().await).await;
    a_write_is_whole_or_not_at_all(&make().await).await;
    writing_again_is_no_error(&make().await).await;
}

async fn absent_blobs(backend: &impl Backend) {
    let (name, digest) = (Namespace::default(), Digest::of(b"absent"));
    assert_eq!(backend.stat(&name, digest).await.expect("answers"), None);
    for from in [0, 5] {
        let read = backend.read(&name, digest, from..u64::MAX).await;
        let read = read.map(drop);
        assert!(
            matches!(read, Err(BackendError::NotFound(it)) if it == digest),
            "{read:?}"
        );
    }
    backend.delete(&name, digest).await.expect("no error");
}

async fn blobs_come_back(backend: &impl Backend) {
    let name: Namespace = "library/busybox".parse().expect("a good name");
    for len in [0, 1, 100_000, 9 << 20] {
        let bytes = super::bytes(len, 1);
        let digest = Digest::of(&bytes);
        write(backend, digest, &bytes).await;
        let stat = backend.stat(&name, digest).await.expect("answers");
        assert_eq!(stat, Some(len as u64));
        ranges_come_back(backend, (&name, digest), &bytes).await;
        backend.delete(&name, digest).await.expect("deletes");
        let stat = backend.stat(&name, digest).await.expect("answers");
        assert_eq!(stat, None, "deleted blobs are gone");
    }
}

/// The blob, and parts of it at its edges and within.
async fn ranges_come_back(backend: &impl Backend, of: (&Namespace, Digest), bytes: &[u8]) {
    let len = bytes.len();
    for from in [0, 1, len / 2, len, len + 1] {
        for to in [from, from + 1, from + 70_000, len, usize::MAX] {
            let wanted = &bytes[from.min(len)..to.clamp(from.min(len), len)];
            let read = read(backend, of, from as u64..to as u64).await;
            assert!(read == wanted, "{len} bytes read from {from} to {to}");
        }
    }
}

/// Runs the part of the suite that a read-only backend can do: `put` brings a blob of the namespace
/// to where it reads from.
///
/// # Panics
/// The backend does not do what [`Backend`] promises.
pub async fn read_only_backend_conforms<B: Backend>(
    backend: &B,
    namespace: &Namespace,
    put: impl AsyncFn(Digest, Vec<u8>),
) {
    let absent = Digest::of(b"absent");
    let stat = backend.stat(namespace, absent).await;
    assert_eq!(stat.expect("answers"), None);
    let none = backend.read(namespace, absent, 0..u64::MAX).await;
    assert!(matches!(none.map(drop), Err(BackendError::NotFound(it)) if it == absent));
    for len in [0, 1, 100_000, 9 << 20] {
        let bytes = super::bytes(len, 5);
        let digest = Digest::of(&bytes);
        put(digest, bytes.clone()).await;
        let stat = backend.stat(namespace, digest).await.expect("answers");
        assert_eq!(stat, Some(len as u64));
        ranges_come_back(backend, (namespace, digest), &bytes).await;
    }
    let refused = backend.check_writable(namespace);
    assert!(matches!(refused, Err(BackendError::ReadOnly(_))));
    let digest = Digest::of(b"new");
    let written = backend.write(namespace, digest, 3, stream(b"new")).await;
    assert!(matches!(written, Err(BackendError::ReadOnly(it)) if it == *namespace));
    let deleted = backend.delete(namespace, digest).await;
    assert!(matches!(deleted, Err(BackendError::ReadOnly(_))));
    backend.ready().await.expect("is there");
}

/// Checks that the backend, an empty one, lists `blobs` blobs in pages, in their order and each
/// once.
///
/// # Panics
/// It does not.
pub async fn backend_lists<B: Backend>(backend: &B, blobs: usize) {
    let namespace = Namespace::default();
    let page = backend.list(&namespace, None, 10).await.expect("lists");
    assert_eq!(page, []);
    let names = (0..blobs).map(|at| super::bytes(8, at as u64));
    let mut wanted: Vec<_> = names.clone().map(|bytes| Digest::of(&bytes)).collect();
    wanted.sort_unstable();
    let writes = names.map(|bytes| async move { write(backend, Digest::of(&bytes), &bytes).await });
    futures::stream::iter(writes)
        .buffer_unordered(16)
        .collect::<()>()
        .await;
    for most in [blobs / 3 + 1, blobs, blobs + 1, 7.max(blobs / 20)] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = backend.list(&namespace, after, most).await.expect("lists");
            assert!(page.len() <= most, "{} of {most}", page.len());
            found.extend_from_slice(&page);
            after = page.last().copied();
            if page.len() < most {
                break;
            }
        }
        assert!(found == wanted, "{most} at once: {} found", found.len());
    }
    let gone = wanted.remove(blobs / 2);
    backend.delete(&namespace, gone).await.expect("deletes");
    let page = backend.list(&namespace, None, blobs).await.expect("lists");
    assert!(page == wanted, "what is deleted is not listed");
    let end = wanted.last().copied();
    let page = backend.list(&namespace, end, 10).await.expect("lists");
    assert_eq!(page, []);
}

/// Checks that the backend, which reaches its server through `proxy`, gets over what goes wrong on
/// the way: refusals with a time to come back, errors of the server, bodies that break off.
///
/// # Panics
/// It does not.
pub async fn backend_survives_faults<B: Backend>(
    backend: &B,
    namespace: &Namespace,
    proxy: &FaultyProxy,
    (digest, bytes): (Digest, &[u8]),
) {
    let whole = 0..u64::MAX;
    for fault in [
        Fault::Busy(1),
        Fault::Busy(0),
        Fault::Broken,
        Fault::Closed,
        Fault::Cut(100),
        Fault::Cut(400_000),
    ] {
        proxy.next(fault.clone());
        let read = read(backend, (namespace, digest), whole.clone()).await;
        assert!(read == bytes, "after {fault:?}");
        assert_eq!(proxy.left(), 0, "{fault:?} was met");
    }
    // More than it gets over: an error that says to come back, and no short body.
    for fault in [Fault::Broken, Fault::Closed] {
        proxy.all(fault.clone());
        let stat = backend.stat(namespace, digest).await;
        let error = stat.expect_err("nobody answers");
        assert!(error.is_retryable(), "{fault:?}: {error}");
    }
    proxy.heal();
    let stat = backend.stat(namespace, digest).await.expect("answers");
    assert_eq!(stat, Some(bytes.len() as u64));
}

async fn a_write_is_whole_or_not_at_all(backend: &impl Backend) {
    let name = Namespace::default();
    let bytes = super::bytes(300_000, 2);
    let digest = Digest::of(&bytes);
    let length = bytes.len() as u64;
    for promised in [0, length - 1, length + 1, 2 * length] {
        let result = backend.write(&name, digest, promised, stream(&bytes)).await;
        assert!(
            matches!(result, Err(BackendError::Length { expected, .. }) if expected == promised),
            "{result:?}"
        );
        assert_eq!(backend.stat(&name, digest).await.expect("answers"), None);
    }
    let broken = futures::stream::iter([Err(BackendError::Unavailable("gone".into()))]);
    let broken = stream(&bytes).chain(broken).boxed();
    let result = backend.write(&name, digest, length, broken).await;
    assert!(
        matches!(result, Err(BackendError::Unavailable(_))),
        "the stream's error is the write's: {result:?}"
    );
    assert_eq!(backend.stat(&name, digest).await.expect("answers"), None);
    write(backend, digest, &bytes).await;
    assert!(read(backend, (&name, digest), 0..u64::MAX).await == bytes);
}

async fn writing_again_is_no_error(backend: &impl Backend) {
    let bytes = super::bytes(100_000, 3);
    let digest = Digest::of(&bytes);
    write(backend, digest, &bytes).await;
    let name = Namespace::default();
    let short = backend.write(&name, digest, 5, stream(&bytes)).await;
    short.expect_err("the length is wrong");
    write(backend, digest, &bytes).await;
    assert!(read(backend, (&name, digest), 0..u64::MAX).await == bytes);
}

async fn write(backend: &impl Backend, digest: Digest, bytes: &[u8]) {
    let (name, length) = (Namespace::default(), bytes.len() as u64);
    let written = backend.write(&name, digest, length, stream(bytes)).await;
    written.expect("the length is right");
}

async fn read(
    backend: &impl Backend,
    (namespace, digest): (&Namespace, Digest),
    range: Range<u64>,
) -> Vec<u8> {
    let stream = backend.read(namespace, digest, range).await;
    let chunks: Result<Vec<Bytes>, _> = stream.expect("is there").try_collect().await;
    chunks.expect("can be read").concat()
}

fn stream(bytes: &[u8]) -> ByteStream {
    let chunks: Vec<_> = bytes
        .chunks(65_000)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    futures::stream::iter(chunks).boxed()
}
