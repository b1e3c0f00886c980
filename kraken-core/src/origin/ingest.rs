//! Blobs that come in: uploads, and what is fetched on a miss.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared};
use futures::{Stream, StreamExt as _};
use kraken_net::http::ApiError;
use kraken_proto::{Digest, MetaInfo, Namespace};
use kraken_storage::{BackendError, BlobStatus, StoreError};

use super::Inner;
use super::replicate::STAGGER;

/// A fetch that all who want the blob wait for.
pub(super) type Fetch = Shared<BoxFuture<'static, Result<MetaInfo, ApiError>>>;

/// Chunks from elsewhere are gathered up to this before they are hashed and written: each step is
/// a trip to the blocking pool.
const GATHER: usize = 1 << 20;

/// Bytes in one chunk read from the store.
const CHUNK: u64 = 1 << 20;

impl Inner {
    /// The metainfo of a blob that is whole here.
    pub(super) async fn sealed(&self, digest: Digest) -> Result<Option<MetaInfo>, ApiError> {
        match self.store.status(digest).await {
            Ok(BlobStatus::Sealed { meta }) => Ok(Some(meta)),
            Ok(_) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    /// The metainfo of a blob, which is fetched first when it is not here. However many ask at
    /// once, it is fetched once; it is fetched to its end also when nobody waits any more.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        if let Some(meta) = self.sealed(digest).await? {
            return Ok(meta);
        }
        let fetch = {
            let mut fetching = self.fetching();
            fetching
                .entry(digest)
                .or_insert_with(|| self.start_fetch(namespace, digest))
                .clone()
        };
        fetch.await
    }

    /// A blob's bytes out of the store.
    pub(super) fn stream(
        &self,
        meta: &MetaInfo,
        range: std::ops::Range<u64>,
    ) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        let (store, digest, end) = (
            self.store.clone(),
            meta.digest(),
            range.end.min(meta.length()),
        );
        futures::stream::try_unfold(range.start, move |at| {
            let store = store.clone();
            async move {
                if at >= end {
                    return Ok(None);
                }
                let len = u32::try_from(CHUNK.min(end - at)).expect("at most CHUNK");
                let chunk = store
                    .read(digest, at, len)
                    .await
                    .map_err(std::io::Error::other)?;
                let next = at + chunk.len() as u64;
                Ok(Some((chunk, next)))
            }
        })
    }

    fn start_fetch(self: &Arc<Self>, namespace: &Namespace, digest: Digest) -> Fetch {
        let (inner, namespace) = (self.clone(), namespace.clone());
        let (send, receive) = tokio::sync::oneshot::channel();
        self.tasks.spawn(async move {
            let result = inner.fetch(&namespace, digest).await;
            inner.fetching().remove(&digest);
            let _ = send.send(result);
        });
        let stopped = || Err(ApiError::Unavailable("the origin stops".into()));
        receive
            .map(move |result| result.unwrap_or_else(|_| stopped()))
            .boxed()
            .shared()
    }

    /// From another origin, where a blob may be that is not written back yet, or from the backend.
    async fn fetch(&self, namespace: &Namespace, digest: Digest) -> Result<MetaInfo, ApiError> {
        let (holder, unreachable) = self.find_at_peers(namespace, digest).await;
        if let Some(client) = holder {
            // The copy here will count as one of the blob's: it must reach the backend as well.
            self.queue_write_back(namespace, digest, STAGGER).await?;
            match client.read(namespace, digest, None).await {
                Ok(read) => match self.take_in(digest, read.body).await {
                    Ok(meta) => return Ok(meta),
                    Err(error) => {
                        tracing::warn!(%digest, %error, "a copy from another origin failed")
                    }
                },
                Err(error) => tracing::warn!(%digest, %error, "another origin cannot send a blob"),
            }
        }
        match self.backend.read(namespace, digest, 0).await {
            Ok(stream) => {
                self.backend_reads.inc();
                let stream = stream
                    .map(|chunk| chunk.map_err(std::io::Error::other))
                    .boxed();
                self.take_in(digest, stream).await
            }
            // A blob that is nowhere in the backend is held by at least a quorum of origins, so
            // that it does not exist when fewer than that could not be asked.
            Err(BackendError::NotFound(_)) if unreachable < self.quorum() => {
                Err(ApiError::NotFound)
            }
            Err(BackendError::NotFound(_)) => Err(ApiError::Unavailable(
                "too many origins cannot be asked for the blob".into(),
            )),
            Err(error) => Err(ApiError::Unavailable(error.to_string())),
        }
    }

    pub(super) async fn find_at_peers(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> (Option<kraken_net::origin::OriginClient>, usize) {
        let mut unreachable = 0;
        for member in self.ring.ranked(&digest) {
            let Some(client) = self.peers.get(&member.name) else {
                continue;
            };
            match client.stat(namespace, digest, true).await {
                Ok(Some(_)) => return (Some(client.clone()), unreachable),
                Ok(None) => {}
                Err(_) => unreachable += 1,
            }
        }
        (None, unreachable)
    }

    async fn take_in(
        &self,
        digest: Digest,
        mut stream: kraken_net::http::ByteStream,
    ) -> Result<MetaInfo, ApiError> {
        let upload = self.store.upload_start().await.map_err(store_error)?;
        let taken = async {
            let (mut at, mut gathered) = (0, Vec::new());
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|error| ApiError::Unavailable(error.to_string()))?;
                gathered.extend_from_slice(&chunk);
                if gathered.len() >= GATHER {
                    let data = std::mem::take(&mut gathered).into();
                    at = self
                        .store
                        .upload_append(&upload, at, data)
                        .await
                        .map_err(store_error)?;
                }
            }
            self.store
                .upload_append(&upload, at, gathered.into())
                .await
                .map_err(store_error)?;
            self.store
                .upload_commit(&upload, digest)
                .await
                .map_err(store_error)
        };
        let result = taken.await;
        if result.is_err() {
            // The commit of wrong bytes has removed it already; otherwise it is of no more use.
            let _ = self.store.upload_abort(&upload).await;
        }
        result
    }
}

/// A store's refusal, as an answer.
pub(super) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::UploadUnknown(_) => ApiError::NotFound,
        StoreError::UploadOffset { len, .. } => ApiError::RangeInvalid { len },
        StoreError::DigestMismatch { .. } => ApiError::BadRequest(error.to_string()),
        StoreError::Full => ApiError::Unavailable(error.to_string()),
        other => ApiError::Internal(other.to_string()),
    }
}
