//! How bytes are read: on the spot what lies in the page cache, elsewhere what the disk must give.
//!
//! A blob that is served is mostly in the cache, where a trip to the blocking pool costs as much as
//! the copy. What is not there is read on the pool, and more than was asked for is asked of the disk,
//! so that who reads on finds it in the cache.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kraken_proto::Digest;
use tokio::sync::OwnedRwLockReadGuard;

use super::cache::{Part, State};
use super::pool::Buffer;
use super::{FsStore, Shared, disk};
use crate::store::StoreError;

/// Bytes that are copied on the spot before others have their turn: some 40 microseconds' worth.
const STEP: usize = 256 << 10;

/// What the disk is asked for at least, in bytes, when it is asked.
const AHEAD: u64 = 1 << 20;

/// A blob to read from. Nobody else seals or removes it meanwhile.
pub(super) struct Place {
    pub(super) digest: Digest,
    pub(super) slot: OwnedRwLockReadGuard<State>,
    pub(super) length: u64,
}

impl FsStore {
    /// Reads `range`, which lies within the blob and is there.
    pub(super) async fn read_range(
        &self,
        place: Place,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let len = usize::try_from(range.end - range.start).expect("a u32 fits");
        let mut buffer = self.shared.pool.take(len);
        let mut filled = 0;
        // A file that has to be opened first may need the disk for its name alone.
        if let Some(file) = self.shared.files.opened(place.digest, Part::Data) {
            filled = fill_cached(&file, buffer.bytes_mut(), range.start).await;
        }
        if filled == len {
            return Ok(buffer.freeze());
        }
        self.blocking(move |shared| shared.read_rest(&place, range.start, buffer, filled))
            .await
    }
}

/// Fills as much of `bytes` as lies in the cache, and says how much that is.
async fn fill_cached(file: &File, bytes: &mut [u8], offset: u64) -> usize {
    let mut filled = 0;
    for step in bytes.chunks_mut(STEP) {
        if filled > 0 {
            tokio::task::yield_now().await;
        }
        let read = disk::fill_cached_at(file, step, offset + filled as u64);
        filled += read;
        if read < step.len() {
            break;
        }
    }
    filled
}

impl Shared {
    /// Reads what a buffer lacks behind its first `filled` bytes.
    fn read_rest(
        &self,
        place: &Place,
        offset: u64,
        mut buffer: Buffer,
        filled: usize,
    ) -> Result<Bytes, StoreError> {
        let (file, path) = self.data_file(place)?;
        let rest = &mut buffer.bytes_mut()[filled..];
        let start = offset + filled as u64;
        let end = (start + AHEAD.max(rest.len() as u64)).min(place.length);
        disk::will_need(&file, start, end - start);
        let read = disk::fill_at(&file, rest, start).map_err(disk::failed("read", &path))?;
        if read == rest.len() {
            return Ok(buffer.freeze());
        }
        Err(StoreError::Damaged {
            digest: place.digest,
            what: format!("{} ends at {}", path.display(), start + read as u64),
        })
    }

    fn data_file(&self, place: &Place) -> Result<(Arc<File>, PathBuf), StoreError> {
        let digest = place.digest;
        Ok(match *place.slot {
            State::Sealed(_) => (self.sealed_file(digest)?, self.layout.sealed_data(digest)),
            _ => (
                self.partial_file(digest, Part::Data)?,
                self.layout.partial_data(digest),
            ),
        })
    }
}
