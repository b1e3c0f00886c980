//! Bytes that go to the disk while more of them come.
//!
//! A blob is durable when its last sync returns, and that waits for all that is dirty then: of 1 GiB
//! over a second. Synced on the way, only the last part is left. One sync at a time in a whole store:
//! the disk is the same for all blobs.
//!
//! The kernel reports a failed write to one sync only, and forgets it: whatever an early one was told
//! must make the last one fail, too. So both go through [`EarlySync::sync`].

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::spawn_blocking;

use super::FsStore;
use super::disk;

/// Bytes written between two syncs: what a disk of 500 MB/s takes 70 ms for.
const EVERY: u64 = 32 << 20;

/// How far one file is.
#[derive(Debug, Default)]
pub(super) struct EarlySync {
    unsynced: AtomicU64,
    failed: AtomicBool,
    /// Held over a sync, so that the last one waits for one that runs.
    turn: Mutex<()>,
}

impl EarlySync {
    /// Counts what was written, and says whether it is time.
    pub(super) fn wrote(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes >= EVERY
    }

    /// Makes durable what has been written, by `sync`.
    ///
    /// # Errors
    /// This sync failed, or one before it: what the file holds is not what the disk will have.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_failed() {
            return Err(io::Error::other("an earlier write did not reach the disk"));
        }
        sync().inspect_err(|_| self.failed.store(true, Ordering::SeqCst))
    }

    /// Whether a sync has failed; does not wait for one that runs.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}

impl FsStore {
    /// Syncs a file in the background, unless another one is being synced: then the next write
    /// looks again.
    ///
    /// It is the very file that was written: behind its name there may be another by now.
    pub(super) fn sync_early(&self, early: &Arc<EarlySync>, file: Arc<File>) {
        let Ok(turn) = Arc::clone(&self.shared.early).try_acquire_owned() else {
            return;
        };
        early.unsynced.store(0, Ordering::Relaxed);
        // The store counts as open until it is done.
        let (shared, early) = (Arc::clone(&self.shared), Arc::clone(early));
        spawn_blocking(move || {
            let _held = (turn, shared);
            if let Err(error) = early.sync(|| disk::sync_data(&file)) {
                tracing::error!(%error, "a blob that comes in cannot be written to the disk");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_time_after_so_many_bytes() {
        let early = EarlySync::default();
        let piece = 1 << 20;
        let due: Vec<_> = (0..33).map(|_| early.wrote(piece)).collect();
        assert!(due[..31].iter().all(|due| !due));
        assert!(due[31] && due[32], "until somebody syncs");
    }

    #[test]
    fn a_failure_is_remembered_though_the_kernel_forgets_it() {
        let early = EarlySync::default();
        early.sync(|| Ok(())).unwrap();
        assert!(!early.has_failed());
        let failed = early.sync(|| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(early.sync(|| Ok(())).is_err());
        assert!(early.has_failed());
    }
}
