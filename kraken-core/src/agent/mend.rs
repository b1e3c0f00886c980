//! Blobs that rot in the store are fetched anew.

use std::sync::{Arc, Weak};

use super::{Agent, Inner};
use crate::dynamic::DynStore;

/// Leaves the swarm of each blob that turns out damaged, as the store no longer has it, and fetches
/// it again: whoever reads it later finds it whole.
pub(super) async fn mend(store: Arc<dyn DynStore>, inner: Weak<Inner>) {
    loop {
        let digest = store.damaged().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        inner.metrics.damaged();
        let agent = Agent { inner };
        // Those who read it get an error, and the next attempt gets the right bytes.
        if agent.leave(digest).await.is_err() {
            return;
        }
        match agent.open(digest).await {
            Ok(_) => tracing::info!(%digest, "a damaged blob is fetched anew"),
            Err(error) => tracing::warn!(%digest, %error, "a damaged blob cannot be fetched now"),
        }
    }
}
