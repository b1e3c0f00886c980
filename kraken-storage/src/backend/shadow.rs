//! Two backends at once: for moving from one to another without a gap.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use kraken_proto::{Digest, Namespace};

use super::{Backend, BackendError, ByteStream};

/// Chunks that the slower of the two may be behind.
const BEHIND: usize = 4;

/// Writes to two backends and reads from the first; says when the second holds something else.
///
/// A write is done when both have it. The answer of [`Backend::stat`] is the first's, and that the
/// second's differs is logged and counted.
pub struct ShadowBackend<A, B> {
    first: A,
    second: B,
    differences: Arc<AtomicU64>,
}

impl<A: Backend, B: Backend> ShadowBackend<A, B> {
    /// Reads from `first`, and keeps `second` alike.
    pub fn new(first: A, second: B) -> Self {
        Self {
            first,
            second,
            differences: Arc::default(),
        }
    }

    /// How many answers differed, since this was made.
    pub fn differences(&self) -> u64 {
        self.differences.load(Ordering::Relaxed)
    }

    fn differs(&self, digest: Digest, first: Option<u64>, second: &dyn fmt::Debug) {
        self.differences.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%digest, ?first, ?second, "the shadow differs from the backend before it");
    }
}

impl<A: fmt::Debug, B: fmt::Debug> fmt::Debug for ShadowBackend<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShadowBackend")
            .field("first", &self.first)
            .field("second", &self.second)
            .finish_non_exhaustive()
    }
}

impl<A: Backend, B: Backend> Backend for ShadowBackend<A, B> {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        let (first, second) = futures::join!(
            self.first.stat(namespace, digest),
            self.second.stat(namespace, digest)
        );
        let first = first?;
        match second {
            Ok(second) if second == first => {}
            second => self.differs(digest, first, &second),
        }
        Ok(first)
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        self.first.read(namespace, digest, range).await
    }

    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let (to_first, first) = mpsc::channel(BEHIND);
        let (to_second, second) = mpsc::channel(BEHIND);
        let (_, first, second) = futures::join!(
            copy(bytes, to_first, to_second),
            self.first.write(namespace, digest, length, first.boxed()),
            self.second.write(namespace, digest, length, second.boxed())
        );
        first.and(second)
    }

    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        let (first, second) = futures::join!(
            self.first.delete(namespace, digest),
            self.second.delete(namespace, digest)
        );
        first.and(second)
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.first.list(namespace, after, most).await
    }

    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        self.first.resolve(namespace, tag).await
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.first.check_writable(namespace)?;
        self.second.check_writable(namespace)
    }

    /// The first is the one that is read.
    fn keeps(&self) -> bool {
        self.first.keeps()
    }

    async fn ready(&self) -> Result<(), BackendError> {
        let (first, second) = futures::join!(self.first.ready(), self.second.ready());
        first.and(second)
    }
}

type Chunk = Result<Bytes, BackendError>;

/// Gives every chunk to both, as long as either takes any.
async fn copy(
    mut bytes: ByteStream,
    mut first: mpsc::Sender<Chunk>,
    mut second: mpsc::Sender<Chunk>,
) {
    while let Some(chunk) = bytes.next().await {
        let (one, other) = match chunk {
            Ok(bytes) => (Ok(bytes.clone()), Ok(bytes)),
            Err(error) => (
                Err(BackendError::Unavailable(error.to_string())),
                Err(error),
            ),
        };
        // One that takes no more has failed or has enough, and says so itself.
        let sent = futures::join!(first.send(one), second.send(other));
        if let (Err(_), Err(_)) = sent {
            return;
        }
    }
}

#[cfg(all(test, feature = "fs"))]
mod tests {
    use super::super::OpendalBackend;
    use super::*;
    use crate::testkit;

    #[tokio::test]
    async fn both_are_written_and_a_difference_is_counted() {
        let pair = async || ShadowBackend::new(OpendalBackend::memory(), OpendalBackend::memory());
        testkit::backend_conforms(pair).await;
        let (first, second) = (OpendalBackend::memory(), OpendalBackend::memory());
        let both = ShadowBackend::new(first.clone(), second.clone());
        let (name, digest) = (Namespace::default(), Digest::of(b"abc"));
        let bytes = futures::stream::iter([Ok("abc".into())]).boxed();
        both.write(&name, digest, 3, bytes).await.unwrap();
        for each in [&first, &second] {
            assert_eq!(each.stat(&name, digest).await.unwrap(), Some(3));
        }
        assert_eq!(both.stat(&name, digest).await.unwrap(), Some(3));
        assert_eq!(both.differences(), 0);
        second.delete(&name, digest).await.unwrap();
        assert_eq!(both.stat(&name, digest).await.unwrap(), Some(3));
        assert_eq!(both.differences(), 1);
    }
}
