//! How a blob becomes sealed, and what a sealed blob must be to be believed.
//!
//! A blob is sealed when its data lies under `sealed/`. Its data is synced before that, its
//! metainfo is written before that, so a process that dies between any two steps leaves either a
//! partial blob that can be sealed again, or a sealed one with some files too many:
//!
//! 1. sync the data;
//! 2. write `sealed/….meta`;
//! 3. rename the data to `sealed/…`;
//! 4. sync the directories;
//! 5. remove what is left under `partial/`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use kraken_proto::{ChainHasher, Digest, MetaInfo};

use super::cache::{Part, State};
use super::partial::Partial;
use super::trust::{self, Sealed, Stamp};
use super::{Shared, disk, meta};
use crate::store::StoreError;

/// How much is hashed at a time when a blob is read back.
const CHUNK: usize = 1 << 20;

impl Shared {
    /// Step 1 for a partial blob.
    pub(super) fn sync_partial(&self, partial: &Partial) -> Result<(), StoreError> {
        let digest = partial.digest();
        let file = self.partial_file(digest, Part::Data)?;
        partial
            .early()
            .sync(|| disk::sync_data(&file))
            .map_err(disk::failed("sync", &self.layout.partial_data(digest)))
    }

    /// Steps 2 to 5 for the synced file `data`, which nobody writes to any more.
    pub(super) fn publish(&self, data: &Path, meta: &MetaInfo) -> Result<Sealed, StoreError> {
        let digest = meta.digest();
        let stamp = File::open(data).and_then(|file| Stamp::of(&file));
        let stamp = stamp.map_err(disk::failed("look at", data))?;
        let path = self.layout.sealed_meta(digest);
        meta::write_sealed(&self.layout, &path, meta, stamp)?;
        disk::rename(data, &self.layout.sealed_data(digest)).map_err(disk::failed("seal", data))?;
        disk::protect(&self.layout.sealed_data(digest));
        self.sync_sealed(digest)?;
        if let Some(dir) = data.parent() {
            disk::sync_dir(dir)?;
        }
        self.remove_partial(digest)?;
        Ok(Sealed::new(meta.clone(), stamp))
    }

    /// Step 4: also for a blob that an earlier process has sealed, as that one may have died
    /// before it.
    pub(super) fn sync_sealed(&self, digest: Digest) -> Result<(), StoreError> {
        disk::sync_dir(&self.layout.sealed_dir(digest))
    }

    /// What the disk holds of a blob.
    pub(super) fn load(&self, digest: Digest) -> Result<State, StoreError> {
        if let Some(sealed) = self.load_sealed(digest)? {
            // A seal that died before its last step; without a metainfo the rest is swept at the start.
            if disk::length(&self.layout.partial_meta(digest))?.is_some() {
                self.remove_partial(digest)?;
            }
            return Ok(State::Sealed(Arc::new(sealed)));
        }
        Ok(match self.load_partial(digest)? {
            Some(partial) => State::Partial(partial),
            None => State::Absent,
        })
    }

    fn load_sealed(&self, digest: Digest) -> Result<Option<Sealed>, StoreError> {
        let Some(found) = trust::stamp(&self.layout.sealed_data(digest))? else {
            return Ok(None);
        };
        match meta::read_sealed(&self.layout.sealed_meta(digest), digest)? {
            Some((meta, stamp)) if stamp == found && meta.is_whole() => {
                Ok(Some(Sealed::new(meta, stamp)))
            }
            _ => self.examined(digest),
        }
    }

    pub(super) fn sealed_file(&self, digest: Digest) -> Result<Arc<File>, StoreError> {
        let path = self.layout.sealed_data(digest);
        self.files.get(digest, Part::Data, || {
            let file = disk::open_quietly(&path).map_err(disk::failed("open", &path))?;
            disk::read_exactly(&file);
            Ok(file)
        })
    }

    /// Removes all files of a blob; the data first, as it alone makes the blob sealed.
    pub(super) fn remove_blob(&self, digest: Digest) -> Result<(), StoreError> {
        self.files.forget(digest);
        disk::remove(&self.layout.sealed_data(digest))?;
        disk::remove(&self.layout.sealed_meta(digest))?;
        self.remove_partial(digest)?;
        self.ledger().forget(digest);
        Ok(())
    }
}

/// Hashes a file from its first byte.
pub(super) fn hash(path: &Path) -> Result<ChainHasher, StoreError> {
    let file = disk::open_quietly(path).map_err(disk::failed("open", path))?;
    let mut hasher = ChainHasher::new();
    loop {
        let bytes = disk::read_at(&file, hasher.length(), CHUNK);
        let bytes = bytes.map_err(disk::failed("read", path))?;
        hasher.update(&bytes);
        if bytes.len() < CHUNK {
            return Ok(hasher);
        }
    }
}
