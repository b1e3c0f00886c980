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
use super::trust::Sealed;
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
    /// What the bytes are proven by, when the blob is sealed.
    pub(super) sealed: Option<Arc<Sealed>>,
}

impl Place {
    /// Whether a sealed blob's file is still the one that was sealed.
    fn check(&self, file: &File) -> Result<(), StoreError> {
        match &self.sealed {
            Some(sealed) if sealed.is_touched(file) => {
                Err(sealed.damaged("its file has been changed"))
            }
            _ => Ok(()),
        }
    }
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
            place.check(&file)?;
            filled = fill_cached(&file, buffer.bytes_mut(), range.start).await;
        }
        if filled == len {
            return Ok(buffer.freeze());
        }
        // Of its own, and not to be given up: a probe has made the system read, and what comes has to
        // be proven also when nobody waits for it any more.
        let store = self.clone();
        let reading = tokio::spawn(async move {
            let read = move |shared: &Shared| shared.read_rest(&place, range.start, buffer, filled);
            store.blocking(read).await
        });
        super::flatten(reading.await)
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
        place.check(&file)?;
        let start = offset + filled as u64;
        if let Some(sealed) = &place.sealed {
            let end = offset + buffer.bytes_mut().len() as u64;
            return self.read_pieces(place, sealed, (offset..end, start));
        }
        let rest = &mut buffer.bytes_mut()[filled..];
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

    /// Reads `range` of a sealed blob, of which the bytes from `cold` on come from the disk, by whole
    /// pieces, and proves those.
    fn read_pieces(
        &self,
        place: &Place,
        sealed: &Sealed,
        (range, cold): (Range<u64>, u64),
    ) -> Result<Bytes, StoreError> {
        let mut parts = Vec::new();
        for piece in sealed.meta.pieces_of(range.clone()) {
            let whole = sealed.meta.piece_range(piece);
            let wanted = range.start.max(whole.start)..range.end.min(whole.end);
            let proven = whole.end <= cold || sealed.was_proven(piece);
            let (bytes, start) = match proven {
                true => (self.read_plain(place, wanted.clone())?, wanted.start),
                false => (self.read_proven(place, piece)?, whole.start),
            };
            let index = |at: u64| usize::try_from(at - start).expect("within a piece");
            parts.push(bytes.slice(index(wanted.start)..index(wanted.end)));
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Ok(parts.concat().into()),
        }
    }

    /// A piece of a sealed blob, proven.
    pub(super) fn read_proven(&self, place: &Place, piece: u32) -> Result<Bytes, StoreError> {
        let Some(sealed) = &place.sealed else {
            return Err(StoreError::Absent(place.digest));
        };
        let bytes = self.read_plain(place, sealed.meta.piece_range(piece))?;
        match sealed.meta.verify(piece, &bytes) {
            Ok(()) => {
                sealed.proved(piece);
                Ok(bytes)
            }
            Err(error) => Err(sealed.damaged(format!("piece {piece}: {error}"))),
        }
    }

    fn read_plain(&self, place: &Place, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (file, path) = self.data_file(place)?;
        let len = usize::try_from(range.end - range.start).expect("a piece fits");
        let mut buffer = self.pool.take(len);
        disk::will_need(&file, range.start, range.end - range.start);
        let read = disk::fill_at(&file, buffer.bytes_mut(), range.start);
        let read = match read.map_err(disk::failed("read", &path)) {
            Err(error) if disk::is_rotten(&error) => {
                return Err(StoreError::Damaged {
                    digest: place.digest,
                    what: error.to_string(),
                });
            }
            read => read?,
        };
        if read == len {
            return Ok(buffer.freeze());
        }
        Err(StoreError::Damaged {
            digest: place.digest,
            what: format!("{} ends at {}", path.display(), range.start + read as u64),
        })
    }

    pub(super) fn data_file(&self, place: &Place) -> Result<(Arc<File>, PathBuf), StoreError> {
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
