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

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use kraken_proto::{ChainHasher, Digest, MetaInfo};

use super::cache::{Part, State};
use super::partial::Partial;
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
            .sync(|| file.sync_data())
            .map_err(disk::failed("sync", &self.layout.partial_data(digest)))
    }

    /// Steps 2 to 5 for the synced file `data`.
    pub(super) fn publish(&self, data: &Path, meta: &MetaInfo) -> Result<(), StoreError> {
        let digest = meta.digest();
        meta::write(&self.layout, &self.layout.sealed_meta(digest), meta, true)?;
        fs::rename(data, self.layout.sealed_data(digest)).map_err(disk::failed("seal", data))?;
        self.sync_sealed(digest)?;
        if let Some(dir) = data.parent() {
            disk::sync_dir(dir)?;
        }
        self.remove_partial(digest)
    }

    /// Step 4: also for a blob that an earlier process has sealed, as that one may have died
    /// before it.
    pub(super) fn sync_sealed(&self, digest: Digest) -> Result<(), StoreError> {
        disk::sync_dir(&self.layout.sealed_dir(digest))
    }

    /// What the disk holds of a blob.
    pub(super) fn load(&self, digest: Digest) -> Result<State, StoreError> {
        if let Some(meta) = self.load_sealed(digest)? {
            self.remove_partial(digest)?;
            return Ok(State::Sealed(meta));
        }
        Ok(match self.load_partial(digest)? {
            Some(partial) => State::Partial(partial),
            None => State::Absent,
        })
    }

    fn load_sealed(&self, digest: Digest) -> Result<Option<MetaInfo>, StoreError> {
        let data = self.layout.sealed_data(digest);
        let Some(length) = disk::length(&data)? else {
            return Ok(None);
        };
        let path = self.layout.sealed_meta(digest);
        let meta = match meta::read(&path, digest)? {
            Some(meta) if meta.is_whole() => meta,
            _ => {
                tracing::warn!(%digest, "computing the metainfo of a sealed blob anew");
                let found = hash(&data)?.finish();
                if found.digest() == digest {
                    meta::write(&self.layout, &path, &found, true)?;
                }
                found
            }
        };
        if meta.digest() == digest && meta.length() == length {
            return Ok(Some(meta));
        }
        self.set_aside(digest)?;
        Ok(None)
    }

    fn set_aside(&self, digest: Digest) -> Result<(), StoreError> {
        let (from, to) = (self.layout.sealed_data(digest), self.layout.damaged(digest));
        tracing::error!(%digest, to = %to.display(), "a sealed blob is damaged and is set aside");
        self.files.forget(digest);
        fs::rename(&from, to).map_err(disk::failed("set aside", &from))?;
        {
            // It takes as much as before, and nobody may remove it but a person.
            let mut ledger = self.ledger();
            let bytes = ledger.bytes_of(digest);
            ledger.forget(digest);
            ledger.hold(bytes);
        }
        disk::remove(&self.layout.sealed_meta(digest))?;
        Ok(())
    }

    pub(super) fn sealed_file(&self, digest: Digest) -> Result<Arc<File>, StoreError> {
        let path = self.layout.sealed_data(digest);
        self.files.get(digest, Part::Data, || {
            File::open(&path).map_err(disk::failed("open", &path))
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
    let file = File::open(path).map_err(disk::failed("open", path))?;
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
