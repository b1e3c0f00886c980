//! Blobs that rot in the store come anew, from other origins.

use std::sync::{Arc, Weak};

use futures::StreamExt as _;
use kraken_net::http::ApiError;
use kraken_net::origin::OriginClient;
use kraken_proto::{Digest, Namespace};
use kraken_storage::Need;
use kraken_storage::pace::Pace;

use super::Inner;
use super::ingest::store_error;
use crate::dynamic::DynUploadStore;

/// Stops seeding each blob that turns out damaged, as the store no longer has it, and copies it from
/// another origin. One that no other has comes from its backend when somebody asks for it: the store
/// knows of no namespace.
pub(super) async fn mend(store: Arc<dyn DynUploadStore>, inner: Weak<Inner>) {
    loop {
        let digest = store.damaged().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        inner.metrics.damaged();
        inner.mending().insert(digest);
        inner.leave(digest).await;
        match inner.copy_here(digest).await {
            Ok(()) => tracing::info!(%digest, "a damaged blob is whole again"),
            Err(error) => tracing::warn!(%digest, %error, "a damaged blob cannot be copied now"),
        }
        inner.mending().remove(&digest);
    }
}

/// How a copy is taken.
#[derive(Clone, Copy)]
pub(super) enum Taking<'a> {
    /// At once, and others go if it needs their room.
    Made,
    /// No faster than `pace`. One that is spare takes nobody's room: others would go for it, and be copied back
    /// next.
    Paced { pace: &'a Pace, is_spare: bool },
}

impl Inner {
    /// Copies a blob from another origin. Nothing is queued: what this copy is for was said when the
    /// first one came.
    async fn copy_here(&self, digest: Digest) -> Result<(), ApiError> {
        // A copy is found by its digest alone.
        let namespace = Namespace::default();
        let (holder, _) = self.find_at_peers(&namespace, digest).await;
        let holder = holder.ok_or(ApiError::NotFound)?;
        self.copy_from(&holder, digest, &[], Taking::Made).await
    }

    /// Copies a blob from another origin that has it whole. It is not in the backend under the namespaces
    /// `unwritten`: this copy is to bring it there, too.
    pub(super) async fn copy_from(
        &self,
        holder: &OriginClient,
        digest: Digest,
        unwritten: &[Namespace],
        taking: Taking<'_>,
    ) -> Result<(), ApiError> {
        let namespace = Namespace::default();
        let mut body = holder.read(&namespace, digest, None).await?.body;
        let id = self.store.upload_start().await.map_err(store_error)?;
        let copied = async {
            let mut at = 0;
            while let Some(bytes) = body.next().await {
                let bytes = bytes.map_err(|error| ApiError::Unavailable(error.to_string()))?;
                if let Taking::Paced { pace, .. } = taking {
                    pace.pass(bytes.len() as u64).await;
                }
                let need = Need {
                    bytes: bytes.len() as u64,
                    upload: Some(&id),
                };
                let append = || self.store.upload_append(&id, at, bytes.clone());
                let appended = match taking {
                    Taking::Paced { is_spare: true, .. } => append().await,
                    _ => self.with_room(need, append).await,
                };
                at = appended.map_err(store_error)?;
            }
            // Durable before the blob is, and not earlier: a task that finds no blob is given up.
            for namespace in unwritten {
                self.queue_write_back(namespace, digest, self.stagger)
                    .await?;
            }
            self.stays(digest).await;
            self.store
                .upload_commit(&id, digest)
                .await
                .map_err(store_error)
        };
        let copied = copied.await;
        if copied.is_err() {
            self.store.upload_abort(&id).await.map_err(store_error)?;
        }
        copied.map(drop)
    }
}
