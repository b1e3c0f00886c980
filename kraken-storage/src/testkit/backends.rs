//! What every backend does.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kraken_proto::{Digest, Namespace};

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
        let read = backend.read(&name, digest, from).await.map(drop);
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
        for from in [0, 1, len / 2, len, len + 1] {
            let read = read(backend, digest, from as u64).await;
            assert!(
                read == bytes[from.min(len)..],
                "{len} bytes read from {from}"
            );
        }
        backend.delete(&name, digest).await.expect("deletes");
        let stat = backend.stat(&name, digest).await.expect("answers");
        assert_eq!(stat, None, "deleted blobs are gone");
    }
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
    assert!(read(backend, digest, 0).await == bytes);
}

async fn writing_again_is_no_error(backend: &impl Backend) {
    let bytes = super::bytes(100_000, 3);
    let digest = Digest::of(&bytes);
    write(backend, digest, &bytes).await;
    let name = Namespace::default();
    let short = backend.write(&name, digest, 5, stream(&bytes)).await;
    short.expect_err("the length is wrong");
    write(backend, digest, &bytes).await;
    assert!(read(backend, digest, 0).await == bytes);
}

async fn write(backend: &impl Backend, digest: Digest, bytes: &[u8]) {
    let (name, length) = (Namespace::default(), bytes.len() as u64);
    let written = backend.write(&name, digest, length, stream(bytes)).await;
    written.expect("the length is right");
}

async fn read(backend: &impl Backend, digest: Digest, from: u64) -> Vec<u8> {
    let stream = backend.read(&Namespace::default(), digest, from).await;
    let chunks: Vec<Bytes> = stream
        .expect("is there")
        .try_collect()
        .await
        .expect("can be read");
    chunks.concat()
}

fn stream(bytes: &[u8]) -> ByteStream {
    let chunks: Vec<_> = bytes
        .chunks(65_000)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    futures::stream::iter(chunks).boxed()
}
