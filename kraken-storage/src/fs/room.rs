//! The room that the store takes, and what may go for others.
//!
//! Every byte of a blob is counted before it is written: a partial blob with its whole length, an
//! upload as it grows. Directories, metainfo and journals are not, which are some 40 bytes for each
//! piece. What is there is counted anew at every start.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::SystemTime;

use kraken_proto::Digest;
use kraken_proto::cache::ledger::{Ceiling, Ledger, Order, Room};

use super::layout::Layout;
use super::{FsStore, Shared, disk};
use crate::store::{Goal, StoreError};

impl FsStore {
    /// The size of the volume that `path` is or will be on, in bytes: for a ceiling as a part of it.
    ///
    /// # Errors
    /// Neither `path` nor any directory above it can be looked at.
    pub fn volume_bytes(path: &Path) -> Result<u64, StoreError> {
        let volume = volume(path)?;
        Ok(volume.f_blocks.saturating_mul(volume.f_frsize))
    }

    /// How much of that volume this process may still take, in bytes.
    ///
    /// # Errors
    /// As [`FsStore::volume_bytes`].
    pub fn volume_room(path: &Path) -> Result<u64, StoreError> {
        let volume = volume(path)?;
        Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
    }
}

fn volume(path: &Path) -> Result<rustix::fs::StatVfs, StoreError> {
    let whole = std::path::absolute(path).map_err(disk::failed("look at", path))?;
    let there = whole.ancestors().find(|part| part.exists());
    let volume = rustix::fs::statvfs(there.unwrap_or(&whole)).map_err(std::io::Error::from);
    volume.map_err(disk::failed("look at", path))
}

/// Blobs that are looked at under one lock.
const PAGE: usize = 1000;

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
        ledger.keep(blob, bytes, now_ms());
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

    /// What may go without need.
    pub(super) fn surplus(&self, goal: Goal, spared: &HashSet<Digest>) -> Vec<Digest> {
        let may_go = |blob| !spared.contains(&blob);
        match goal {
            Goal::Marks => self.ledger().surplus(may_go),
            Goal::Percent(percent) => {
                let ledger = self.ledger();
                let most = ledger.ceiling().map_or(u64::MAX, Ceiling::most);
                ledger.down_to(most / 100 * u64::from(percent), may_go)
            }
            Goal::Lifetimes { lifetimes, now_ms } => {
                let (mut over, mut after) = (Vec::new(), None);
                loop {
                    let page = self.ledger().expired(lifetimes, now_ms, after, PAGE);
                    over.extend(page.0.into_iter().filter(|blob| may_go(*blob)));
                    after = page.1;
                    if after.is_none() {
                        return over;
                    }
                }
            }
        }
    }

    /// Writes the times of the last uses into the files.
    pub(super) fn note_uses(&self) -> Result<(), StoreError> {
        let (mut after, mut done) = (None, Ok(()));
        loop {
            let (used, next) = self.ledger().take_used(after, PAGE);
            for (digest, used_ms) in used {
                // The others are to be noted all the same.
                let noted = self.note_use(digest, used_ms);
                done = done.and(noted);
            }
            after = next;
            if after.is_none() {
                return done;
            }
        }
    }

    fn note_use(&self, digest: Digest, used_ms: u64) -> Result<(), StoreError> {
        let sealed = self.layout.sealed_data(digest);
        if !disk::set_accessed(&sealed, used_ms)? {
            // Neither, when it has gone meanwhile.
            disk::set_accessed(&self.layout.partial_data(digest), used_ms)?;
        }
        Ok(())
    }
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    ms_of(SystemTime::now())
}

fn ms_of(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Counts what an earlier process left. When a blob came is when its file was written, when it was
/// used last is noted in its file by [`Shared::note_uses`].
pub(super) fn count(
    layout: &Layout,
    ceiling: Option<Ceiling>,
    order: Order,
) -> Result<Ledger, StoreError> {
    let mut ledger = Ledger::new(ceiling, order);
    let mut blobs = Vec::new();
    let sealed = layout.sealed()?;
    let sealed = sealed.into_iter().map(|it| (it, layout.sealed_data(it)));
    let partial = layout.partial()?;
    let partial = partial.into_iter().map(|it| (it, layout.partial_data(it)));
    for (digest, path) in sealed.chain(partial) {
        if let Ok(metadata) = fs::metadata(&path) {
            let born_ms = metadata.modified().map_or(0, ms_of);
            let used_ms = metadata.accessed().map_or(0, ms_of).max(born_ms);
            blobs.push((used_ms, digest, born_ms, metadata.len()));
        }
    }
    blobs.sort_unstable();
    for (used_ms, digest, born_ms, bytes) in blobs {
        ledger.restore(digest, bytes, born_ms, used_ms);
    }
    for digest in layout.pins()? {
        ledger.pin(digest, true);
    }
    for path in layout.others()? {
        ledger.hold(disk::length(&path)?.unwrap_or(0));
    }
    Ok(ledger)
}
