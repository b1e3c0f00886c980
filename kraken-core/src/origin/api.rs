//! What an origin does for others, behind its HTTP face.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kraken_net::http::ApiError;
use kraken_net::origin::{
    BlobRead, Copies, GarbageAsked, GarbagePage, Holdings, HoldingsAsked, OriginApi, Prefetch,
};
use kraken_proto::{Digest, MetaInfo, Namespace, PeerInfo};
use kraken_storage::{Backend as _, BackendError, Need, StoreError};
use tracing::Instrument as _;

use super::Origin;
use super::fetches::Asker;
use super::ingest::store_error;
use super::source::backend_error;

impl OriginApi for Origin {
    fn peer(&self) -> PeerInfo {
        self.inner.local.clone()
    }

    async fn locations(&self, digest: Digest) -> Result<Vec<String>, ApiError> {
        let owners = self.inner.members.owners(digest);
        let urls = owners
            .iter()
            .filter_map(|name| self.inner.members.url(name));
        Ok(urls.collect())
    }

    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
        copies: Copies,
    ) -> Result<Option<u64>, ApiError> {
        let is_here = copies == Copies::Here;
        if !is_here && !self.inner.condemned.ask(digest) {
            return Ok(None);
        }
        match self.inner.sealed(digest).await? {
            Some(meta) => Ok(Some(meta.length())),
            None if is_here => Ok(None),
            None => {
                let coming = self.inner.coming_length(digest);
                if let Some(length) = coming.filter(|_| copies == Copies::Coming) {
                    return Ok(Some(length));
                }
                let length = self.inner.backend.stat(namespace, digest).await;
                length.map_err(backend_error)
            }
        }
    }

    async fn resolve(&self, namespace: &Namespace, tag: &str) -> Result<Option<Digest>, ApiError> {
        match self.inner.backend.resolve(namespace, tag).await {
            Ok(found) => Ok(found),
            // Not the same as a registry that has no such tag.
            Err(error @ (BackendError::Untagged | BackendError::Unrouted(_))) => {
                Err(ApiError::Conflict(error.to_string()))
            }
            Err(error @ (BackendError::Unavailable(_) | BackendError::Paused(_))) => {
                Err(backend_error(error))
            }
            // It answers, and about this repository only.
            Err(error) => Err(ApiError::Forbidden(error.to_string())),
        }
    }

    async fn metainfo(&self, namespace: &Namespace, digest: Digest) -> Result<MetaInfo, ApiError> {
        self.inner.condemned.check(digest)?;
        self.inner.obtain(namespace, digest).await
    }

    async fn open_metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        after: Option<u32>,
    ) -> Result<MetaInfo, ApiError> {
        self.inner.condemned.check(digest)?;
        match self.inner.sealed(digest).await? {
            Some(meta) => Ok(meta),
            None => {
                let coming = self.inner.take_in(namespace, digest, Asker::Metainfo);
                coming.open(after).await
            }
        }
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, ApiError> {
        self.inner.condemned.check(digest)?;
        let (meta, coming) = match self.inner.sealed(digest).await? {
            Some(meta) => (meta, None),
            None => {
                let coming = self.inner.take_in(namespace, digest, Asker::Reader);
                (coming.clone().open(None).await?, Some(coming))
            }
        };
        let length = meta.length();
        let range = range.unwrap_or(0..length);
        if range.start >= length && length > 0 {
            return Err(ApiError::RangeInvalid { len: length });
        }
        let body = self
            .inner
            .stream(&meta, range.start..range.end.min(length), coming)
            .boxed();
        Ok(BlobRead { length, body })
    }

    async fn prefetch(&self, namespace: &Namespace, digest: Digest) -> Result<Prefetch, ApiError> {
        self.inner.condemned.check(digest)?;
        if self.inner.sealed(digest).await?.is_some() {
            return Ok(Prefetch::Present);
        }
        if self.inner.fetching().contains_key(&digest) {
            return Ok(Prefetch::Started);
        }
        let length = self.inner.backend.stat(namespace, digest).await;
        let stored = matches!(length, Ok(Some(_)));
        if !stored
            && self
                .inner
                .find_at_peers(namespace, digest)
                .await
                .0
                .is_none()
        {
            return match length {
                Ok(_) => Err(ApiError::NotFound),
                Err(error) => Err(ApiError::Unavailable(error.to_string())),
            };
        }
        drop(self.inner.take_in(namespace, digest, Asker::Prefetch));
        Ok(Prefetch::Started)
    }

    fn check_uploads(&self) -> Result<(), ApiError> {
        self.inner.check_uploads()
    }

    async fn upload_start(&self) -> Result<String, ApiError> {
        self.inner.store.upload_start().await.map_err(store_error)
    }

    async fn upload_start_known(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
    ) -> Result<String, ApiError> {
        self.inner.check_writable(namespace)?;
        self.inner.condemned.wait(digest).await;
        match self.inner.known_start(namespace, digest, length).await? {
            Some(id) => Ok(id.to_string()),
            None => self.upload_start().await,
        }
    }

    async fn upload_len(&self, id: &str) -> Result<u64, ApiError> {
        if let Ok(id) = id.parse() {
            return self.inner.known_len(id).await;
        }
        self.inner.store.upload_len(id).await.map_err(store_error)
    }

    async fn upload_append(&self, id: &str, offset: u64, bytes: Bytes) -> Result<u64, ApiError> {
        if let Ok(id) = id.parse() {
            return self.inner.known_append(id, offset, bytes).await;
        }
        let store = &self.inner.store;
        let need = Need {
            bytes: bytes.len() as u64,
            upload: Some(id),
        };
        let append = || store.upload_append(id, offset, bytes.clone());
        let appended = self.inner.with_room(need, append).await;
        if let Err(StoreError::Full) = &appended {
            self.inner.refused_for_room();
            // It cannot go on, and as long as it stays nothing else can either.
            tracing::warn!(id, offset, "an upload is dropped, as the disk is full");
            if let Err(error) = store.upload_abort(id).await {
                tracing::warn!(id, %error, "the upload cannot be dropped");
            }
        }
        appended.map_err(store_error)
    }

    async fn upload_commit(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        self.inner.check_writable(namespace)?;
        let committing = self.inner.committing(digest).await;
        // In a task of its own: a client that hangs up must not leave a blob with too few copies.
        let (inner, id, namespace) = (self.inner.clone(), id.to_string(), namespace.clone());
        let (send, receive) = tokio::sync::oneshot::channel();
        let commit = async move {
            // Whoever waited may be gone; the blob is not.
            let _ = send.send(inner.commit(&id, &namespace, digest).await);
            drop(committing);
        };
        self.inner.tasks.spawn(commit.in_current_span());
        let stopped = |_| ApiError::Unavailable("the origin stops".into());
        receive.await.map_err(stopped)?
    }

    async fn upload_commit_replica(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
        write_back_delay: Duration,
    ) -> Result<(), ApiError> {
        let _committing = self.inner.committing(digest).await;
        self.inner
            .queue_write_back(namespace, digest, write_back_delay)
            .await?;
        self.inner.stays(digest).await;
        self.inner
            .store
            .upload_commit(id, digest)
            .await
            .map_err(store_error)
            .map(drop)
    }

    async fn upload_abort(&self, id: &str) -> Result<(), ApiError> {
        if let Ok(id) = id.parse() {
            return self.inner.known_abort(id).await;
        }
        self.inner.store.upload_abort(id).await.map_err(store_error)
    }

    fn is_leaving(&self) -> bool {
        self.inner.members.is_leaving()
    }

    async fn holdings(&self, asked: HoldingsAsked) -> Result<Holdings, ApiError> {
        self.inner.holdings(asked).await
    }

    async fn garbage(&self, asked: GarbageAsked) -> Result<Vec<Digest>, ApiError> {
        self.inner.garbage(asked).await
    }

    async fn garbage_page(&self, asked: GarbagePage) -> Result<Vec<Digest>, ApiError> {
        self.inner.garbage_page(asked).await
    }

    fn places(&self, namespaces: &[Namespace]) -> Vec<Option<usize>> {
        let backend = &self.inner.backend;
        let place = |namespace| {
            backend.check_writable(namespace).ok()?;
            backend.place(namespace).ok()
        };
        namespaces.iter().map(place).collect()
    }

    async fn holds(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, ApiError> {
        self.inner.holds(digests).await
    }

    async fn write_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
        delay: Duration,
    ) -> Result<(), ApiError> {
        // A copy that is about to go does not count.
        let _committing = self.inner.committing(digest).await;
        if self.inner.sealed(digest).await?.is_none() {
            return Err(ApiError::NotFound);
        }
        // From then on it is not let go; before, it may have been.
        self.inner
            .queue_write_back(namespace, digest, delay)
            .await?;
        self.inner.stays(digest).await;
        match self.inner.sealed(digest).await? {
            Some(_) => Ok(()),
            None => Err(ApiError::NotFound),
        }
    }

    async fn writes_back(&self, namespace: &Namespace, digest: Digest) -> Result<bool, ApiError> {
        self.inner.writes_back(namespace, digest).await
    }

    async fn remove(&self, digest: Digest) -> Result<(), ApiError> {
        if self.inner.sealed(digest).await?.is_none() {
            return Err(ApiError::NotFound);
        }
        if self.inner.waits_for_write_back(digest).await? {
            return Err(ApiError::Conflict(
                "the blob is not in the backend yet".into(),
            ));
        }
        self.inner.store.remove(digest).await.map_err(store_error)?;
        // Nobody brings it back.
        self.inner.let_go.note(digest);
        self.inner.leave(digest).await;
        Ok(())
    }
}
