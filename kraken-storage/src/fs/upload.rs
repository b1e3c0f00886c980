//! Uploads: files that only grow, hashed as they do.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kraken_proto::{ChainHasher, Digest, MetaInfo};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use uuid::Uuid;

use super::cache::State;
use super::early::EarlySync;
use super::layout::upload_id;
use super::{FsStore, Shared, disk, room, seal};
use crate::store::{StoreError, UploadStore};

/// The uploads in use. An upload's mutex is held over every operation on it.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<Uuid, Arc<AsyncMutex<Upload>>>>);

#[derive(Debug)]
enum Upload {
    /// The file is there, its hash is not known: after a restart or a failed write. Its syncs are
    /// those of the same file.
    Unread(Arc<EarlySync>),
    Ready(Ready),
    Gone,
}

#[derive(Debug, Default)]
struct Ready {
    /// Of exactly the bytes in the file.
    hasher: ChainHasher,
    early: Arc<EarlySync>,
}

type Guard = OwnedMutexGuard<Upload>;

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<AsyncMutex<Upload>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, id: Uuid) -> Arc<AsyncMutex<Upload>> {
        let unread = || Arc::new(AsyncMutex::new(Upload::Unread(Arc::default())));
        Arc::clone(self.lock().entry(id).or_insert_with(unread))
    }

    fn forget(&self, id: Uuid) {
        self.lock().remove(&id);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

impl UploadStore for FsStore {
    async fn upload_start(&self) -> Result<String, StoreError> {
        self.blocking(|shared| {
            let id = Uuid::now_v7();
            let path = shared.layout.upload(id);
            disk::create_new(&path).map_err(disk::failed("create", &path))?;
            let ready = Upload::Ready(Ready::default());
            let mut uploads = shared.uploads.lock();
            uploads.insert(id, Arc::new(AsyncMutex::new(ready)));
            Ok(id.hyphenated().to_string())
        })
        .await
    }

    async fn upload_len(&self, upload: &str) -> Result<u64, StoreError> {
        let (_, guard) = self.upload(upload).await?;
        Ok(guard.hasher().length())
    }

    async fn upload_append(
        &self,
        upload: &str,
        offset: u64,
        data: Bytes,
    ) -> Result<u64, StoreError> {
        let (id, mut guard) = self.upload(upload).await?;
        let len = guard.hasher().length();
        if offset != len {
            return Err(StoreError::UploadOffset { len, offset });
        }
        let added = data.len();
        let (length, early, file) = self
            .blocking(move |shared| shared.append(id, &mut guard, &data))
            .await?;
        if early.wrote(added) {
            self.sync_early(&early, file);
        }
        Ok(length)
    }

    async fn upload_commit(&self, upload: &str, expected: Digest) -> Result<MetaInfo, StoreError> {
        let (id, guard) = self.upload(upload).await?;
        let guard = self
            .blocking(move |shared| shared.check(id, guard, expected))
            .await?;
        // Locks are taken in this order only: the upload's, then the blob's.
        let mut slot = self.loaded_mut(expected).await?;
        self.blocking(move |shared| shared.commit(id, guard, &mut slot))
            .await
    }

    async fn upload_abort(&self, upload: &str) -> Result<(), StoreError> {
        match self.upload(upload).await {
            Ok((id, mut guard)) => {
                self.blocking(move |shared| shared.drop_upload(id, &mut guard))
                    .await
            }
            Err(StoreError::UploadUnknown(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl FsStore {
    /// Removes the uploads to which nothing was added for longer than `older_than`, and says how
    /// many. An upload that is in use at this moment stays.
    ///
    /// # Errors
    /// The store cannot be written; some uploads may be gone then.
    pub async fn uploads_expire(&self, older_than: Duration) -> Result<usize, StoreError> {
        self.blocking(move |shared| {
            let mut gone = 0;
            for id in shared.layout.uploads()? {
                if !is_older(&shared.layout.upload(id), older_than)? {
                    continue;
                }
                if let Ok(mut guard) = shared.uploads.entry(id).try_lock_owned() {
                    shared.drop_upload(id, &mut guard)?;
                    gone += 1;
                }
            }
            Ok(gone)
        })
        .await
    }

    /// The upload of that name, locked and with its hash known.
    async fn upload(&self, name: &str) -> Result<(Uuid, Guard), StoreError> {
        let unknown = || StoreError::UploadUnknown(name.to_string());
        let id = upload_id(name).ok_or_else(unknown)?;
        let known = self.shared.uploads.lock().get(&id).cloned();
        let entry = match known {
            Some(entry) => entry,
            // Names that clients make up must not fill the map.
            None => self
                .blocking(move |shared| {
                    let there = disk::length(&shared.layout.upload(id))?.is_some();
                    Ok(there.then(|| shared.uploads.entry(id)))
                })
                .await?
                .ok_or_else(unknown)?,
        };
        let mut guard = entry.lock_owned().await;
        if matches!(*guard, Upload::Unread(_)) {
            guard = self
                .blocking(move |shared| shared.load_upload(id, guard))
                .await?;
        }
        match *guard {
            Upload::Gone => Err(unknown()),
            _ => Ok((id, guard)),
        }
    }
}

impl Upload {
    fn hasher(&self) -> &ChainHasher {
        &self.ready().hasher
    }

    fn ready(&self) -> &Ready {
        match self {
            Self::Ready(ready) => ready,
            Self::Unread(_) | Self::Gone => {
                unreachable!("FsStore::upload hands out ready ones only")
            }
        }
    }
}

impl Shared {
    fn load_upload(&self, id: Uuid, mut guard: Guard) -> Result<Guard, StoreError> {
        let path = self.layout.upload(id);
        if disk::length(&path)?.is_none() {
            *guard = Upload::Gone;
            self.uploads.forget(id);
        } else if let Upload::Unread(early) = &*guard {
            let (early, hasher) = (Arc::clone(early), seal::hash(&path)?);
            *guard = Upload::Ready(Ready { hasher, early });
        }
        Ok(guard)
    }

    /// Adds bytes, for which there must be room.
    fn append(
        &self,
        id: Uuid,
        upload: &mut Upload,
        data: &[u8],
    ) -> Result<(u64, Arc<EarlySync>, Arc<File>), StoreError> {
        if upload.ready().early.has_failed() {
            self.drop_upload(id, upload)?;
            let lost = std::io::Error::other("what came before did not reach the disk");
            return Err(disk::failed("go on with", &self.layout.upload(id))(lost));
        }
        let (before, bytes) = (upload.hasher().length(), data.len() as u64);
        self.reserve_upload(bytes)?;
        let written = self.write_behind(id, upload, data);
        written.inspect_err(|_| {
            // What could not be cut off again stays, and counts.
            let length = disk::length(&self.layout.upload(id)).ok().flatten();
            let stays = length.map_or(0, |length| length.saturating_sub(before));
            self.ledger().release(bytes - stays.min(bytes));
        })
    }

    /// Hashes and writes step by step, so that the bytes are read from memory once.
    fn write_behind(
        &self,
        id: Uuid,
        upload: &mut Upload,
        data: &[u8],
    ) -> Result<(u64, Arc<EarlySync>, Arc<File>), StoreError> {
        let early = Arc::clone(&upload.ready().early);
        let unread = Upload::Unread(Arc::clone(&early));
        let Upload::Ready(Ready { mut hasher, .. }) = std::mem::replace(upload, unread) else {
            unreachable!("FsStore::upload hands out ready ones only")
        };
        let before = hasher.length();
        let path = self.layout.upload(id);
        // Opened for each append: an idle upload holds no file open, however many there are.
        let open = File::options().write(true).open(&path);
        let file = open.map_err(disk::failed("open", &path))?;
        for step in data.chunks(disk::STEP) {
            if let Err(error) = disk::write_at(&file, step, hasher.length()) {
                // The upload is Unread now: its hash is made anew from what the file has then.
                let _ = disk::set_len(&file, before);
                return Err(disk::failed("write", &path)(error));
            }
            hasher.update(step);
        }
        let (length, written) = (hasher.length(), Arc::clone(&early));
        *upload = Upload::Ready(Ready { hasher, early });
        Ok((length, written, Arc::new(file)))
    }

    fn upload_file(&self, id: Uuid) -> Result<File, StoreError> {
        let path = self.layout.upload(id);
        File::open(&path).map_err(disk::failed("open", &path))
    }

    /// Checks the digest and makes the bytes durable, before the blob is locked.
    fn check(&self, id: Uuid, mut guard: Guard, expected: Digest) -> Result<Guard, StoreError> {
        let found = guard.hasher().clone().finish().digest();
        if found != expected {
            self.drop_upload(id, &mut guard)?;
            return Err(StoreError::DigestMismatch { expected, found });
        }
        let file = self.upload_file(id)?;
        let early = Arc::clone(&guard.ready().early);
        if let Err(error) = early.sync(|| disk::sync_data(&file)) {
            // What the disk has of it nobody knows: a second attempt must not find it good.
            self.drop_upload(id, &mut guard)?;
            return Err(disk::failed("sync", &self.layout.upload(id))(error));
        }
        Ok(guard)
    }

    fn commit(&self, id: Uuid, mut guard: Guard, slot: &mut State) -> Result<MetaInfo, StoreError> {
        if let State::Sealed(sealed) = slot {
            let meta = sealed.meta.clone();
            self.sync_sealed(meta.digest())?;
            self.drop_upload(id, &mut guard)?;
            return Ok(meta);
        }
        let meta = guard.hasher().clone().finish();
        let path = self.layout.upload(id);
        // What the files are is open until all of it has worked.
        *slot = State::Unknown;
        self.files.forget(meta.digest());
        let early = Arc::clone(&guard.ready().early);
        let published = self.publish(&path, &meta);
        // Also a failure may come behind the rename.
        if !path.exists() {
            let mut ledger = self.ledger();
            ledger.release(meta.length());
            ledger.keep(meta.digest(), meta.length(), room::now_ms());
        }
        let sealed = match published {
            Ok(sealed) => sealed,
            Err(error) => {
                *guard = Upload::Unread(early);
                return Err(error);
            }
        };
        *slot = State::Sealed(Arc::new(sealed));
        *guard = Upload::Gone;
        self.uploads.forget(id);
        Ok(meta)
    }

    fn drop_upload(&self, id: Uuid, upload: &mut Upload) -> Result<(), StoreError> {
        let path = self.layout.upload(id);
        let bytes = disk::length(&path)?.unwrap_or(0);
        disk::remove(&path)?;
        self.ledger().release(bytes);
        *upload = Upload::Gone;
        self.uploads.forget(id);
        Ok(())
    }
}

fn is_older(path: &Path, than: Duration) -> Result<bool, StoreError> {
    let changed = match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(changed) => changed,
        // Committed or aborted meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(disk::failed("look at", path)(error)),
    };
    // A clock that was set back makes no upload old.
    Ok(SystemTime::now()
        .duration_since(changed)
        .is_ok_and(|age| age >= than))
}
