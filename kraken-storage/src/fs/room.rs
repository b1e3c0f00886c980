//! The room that the store takes, and what may go for others.
//!
//! Every byte of a blob is counted before it is written: a partial blob with its whole length, an
//! upload as it grows. Directories, metainfo and journals are not, which are some 40 bytes for each
//! piece. What is there is counted anew at every start.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::SystemTime;

use kraken_proto::Digest;
use kraken_proto::cache::ledger::{Ceiling, Ledger, Room};

use super::layout::Layout;
use super::{FsStore, Shared, disk};
use crate::store::StoreError;

impl FsStore {
    /// The size of the volume that `path` is or will be on, in bytes: for a ceiling as a part of it.
    ///
    /// # Errors
    /// Neither `path` nor any directory above it can be looked at.
    pub fn volume_bytes(path: &Path) -> Result<u64, StoreError> {
        let whole = std::path::absolute(path).map_err(disk::failed("look at", path))?;
        let there = whole.ancestors().find(|part| part.exists());
        let volume = rustix::fs::statvfs(there.unwrap_or(&whole)).map_err(std::io::Error::from);
        let volume = volume.map_err(disk::failed("look at", path))?;
        Ok(volume.f_blocks.saturating_mul(volume.f_frsize))
    }

    /// What the store takes, in bytes.
    pub fn used(&self) -> u64 {
        self.shared.ledger().used()
    }
}

impl Shared {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each call leaves it in order.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob is to take so many bytes, whatever it takes now.
    pub(super) fn reserve(&self, blob: Digest, bytes: u64) -> Result<(), StoreError> {
        let mut ledger = self.ledger();
        let more = bytes.saturating_sub(ledger.bytes_of(blob));
        if more > 0 && ledger.room_for(more, |_| false) != Room::Free {
            return Err(StoreError::Full);
        }
        ledger.keep(blob, bytes);
        Ok(())
    }

    /// An upload is to take so many bytes more.
    pub(super) fn reserve_upload(&self, bytes: u64) -> Result<(), StoreError> {
        let mut ledger = self.ledger();
        if bytes > 0 && ledger.room_for(bytes, |_| false) != Room::Free {
            return Err(StoreError::Full);
        }
        ledger.hold(bytes);
        Ok(())
    }

    /// The blobs that are to go so that `bytes` fit, which did not: without those that are `spared`.
    pub(super) fn victims(
        &self,
        bytes: u64,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        let ledger = self.ledger();
        let may_go = |blob| !spared.contains(&blob);
        let room = match ledger.room_for(bytes, may_go) {
            // The volume is shared with others, who have taken more than was thought.
            // Also an empty blob needs a file.
            Room::Free => ledger.making_room(bytes.max(1), may_go),
            room => room,
        };
        match room {
            Room::After(going) if !going.is_empty() => Ok(going),
            _ => Err(StoreError::Full),
        }
    }
}

/// Counts what an earlier process left. What was used last is taken from the files' times: most
/// systems note a read only when the last one is a day old, so that this is the order by days.
pub(super) fn count(layout: &Layout, ceiling: Option<Ceiling>) -> Result<Ledger, StoreError> {
    let mut ledger = Ledger::new(ceiling);
    let mut blobs = Vec::new();
    let sealed = layout.sealed()?;
    let sealed = sealed.into_iter().map(|it| (it, layout.sealed_data(it)));
    let partial = layout.partial()?;
    let partial = partial.into_iter().map(|it| (it, layout.partial_data(it)));
    for (digest, path) in sealed.chain(partial) {
        if let Ok(metadata) = fs::metadata(&path) {
            blobs.push((last_use(&metadata), digest, metadata.len()));
        }
    }
    blobs.sort_unstable();
    for (_, digest, bytes) in blobs {
        ledger.keep(digest, bytes);
    }
    for path in layout.others()? {
        ledger.hold(disk::length(&path)?.unwrap_or(0));
    }
    Ok(ledger)
}

fn last_use(metadata: &Metadata) -> SystemTime {
    let times = [metadata.accessed(), metadata.modified()];
    let latest = times.into_iter().filter_map(Result::ok).max();
    latest.unwrap_or(SystemTime::UNIX_EPOCH)
}
