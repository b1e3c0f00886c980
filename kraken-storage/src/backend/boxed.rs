//! A backend whose kind is chosen while the program runs.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kraken_proto::{Digest, Namespace};

use super::{Backend, BackendError, ByteStream};

/// Any [`Backend`]. Clones share it.
#[derive(Clone)]
pub struct BoxBackend(Arc<dyn DynBackend>);

impl BoxBackend {
    /// Hides the backend's kind.
    pub fn new(backend: impl Backend) -> Self {
        Self(Arc::new(backend))
    }
}

impl fmt::Debug for BoxBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxBackend").finish_non_exhaustive()
    }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// [`Backend`], boxed. One small allocation per request is nothing beside the request.
trait DynBackend: Send + Sync + 'static {
    fn stat<'a>(&'a self, namespace: &'a Namespace, digest: Digest) -> Answer<'a, Option<u64>>;
    fn read<'a>(
        &'a self,
        namespace: &'a Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Answer<'a, ByteStream>;
    fn write<'a>(
        &'a self,
        namespace: &'a Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Answer<'a, ()>;
    fn delete<'a>(&'a self, namespace: &'a Namespace, digest: Digest) -> Answer<'a, ()>;
    fn list<'a>(
        &'a self,
        namespace: &'a Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Answer<'a, Vec<Digest>>;
    fn resolve<'a>(&'a self, namespace: &'a Namespace, tag: &'a str) -> Answer<'a, Option<Digest>>;
    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError>;
    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError>;
    fn keeps(&self) -> bool;
    fn ready(&self) -> Answer<'_, ()>;
}

impl<B: Backend> DynBackend for B {
    fn stat<'a>(&'a self, namespace: &'a Namespace, digest: Digest) -> Answer<'a, Option<u64>> {
        Backend::stat(self, namespace, digest).boxed()
    }
    fn read<'a>(
        &'a self,
        namespace: &'a Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Answer<'a, ByteStream> {
        Backend::read(self, namespace, digest, range).boxed()
    }
    fn write<'a>(
        &'a self,
        namespace: &'a Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Answer<'a, ()> {
        Backend::write(self, namespace, digest, length, bytes).boxed()
    }
    fn delete<'a>(&'a self, namespace: &'a Namespace, digest: Digest) -> Answer<'a, ()> {
        Backend::delete(self, namespace, digest).boxed()
    }
    fn list<'a>(
        &'a self,
        namespace: &'a Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Answer<'a, Vec<Digest>> {
        Backend::list(self, namespace, after, most).boxed()
    }
    fn resolve<'a>(&'a self, namespace: &'a Namespace, tag: &'a str) -> Answer<'a, Option<Digest>> {
        Backend::resolve(self, namespace, tag).boxed()
    }
    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        Backend::place(self, namespace)
    }
    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        Backend::check_writable(self, namespace)
    }
    fn keeps(&self) -> bool {
        Backend::keeps(self)
    }
    fn ready(&self) -> Answer<'_, ()> {
        Backend::ready(self).boxed()
    }
}

impl Backend for BoxBackend {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        self.0.stat(namespace, digest).await
    }
    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        self.0.read(namespace, digest, range).await
    }
    async fn write(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        self.0.write(namespace, digest, length, bytes).await
    }
    async fn delete(&self, namespace: &Namespace, digest: Digest) -> Result<(), BackendError> {
        self.0.delete(namespace, digest).await
    }
    async fn list(
        &self,
        namespace: &Namespace,
        after: Option<Digest>,
        most: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        self.0.list(namespace, after, most).await
    }
    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        self.0.resolve(namespace, tag).await
    }
    fn place(&self, namespace: &Namespace) -> Result<usize, BackendError> {
        self.0.place(namespace)
    }
    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        self.0.check_writable(namespace)
    }
    fn keeps(&self) -> bool {
        self.0.keeps()
    }
    async fn ready(&self) -> Result<(), BackendError> {
        self.0.ready().await
    }
}
