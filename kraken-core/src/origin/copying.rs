//! The copies that are on their way to other origins: each blob to each of them once at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kraken_proto::Digest;
use tokio::sync::Notify;

type Key = (Digest, String);

/// What is being copied, and where to.
#[derive(Debug, Clone, Default)]
pub(super) struct Copying(Arc<State>);

#[derive(Debug, Default)]
struct State {
    under_way: Mutex<HashSet<Key>>,
    ended: Notify,
}

/// The right to copy a blob to an origin, until it is dropped.
#[derive(Debug)]
pub(super) struct Copy {
    copying: Copying,
    key: Key,
}

impl Copying {
    /// `None` while somebody else does it.
    pub(super) fn begin(&self, digest: Digest, origin: &str) -> Option<Copy> {
        let key = (digest, origin.to_string());
        self.lock().insert(key.clone()).then(|| Copy {
            copying: self.clone(),
            key,
        })
    }

    /// Waits until nobody else does it.
    pub(super) async fn turn(&self, digest: Digest, origin: &str) -> Copy {
        loop {
            // Before the look, so that an end after it is not missed.
            let ended = self.0.ended.notified();
            if let Some(copy) = self.begin(digest, origin) {
                return copy;
            }
            ended.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copy {
    /// Where it goes.
    pub(super) fn origin(&self) -> &str {
        &self.key.1
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.copying.lock().remove(&self.key);
        self.copying.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn who_waits_has_the_next_turn() {
        let (copying, blob) = (Copying::default(), Digest::of(b"blob"));
        let first = copying.turn(blob, "origin-1").now_or_never().unwrap();
        let mut second = Box::pin(copying.turn(blob, "origin-1"));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().unwrap();
        assert_eq!(second.origin(), "origin-1");
    }

    #[test]
    fn a_blob_goes_to_an_origin_once_at_a_time() {
        let (copying, blob) = (Copying::default(), Digest::of(b"blob"));
        let first = copying.begin(blob, "origin-1").unwrap();
        assert!(copying.begin(blob, "origin-1").is_none());
        assert!(copying.begin(blob, "origin-2").is_some());
        assert!(copying.begin(Digest::of(b"other"), "origin-1").is_some());
        drop(first);
        assert!(copying.begin(blob, "origin-1").is_some());
        assert!(copying.lock().is_empty());
    }
}
