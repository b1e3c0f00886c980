//! Blobs that rot in the store are taken in anew, from other origins or the backend.

use std::sync::{Arc, Weak};

use kraken_proto::Namespace;

use super::Inner;
use crate::dynamic::DynUploadStore;

/// Stops seeding each blob that turns out damaged, as the store no longer has it, and takes it in
/// again. The store knows of no namespace: a blob that no other origin has comes back when somebody
/// asks for it by its own.
pub(super) async fn mend(store: Arc<dyn DynUploadStore>, inner: Weak<Inner>) {
    loop {
        let digest = store.damaged().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        inner.metrics.damaged();
        inner.leave(digest).await;
        let namespace = Namespace::default();
        let (holder, _) = inner.find_at_peers(&namespace, digest).await;
        match holder {
            Some(_) => drop(inner.take_in(&namespace, digest)),
            None => tracing::warn!(%digest, "no other origin has the damaged blob"),
        }
    }
}
