//! Bounds on what is asked of a backend.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_proto::{Digest, Namespace};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Backend, BackendError, ByteStream};
use crate::pace::Pace;

/// What one host may ask of a backend at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BackendLimits {
    /// Bytes per second that are read.
    pub read: Option<NonZeroU64>,
    /// Bytes per second that are written.
    pub write: Option<NonZeroU64>,
    /// Blobs that are read and written at once; more wait.
    pub at_once: Option<usize>,
}

impl BackendLimits {
    /// The part of one of `hosts` that share the limits.
    #[must_use]
    pub fn shared_by(self, hosts: usize) -> Self {
        let hosts = NonZeroU64::new(hosts as u64).unwrap_or(NonZeroU64::MIN);
        let part =
            |rate: NonZeroU64| NonZeroU64::new(rate.get() / hosts).unwrap_or(NonZeroU64::MIN);
        let hosts = usize::try_from(hosts.get()).unwrap_or(usize::MAX);
        Self {
            read: self.read.map(part),
            write: self.write.map(part),
            at_once: self.at_once.map(|all| (all / hosts).max(1)),
        }
    }
}

/// A backend that is asked no more than its [`BackendLimits`] allow.
pub struct LimitedBackend<B> {
    backend: B,
    at_once: Option<Arc<Semaphore>>,
    read: Option<Arc<Pace>>,
    write: Option<Arc<Pace>>,
}

impl<B: Backend> LimitedBackend<B> {
    /// Holds `backend` to `limits`.
    pub fn new(backend: B, limits: BackendLimits) -> Self {
        let pace = |rate: Option<NonZeroU64>| rate.map(|rate| Arc::new(Pace::new(rate)));
        Self {
            backend,
            at_once: limits
                .at_once
                .map(|all| Arc::new(Semaphore::new(all.clamp(1, Semaphore::MAX_PERMITS)))),
            read: pace(limits.read),
            write: pace(limits.write),
        }
    }

    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turns = self.at_once.clone()?;
        Some(turns.acquire_owned().await.expect("it is never closed"))
    }
}

impl<B: fmt::Debug> fmt::Debug for LimitedBackend<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedBackend")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> Backend for LimitedBackend<B> {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        self.backend.stat(namespace, digest).await
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let turn = self.turn().await;
        let stream = self.backend.read(namespace, digest, range).await?;
        Ok(paced(stream, self.read.clone(), turn))
    }

    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        // Until it is written, and not only read.
        let _turn = self.turn().await;
        let bytes = paced(bytes, self.write.clone(), None);
        self.backend.write(namespace, digest, length, bytes).await
    }

    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.backend.delete(namespace, digest).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.backend.list(namespace, after, most).await
    }

    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        self.backend.resolve(namespace, tag).await
    }

    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        self.backend.place(namespace)
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.backend.check_writable(namespace)
    }

    fn keeps(&self) -> bool {
        self.backend.keeps()
    }

    async fn ready(&self) -> Result<(), BackendError> {
        self.backend.ready().await
    }
}

/// The stream at a pace; holds `turn` until it is dropped.
fn paced(
    stream: ByteStream,
    pace: Option<Arc<Pace>>,
    turn: Option<OwnedSemaphorePermit>,
) -> ByteStream {
    let each = move |chunk: Result<Bytes, BackendError>| {
        let (pace, _turn) = (pace.clone(), &turn);
        async move {
            if let (Ok(bytes), Some(pace)) = (&chunk, pace) {
                pace.pass(bytes.len() as u64).await;
            }
            chunk
        }
    };
    stream.then(each).boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use tokio::time::Instant;

    use super::super::OpendalBackend;
    use super::*;

    fn rate(bytes: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(bytes)
    }

    #[test]
    fn hosts_share_what_is_allowed_and_none_starves() {
        let limits = BackendLimits {
            read: rate(300),
            write: rate(2),
            at_once: Some(10),
        };
        let part = limits.shared_by(3);
        assert_eq!(
            (part.read, part.write, part.at_once),
            (rate(100), rate(1), Some(3))
        );
        assert_eq!(limits.shared_by(0), limits);
        assert_eq!(limits.shared_by(100).at_once, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_their_pace_and_few_at_once() {
        let limits = BackendLimits {
            read: rate(1 << 20),
            write: rate(4 << 20),
            at_once: Some(1),
        };
        let backend = LimitedBackend::new(OpendalBackend::memory(), limits);
        let namespace = Namespace::default();
        let bytes = vec![7; 4 << 20];
        let digest = Digest::of(&bytes);
        let chunks = bytes
            .chunks(1 << 18)
            .map(|it| Ok(Bytes::copy_from_slice(it)));
        let stream = futures::stream::iter(chunks.collect::<Vec<_>>()).boxed();
        let started = Instant::now();
        let length = bytes.len() as u64;
        backend
            .write(&namespace, digest, length, stream)
            .await
            .unwrap();
        let took = started.elapsed().as_secs_f64();
        assert!((0.85..1.1).contains(&took), "{took}");

        let whole = 0..u64::MAX;
        let first = backend
            .read(&namespace, digest, whole.clone())
            .await
            .unwrap();
        let second = backend.read(&namespace, digest, whole);
        let mut second = std::pin::pin!(second);
        assert!(futures::poll!(second.as_mut()).is_pending(), "one at once");
        let started = Instant::now();
        assert_eq!(first.try_collect::<Vec<_>>().await.unwrap().concat(), bytes);
        let took = started.elapsed().as_secs_f64();
        assert!((3.5..4.2).contains(&took), "{took}");
        assert!(second.await.is_ok());
    }
}
