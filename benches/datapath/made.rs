//! A blob of any size that needs no disk: each byte follows from its place.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kraken_core::proto::{Bitfield, ChainHasher};
use kraken_core::storage::{BlobStatus, PieceStore, StoreError};
use kraken_core::{Digest, MetaInfo};

/// Bytes that repeat, but for a number at the head of each.
const PAGE: usize = 4096;
/// Bytes that are hashed at a time.
const STEP: u64 = 4 << 20;

/// What such a blob consists of: hashes all of it.
pub(crate) fn meta(length: u64) -> MetaInfo {
    let (mut hasher, mut at) = (ChainHasher::new(), 0);
    let mut bytes = vec![0; usize::try_from(STEP).expect("a step fits")];
    while at < length {
        let len = usize::try_from(STEP.min(length - at)).expect("a step fits");
        fill(&mut bytes[..len], at);
        hasher.update(&bytes[..len]);
        at += len as u64;
    }
    hasher.finish()
}

/// Writes the bytes from `offset` on.
fn fill(bytes: &mut [u8], offset: u64) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let page = PAGE as u64;
        let within = usize::try_from(at % page).expect("less than a page");
        let (part, after) = rest.split_at_mut(rest.len().min(PAGE - within));
        let mut made = [0x5a; PAGE];
        made[..8].copy_from_slice(&(at / page).to_le_bytes());
        part.copy_from_slice(&made[within..within + part.len()]);
        at += part.len() as u64;
        rest = after;
    }
}

/// A store of one such blob: it knows which pieces it has been given, and makes their bytes anew.
pub(crate) struct MadeStore {
    meta: MetaInfo,
    held: Mutex<Held>,
}

struct Held {
    have: Option<Bitfield>,
    sealed: bool,
}

impl MadeStore {
    /// With all of the blob, or without anything.
    pub(crate) fn new(meta: MetaInfo, whole: bool) -> Self {
        let have = whole.then(|| Bitfield::full(meta.piece_count()));
        Self {
            meta,
            held: Mutex::new(Held {
                have,
                sealed: whole,
            }),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, digest: Digest) -> Result<(), StoreError> {
        if digest == self.meta.digest() {
            return Ok(());
        }
        Err(StoreError::Absent(digest))
    }
}

impl PieceStore for MadeStore {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        let held = self.held();
        let meta = self.meta.clone();
        Ok(match &held.have {
            _ if digest != meta.digest() => BlobStatus::Absent,
            None => BlobStatus::Absent,
            Some(_) if held.sealed => BlobStatus::Sealed { meta },
            Some(have) => {
                let have = have.clone();
                BlobStatus::Partial { meta, have }
            }
        })
    }

    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        self.is(meta.digest())?;
        let mut held = self.held();
        let none = || Bitfield::empty(meta.piece_count());
        Ok(held.have.get_or_insert_with(none).clone())
    }

    async fn write(&self, digest: Digest, piece: u32, _: Bytes) -> Result<(), StoreError> {
        self.is(digest)?;
        let mut held = self.held();
        let have = held.have.as_mut().ok_or(StoreError::Absent(digest))?;
        have.insert(piece);
        Ok(())
    }

    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        self.is(digest)?;
        let end = (offset + u64::from(len)).min(self.meta.length());
        let pieces = self.meta.pieces_of(offset..end);
        if let Some(have) = &self.held().have {
            let missing = pieces.clone().find(|piece| !have.has(*piece));
            if let Some(piece) = missing {
                return Err(StoreError::Missing { digest, piece });
            }
        }
        let mut bytes = vec![0; usize::try_from(end - offset).expect("a piece fits")];
        fill(&mut bytes, offset);
        Ok(bytes.into())
    }

    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        self.is(digest)?;
        self.held().sealed = true;
        Ok(())
    }

    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        self.is(digest)?;
        *self.held() = Held {
            have: None,
            sealed: false,
        };
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let sealed = self.held().sealed;
        Ok(sealed.then(|| self.meta.digest()).into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_however_they_are_asked_for() {
        let mut whole = vec![0; 3 * PAGE];
        fill(&mut whole, 0);
        for (from, len) in [(0, 10), (5, PAGE), (PAGE - 1, PAGE + 2), (2 * PAGE, PAGE)] {
            let mut part = vec![0; len];
            fill(&mut part, from as u64);
            assert_eq!(part, &whole[from..from + len], "{from} {len}");
        }
    }

    #[test]
    fn the_metainfo_is_that_of_the_bytes() {
        let length = STEP + 12_345;
        let mut whole = vec![0; usize::try_from(length).unwrap()];
        fill(&mut whole, 0);
        assert_eq!(meta(length), MetaInfo::of(&whole));
    }
}
