//! A backend that fails when told to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use futures::StreamExt;
use kraken_proto::{Digest, Namespace};

use crate::backend::{Backend, BackendError, ByteStream};

/// Passes everything on to another backend, counts it, and answers
/// [`BackendError::Unavailable`] while it is down, also in the middle of a stream. Clones share
/// the switch and the counters.
#[derive(Debug)]
pub struct FlakyBackend<B> {
    shared: Arc<Shared<B>>,
}

#[derive(Debug)]
struct Shared<B> {
    inner: B,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    down: AtomicBool,
    stats: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    deletes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl<B> FlakyBackend<B> {
    /// A backend that is up.
    pub fn new(inner: B) -> Self {
        let counts = Arc::default();
        Self {
            shared: Arc::new(Shared { inner, counts }),
        }
    }

    /// Switches it off (`true`) or on.
    pub fn set_down(&self, down: bool) {
        self.shared.counts.down.store(down, SeqCst);
    }

    /// The backend behind it, past the switch and the counters.
    pub fn inner(&self) -> &B {
        &self.shared.inner
    }

    /// How many calls of `stat` came while it was up.
    pub fn stats(&self) -> u64 {
        self.shared.counts.stats.load(SeqCst)
    }

    /// How many calls of `read` came while it was up.
    pub fn reads(&self) -> u64 {
        self.shared.counts.reads.load(SeqCst)
    }

    /// How many calls of `write` came while it was up, whether they succeeded or not.
    pub fn writes(&self) -> u64 {
        self.shared.counts.writes.load(SeqCst)
    }

    /// How many calls of `delete` came while it was up.
    pub fn deletes(&self) -> u64 {
        self.shared.counts.deletes.load(SeqCst)
    }

    /// How many bytes all readers have been given.
    pub fn bytes_read(&self) -> u64 {
        self.shared.counts.bytes_read.load(SeqCst)
    }

    /// How many bytes all writers have given.
    pub fn bytes_written(&self) -> u64 {
        self.shared.counts.bytes_written.load(SeqCst)
    }

    fn enter(&self, counter: impl Fn(&Counts) -> &AtomicU64) -> Result<(), BackendError> {
        self.shared.counts.check()?;
        counter(&self.shared.counts).fetch_add(1, SeqCst);
        Ok(())
    }

    fn watch(
        &self,
        bytes: ByteStream,
        counter: impl Fn(&Counts) -> &AtomicU64 + Send + 'static,
    ) -> ByteStream {
        let counts = Arc::clone(&self.shared.counts);
        let watched = bytes.map(move |chunk| {
            counts.check()?;
            let chunk = chunk?;
            counter(&counts).fetch_add(chunk.len() as u64, SeqCst);
            Ok(chunk)
        });
        watched.boxed()
    }
}

impl<B> Clone for FlakyBackend<B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<B: Backend> Backend for FlakyBackend<B> {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        self.enter(|counts| &counts.stats)?;
        self.inner().stat(namespace, digest).await
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        self.enter(|counts| &counts.reads)?;
        let bytes = self.inner().read(namespace, digest, range).await?;
        Ok(self.watch(bytes, |counts| &counts.bytes_read))
    }

    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        self.enter(|counts| &counts.writes)?;
        let bytes = self.watch(bytes, |counts| &counts.bytes_written);
        self.inner().write(namespace, digest, length, bytes).await
    }

    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.enter(|counts| &counts.deletes)?;
        self.inner().delete(namespace, digest).await
    }

    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.shared.counts.check()?;
        self.inner().list(namespace, after, most).await
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.inner().check_writable(namespace)
    }

    fn keeps(&self) -> bool {
        self.inner().keeps()
    }

    async fn ready(&self) -> Result<(), BackendError> {
        self.shared.counts.check()?;
        self.inner().ready().await
    }
}

impl Counts {
    fn check(&self) -> Result<(), BackendError> {
        match self.down.load(SeqCst) {
            true => Err(BackendError::Unavailable("switched off".to_string())),
            false => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "fs"))]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::backend::OpendalBackend;
    use crate::testkit;

    #[tokio::test]
    async fn up_it_is_the_backend_behind_it() {
        testkit::backend_conforms(async || FlakyBackend::new(OpendalBackend::memory())).await;
    }

    #[tokio::test]
    async fn down_it_fails_also_in_the_middle_of_a_stream() {
        let backend = FlakyBackend::new(OpendalBackend::memory());
        let (name, bytes) = (Namespace::default(), testkit::bytes(10 << 20, 1));
        let digest = Digest::of(&bytes);
        let length = bytes.len() as u64;
        let stream = || futures::stream::iter([Ok(bytes.clone().into())]).boxed();
        backend
            .write(&name, digest, length, stream())
            .await
            .unwrap();
        assert_eq!((backend.writes(), backend.bytes_written()), (1, length));

        let mut read = backend.read(&name, digest, 0..u64::MAX).await.unwrap();
        let first = read.try_next().await.unwrap().unwrap();
        backend.set_down(true);
        let rest = read.try_next().await;
        assert!(matches!(rest, Err(BackendError::Unavailable(_))));
        let results = [
            backend.stat(&name, digest).await.map(drop),
            backend.read(&name, digest, 0..u64::MAX).await.map(drop),
            backend.write(&name, digest, length, stream()).await,
            backend.delete(&name, digest).await,
        ];
        for result in results {
            assert!(matches!(result, Err(BackendError::Unavailable(_))));
        }
        assert_eq!((backend.reads(), backend.stats()), (1, 0));
        assert_eq!(backend.bytes_read(), first.len() as u64);

        backend.clone().set_down(false);
        let stat = backend.stat(&name, digest).await.unwrap();
        assert_eq!(stat, Some(length));
    }
}
