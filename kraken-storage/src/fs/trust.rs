//! Whether a sealed blob's bytes are still those that were sealed.
//!
//! Disks rot, and files are written over by mistake. Hashing everything at every read would cost
//! more than reading it, so two things are looked at that cost nothing:
//!
//! - the time of the file's last change, which is kept with the metainfo. When it is another, the
//!   whole file is hashed before another byte of it is given.
//! - whether bytes come from the page cache or from the disk. What comes from the disk is proven
//!   piece by piece, as it comes; what is in the cache was proven then, as nothing is read ahead.
//!
//! A blob that turns out damaged is set aside and is absent from then on.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use kraken_proto::{Digest, MetaInfo};

use super::cache::State;
use super::{FsStore, Shared, disk, meta};
use crate::store::StoreError;

/// When a file was last changed, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Nanoseconds since 1970.
    changed: u64,
    length: u64,
}

impl Stamp {
    pub(super) const LEN: usize = 16;

    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from(&metadata))
    }

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.changed.to_be_bytes());
        bytes[8..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let number = |at: usize| {
            let number = bytes[at..at + 8].try_into().expect("eight bytes");
            u64::from_be_bytes(number)
        };
        Self {
            changed: number(0),
            length: number(8),
        }
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let changed = metadata.modified().ok();
        let changed = changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Self {
            changed: changed.map_or(0, |since| {
                u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
            }),
            length: metadata.len(),
        }
    }
}

/// A sealed blob, and how its file looked when its bytes were right.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) meta: MetaInfo,
    stamp: Stamp,
    /// The piece that was proven last, and when. Where the page cache cannot be asked, every read
    /// would prove its piece anew.
    proven: Mutex<Option<(u32, Instant)>>,
}

/// How long a piece that was read from the disk counts as proven: as long as it takes to read it
/// in small steps, and short beside the time in which bits rot.
const PROVEN: Duration = Duration::from_secs(10);

impl Sealed {
    pub(super) fn new(meta: MetaInfo, stamp: Stamp) -> Self {
        Self {
            meta,
            stamp,
            proven: Mutex::new(None),
        }
    }

    /// Whether the file is another than the one that was sealed.
    pub(super) fn is_touched(&self, file: &File) -> bool {
        Stamp::of(file).ok() != Some(self.stamp)
    }

    pub(super) fn was_proven(&self, piece: u32) -> bool {
        let proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*proven, Some((last, at)) if last == piece && at.elapsed() < PROVEN)
    }

    pub(super) fn proved(&self, piece: u32) {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        *proven = Some((piece, Instant::now()));
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            digest: self.meta.digest(),
            what: what.into(),
        }
    }
}

impl FsStore {
    /// Hashes a blob that does not look right. Says whether it is: then it is trusted again;
    /// otherwise it is set aside.
    pub(super) async fn examine(&self, suspect: &Arc<Sealed>) -> Result<bool, StoreError> {
        let digest = suspect.meta.digest();
        let mut slot = self.loaded_mut(digest).await?;
        match &*slot {
            State::Sealed(sealed) if Arc::ptr_eq(sealed, suspect) => {}
            // Another who read it was faster.
            State::Sealed(_) => return Ok(true),
            _ => return Ok(false),
        }
        self.blocking(move |shared| {
            *slot = State::Unknown;
            shared.files.forget(digest);
            *slot = match shared.examined(digest)? {
                Some(sealed) => State::Sealed(sealed.into()),
                None => State::Absent,
            };
            Ok(matches!(*slot, State::Sealed(_)))
        })
        .await
    }
}

impl Shared {
    /// Hashes the file of a sealed blob; sets it aside when it is not the blob.
    pub(super) fn examined(&self, digest: Digest) -> Result<Option<Sealed>, StoreError> {
        tracing::warn!(%digest, "a sealed blob has changed on disk and is hashed");
        let data = self.layout.sealed_data(digest);
        let Some(before) = stamp(&data)? else {
            return Ok(None);
        };
        // Whoever writes into the file may still be at it: the older stamp is hashed again then.
        let found = match super::seal::hash(&data) {
            Ok(hasher) => Some(hasher.finish()),
            // What the disk cannot give is as lost as what it gives wrong.
            Err(error) if disk::is_rotten(&error) => None,
            Err(error) => return Err(error),
        };
        let Some(found) = found.filter(|found| found.digest() == digest) else {
            self.set_aside(digest)?;
            return Ok(None);
        };
        let path = self.layout.sealed_meta(digest);
        meta::write_sealed(&self.layout, &path, &found, before)?;
        Ok(Some(Sealed::new(found, before)))
    }

    fn set_aside(&self, digest: Digest) -> Result<(), StoreError> {
        let (from, to) = (self.layout.sealed_data(digest), self.layout.damaged(digest));
        tracing::error!(%digest, to = %to.display(), "a sealed blob is damaged and is set aside");
        self.files.forget(digest);
        // Somebody may be sending the file as it lies in the page cache: what was just read of it,
        // and is wrong, is not to be there.
        if let Ok(file) = File::open(&from) {
            disk::wont_need(&file, 0, disk::length(&from)?.unwrap_or(0));
        }
        let replaced = disk::length(&to)?.unwrap_or(0);
        disk::rename(&from, &to).map_err(disk::failed("set aside", &from))?;
        self.damaged.tell(digest);
        let kept = disk::length(&to)?.unwrap_or(0);
        {
            let mut ledger = self.ledger();
            ledger.forget(digest);
            ledger.release(replaced);
            ledger.hold(kept);
        }
        disk::remove(&self.layout.sealed_meta(digest))?;
        self.forget_oldest_damaged()
    }

    /// Keeps some damaged blobs for a person to look at, and not all that a failing disk makes.
    fn forget_oldest_damaged(&self) -> Result<(), StoreError> {
        const KEPT: usize = 4;
        let dir = self.layout.damaged_dir();
        let mut files = Vec::new();
        for name in disk::names(&dir)? {
            let path = dir.join(name);
            if let Ok(metadata) = fs::metadata(&path) {
                // The time of the rename, which is none of the bytes'.
                let since = (metadata.ctime(), metadata.ctime_nsec());
                files.push((since, metadata.len(), path));
            }
        }
        files.sort_unstable();
        let too_many = files.len().saturating_sub(KEPT);
        for (_, bytes, path) in files.into_iter().take(too_many) {
            if disk::remove(&path)? {
                self.ledger().release(bytes);
            }
        }
        Ok(())
    }
}

/// How a file looks; none when it is not there.
pub(super) fn stamp(path: &std::path::Path) -> Result<Option<Stamp>, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Stamp::from(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk::failed("look at", path)(error)),
    }
}

/// Blobs that turned out damaged, until somebody asks for them.
#[derive(Debug, Default)]
pub(super) struct Damaged {
    found: Mutex<Vec<Digest>>,
    told: tokio::sync::Notify,
}

impl Damaged {
    fn tell(&self, digest: Digest) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.contains(&digest) {
            found.push(digest);
        }
        drop(found);
        self.told.notify_one();
    }

    /// The next one.
    pub(super) async fn next(&self) -> Digest {
        loop {
            let next = {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                found.pop()
            };
            if let Some(digest) = next {
                return digest;
            }
            self.told.notified().await;
        }
    }
}
