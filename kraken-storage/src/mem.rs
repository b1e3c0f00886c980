//! A store in memory: for tests, the simulator's shells, and hosts without a disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kraken_proto::{Bitfield, ChainHasher, Digest, MetaInfo};

use crate::store::{BlobStatus, PieceStore, StoreError, UploadStore, check_bounds, first_missing};

/// Keeps blobs and uploads in memory. Clones share one store.
///
/// Nothing bounds its size, and nothing survives it.
#[derive(Debug, Clone, Default)]
pub struct MemStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: BTreeMap<Digest, Blob>,
    uploads: HashMap<String, Upload>,
    next_upload: u64,
}

#[derive(Debug)]
struct Blob {
    meta: MetaInfo,
    have: Bitfield,
    /// One for each piece, empty where the piece is missing.
    pieces: Vec<Bytes>,
    sealed: bool,
}

#[derive(Debug, Default)]
struct Upload {
    bytes: BytesMut,
    hasher: ChainHasher,
}

impl MemStore {
    /// A store that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is made whole before the lock goes, so a panic elsewhere harms nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PieceStore for MemStore {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        Ok(match self.lock().blobs.get(&digest) {
            None => BlobStatus::Absent,
            Some(blob) if blob.sealed => BlobStatus::Sealed {
                meta: blob.meta.clone(),
            },
            Some(blob) => BlobStatus::Partial {
                meta: blob.meta.clone(),
                have: blob.have.clone(),
            },
        })
    }

    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        let mut inner = self.lock();
        if let Some(blob) = inner.blobs.get_mut(&meta.digest()) {
            if blob.sealed {
                return Ok(Bitfield::full(meta.piece_count()));
            }
            if meta.continues(&blob.meta) {
                blob.meta = meta;
                return Ok(blob.have.clone());
            }
            if blob.meta.continues(&meta) {
                return Ok(blob.have.clone());
            }
        }
        let blob = Blob::new(meta);
        let have = blob.have.clone();
        inner.blobs.insert(blob.meta.digest(), blob);
        Ok(have)
    }

    async fn write(&self, digest: Digest, piece: u32, data: Bytes) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let blob = inner.blob(digest)?;
        check_bounds(&blob.meta, piece, data.len())?;
        if blob.have.insert(piece) {
            blob.pieces[piece as usize] = data;
        }
        Ok(())
    }

    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        self.lock().blob(digest)?.read(offset, len)
    }

    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let blob = inner.blob(digest)?;
        match blob.have.missing().next() {
            Some(piece) => Err(StoreError::Missing { digest, piece }),
            None if !blob.meta.is_whole() => Err(StoreError::Open(digest)),
            None => {
                blob.sealed = true;
                Ok(())
            }
        }
    }

    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        self.lock().blobs.remove(&digest);
        Ok(())
    }

    async fn discard(&self, digest: Digest) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if inner.blobs.get(&digest).is_some_and(|blob| !blob.sealed) {
            inner.blobs.remove(&digest);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let inner = self.lock();
        let sealed = inner.blobs.iter().filter(|(_, blob)| blob.sealed);
        Ok(sealed.map(|(digest, _)| *digest).collect())
    }
}

impl UploadStore for MemStore {
    async fn upload_start(&self) -> Result<String, StoreError> {
        let mut inner = self.lock();
        inner.next_upload += 1;
        let name = format!("{:016x}", inner.next_upload);
        inner.uploads.insert(name.clone(), Upload::default());
        Ok(name)
    }

    async fn upload_len(&self, upload: &str) -> Result<u64, StoreError> {
        self.lock().upload(upload).map(|it| it.hasher.length())
    }

    async fn upload_append(
        &self,
        upload: &str,
        offset: u64,
        data: Bytes,
    ) -> Result<u64, StoreError> {
        let mut inner = self.lock();
        let it = inner.upload(upload)?;
        let len = it.hasher.length();
        if offset != len {
            return Err(StoreError::UploadOffset { len, offset });
        }
        it.hasher.update(&data);
        it.bytes.extend_from_slice(&data);
        Ok(it.hasher.length())
    }

    async fn upload_commit(&self, upload: &str, expected: Digest) -> Result<MetaInfo, StoreError> {
        let mut inner = self.lock();
        let unknown = || StoreError::UploadUnknown(upload.to_string());
        let it = inner.uploads.remove(upload).ok_or_else(unknown)?;
        let meta = it.hasher.finish();
        let found = meta.digest();
        if found != expected {
            return Err(StoreError::DigestMismatch { expected, found });
        }
        if let Some(blob) = inner.blobs.get(&expected).filter(|blob| blob.sealed) {
            return Ok(blob.meta.clone());
        }
        let blob = Blob::sealed(meta.clone(), &it.bytes.freeze());
        inner.blobs.insert(expected, blob);
        Ok(meta)
    }

    async fn upload_abort(&self, upload: &str) -> Result<(), StoreError> {
        self.lock().uploads.remove(upload);
        Ok(())
    }
}

impl Inner {
    fn blob(&mut self, digest: Digest) -> Result<&mut Blob, StoreError> {
        self.blobs
            .get_mut(&digest)
            .ok_or(StoreError::Absent(digest))
    }

    fn upload(&mut self, name: &str) -> Result<&mut Upload, StoreError> {
        self.uploads
            .get_mut(name)
            .ok_or_else(|| StoreError::UploadUnknown(name.to_string()))
    }
}

impl Blob {
    fn new(meta: MetaInfo) -> Self {
        Self {
            have: Bitfield::empty(meta.piece_count()),
            pieces: vec![Bytes::new(); meta.piece_count() as usize],
            meta,
            sealed: false,
        }
    }

    fn sealed(meta: MetaInfo, bytes: &Bytes) -> Self {
        let index = |at: u64| usize::try_from(at).expect("the bytes are in memory");
        let piece = |piece| {
            let range = meta.piece_range(piece);
            bytes.slice(index(range.start)..index(range.end))
        };
        Self {
            have: Bitfield::full(meta.piece_count()),
            pieces: (0..meta.piece_count()).map(piece).collect(),
            sealed: true,
            meta,
        }
    }

    fn read(&self, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        let end = offset.saturating_add(len.into()).min(self.meta.length());
        if let Some(piece) = first_missing(&self.meta, &self.have, offset..end) {
            let digest = self.meta.digest();
            return Err(StoreError::Missing { digest, piece });
        }
        let parts = self.meta.pieces_of(offset..end).map(|piece| {
            let range = self.meta.piece_range(piece);
            let within = |at: u64| {
                let at = at.clamp(range.start, range.end) - range.start;
                usize::try_from(at).expect("bounded by the piece length")
            };
            self.pieces[piece as usize].slice(within(offset)..within(end))
        });
        let mut parts: Vec<_> = parts.collect();
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        Ok(parts.concat().into())
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use super::*;
    use crate::testkit;

    #[tokio::test]
    async fn conforms() {
        testkit::conforms(async || MemStore::new()).await;
        testkit::uploads_conform(async || MemStore::new()).await;
    }
}
