//! The store on disk.
//!
//! Always true:
//! - a blob is sealed if and only if its data lies under `sealed/`, and then its bytes are synced;
//! - a piece counts as there only when this process has written or verified it;
//! - one process has the store's directory, by a lock that ends with it.
//!
//! A crash loses nothing that a call has promised: see [`PieceStore`] and [`UploadStore`](crate::UploadStore). The
//! pieces of a partial blob are synced only when it is sealed, and verified again after a crash.
//!
//! All calls to the system that may wait run on the caller's tokio blocking pool, a bounded number at
//! a time. Each holds the locks it needs until it ends, also when the future that began it is
//! dropped. Locks are taken in this order: an upload's, a blob's slot, its turn to write, a permit of
//! the pool. What lies in the page cache is read on the spot, in steps that cannot wait, under the
//! same slot.

mod cache;
mod disk;
mod early;
mod journal;
mod layout;
mod meta;
mod partial;
mod pins;
mod pool;
mod read;
mod room;
mod scrub;
mod seal;
#[cfg(feature = "testkit")]
pub(crate) mod tape;
#[cfg(test)]
mod tests;
mod trust;
#[cfg(test)]
mod trust_tests;
mod upload;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;

use bytes::Bytes;
use kraken_proto::cache::ledger::{Ceiling, Kept, Ledger, Order};
use kraken_proto::{Bitfield, Digest, MetaInfo};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, Semaphore};
use tokio::task::spawn_blocking;

use self::cache::{Files, Part, Slots, State};
use self::layout::Layout;
use self::partial::Partial;
use self::pool::Pool;
use self::read::Place;
use self::trust::{Damaged, Sealed};
use self::upload::Uploads;
use crate::store::{BlobStatus, Goal, Need, PieceStore, StoreError, Usage, Verdict, check_bounds};

/// Keeps blobs in a directory. Clones share one store; it is closed when the last of them and
/// every call under way are gone.
///
/// Needs a tokio runtime, and a file system on which a rename is atomic.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use kraken_storage::FsStore;
///
/// let store = FsStore::open("/var/lib/kraken/blobs").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FsStore {
    shared: Arc<Shared>,
}

/// The choices of an [`FsStore`].
///
/// ```
/// use kraken_proto::cache::ledger::Ceiling;
/// use kraken_storage::FsOptions;
///
/// let mut options = FsOptions::default();
/// options.ceiling = Some(Ceiling::of(50 << 30));
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct FsOptions {
    /// How much all blobs and uploads together may take; no ceiling when it is `None`.
    pub ceiling: Option<Ceiling>,
    /// What goes first when others need room.
    pub order: Order,
}

struct Shared {
    layout: Layout,
    slots: Slots,
    files: Files,
    pool: Pool,
    uploads: Uploads,
    permits: Arc<Semaphore>,
    /// Whose turn it is to sync before a blob's end.
    early: Arc<Semaphore>,
    ledger: Mutex<Ledger>,
    damaged: Damaged,
    /// Held while a pin's file and the ledger change.
    pins: Mutex<()>,
    _lock: File,
}

impl FsStore {
    /// Opens the store in the directory `path`, which is made when it is missing.
    ///
    /// Removes temporary files of an earlier crash; blobs and uploads are looked at when they are
    /// first asked for.
    ///
    /// # Errors
    /// Another [`FsStore`] has the directory open, in this process or another, or the directory
    /// cannot be written.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(path, FsOptions::default()).await
    }

    /// As [`FsStore::open`], with a ceiling on the bytes of all blobs and uploads together. What
    /// would pass it is refused with [`StoreError::Full`]; whoever owns the store then asks
    /// [`PieceStore::victims`] what to remove. What is there may take more at first.
    ///
    /// # Errors
    /// As of [`FsStore::open`].
    pub async fn open_with(
        path: impl Into<PathBuf>,
        options: FsOptions,
    ) -> Result<Self, StoreError> {
        let path = path.into();
        let shared = flatten(spawn_blocking(move || Shared::open(path, options)).await)?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The blobs that are pinned, whether or not they are here.
    pub fn pinned(&self) -> Vec<Digest> {
        self.shared.ledger().pinned().collect()
    }

    /// Reads, and says by what the bytes were proven when the blob is sealed.
    async fn read_once(
        &self,
        digest: Digest,
        offset: u64,
        len: u32,
    ) -> Result<(Result<Bytes, StoreError>, Option<Arc<Sealed>>), StoreError> {
        let slot = self.loaded(digest).await?;
        let (length, sealed) = match &*slot {
            State::Unknown | State::Absent => return Err(StoreError::Absent(digest)),
            State::Sealed(sealed) => (sealed.meta.length(), Some(Arc::clone(sealed))),
            State::Partial(partial) => {
                let range = offset..offset.saturating_add(len.into());
                match partial.first_missing(range) {
                    Some(piece) => return Err(StoreError::Missing { digest, piece }),
                    None => (partial.length(), None),
                }
            }
        };
        self.shared.ledger().touch(digest, room::now_ms());
        let range = offset..offset.saturating_add(len.into()).min(length);
        if range.is_empty() {
            return Ok((Ok(Bytes::new()), sealed));
        }
        let place = Place {
            digest,
            slot,
            length,
            sealed: sealed.clone(),
        };
        Ok((self.read_range(place, range).await, sealed))
    }

    /// Runs `work` where waiting for the disk harms nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permits = Arc::clone(&self.shared.permits);
        let permit = permits.acquire_owned().await.expect("never closed");
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let _permit = permit;
            work(&shared)
        };
        flatten(spawn_blocking(work).await)
    }

    /// What is known of the blob, for reading; the disk is asked first if need be.
    async fn loaded(&self, digest: Digest) -> Result<OwnedRwLockReadGuard<State>, StoreError> {
        let slot = self.shared.slots.get(digest).read_owned().await;
        if !matches!(*slot, State::Unknown) {
            return Ok(slot);
        }
        drop(slot);
        self.loaded_mut(digest)
            .await
            .map(OwnedRwLockWriteGuard::downgrade)
    }

    /// The same, to change it.
    async fn loaded_mut(&self, digest: Digest) -> Result<OwnedRwLockWriteGuard<State>, StoreError> {
        let mut slot = self.shared.slots.get(digest).write_owned().await;
        if !matches!(*slot, State::Unknown) {
            return Ok(slot);
        }
        self.blocking(move |shared| {
            *slot = shared.load(digest)?;
            Ok(slot)
        })
        .await
    }
}

impl PieceStore for FsStore {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        Ok(match &*self.loaded(digest).await? {
            State::Unknown | State::Absent => BlobStatus::Absent,
            State::Partial(partial) => BlobStatus::Partial {
                meta: partial.meta(),
                have: partial.have(),
            },
            State::Sealed(sealed) => BlobStatus::Sealed {
                meta: sealed.meta.clone(),
            },
        })
    }

    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        let slot = self.loaded(meta.digest()).await?;
        if let Some(have) = held(&slot, &meta) {
            return Ok(have);
        }
        if let State::Partial(partial) = &*slot
            && meta.continues(&partial.meta())
            && !partial.early().has_failed()
        {
            let partial = Arc::clone(partial);
            return self
                .blocking(move |shared| {
                    let _slot = slot;
                    shared.continue_partial(&partial, meta)
                })
                .await;
        }
        drop(slot);
        let mut slot = self.loaded_mut(meta.digest()).await?;
        if let Some(have) = held(&slot, &meta) {
            return Ok(have);
        }
        self.blocking(move |shared| {
            let partial = match &*slot {
                // Nobody knows what the disk has of it.
                State::Partial(old) if old.early().has_failed() => {
                    shared.files.forget(old.digest());
                    shared.create_partial(meta)?
                }
                State::Partial(old) => {
                    let reopened = shared.reopen_partial(old, meta);
                    // Full changes nothing; what else failed may have changed some files.
                    if matches!(&reopened, Err(error) if !matches!(error, StoreError::Full)) {
                        *slot = State::Unknown;
                    }
                    reopened?
                }
                _ => shared.create_partial(meta)?,
            };
            let have = partial.have();
            *slot = State::Partial(partial);
            Ok(have)
        })
        .await
    }

    async fn write(&self, digest: Digest, piece: u32, data: Bytes) -> Result<(), StoreError> {
        let slot = self.loaded(digest).await?;
        let partial = match &*slot {
            State::Unknown | State::Absent => return Err(StoreError::Absent(digest)),
            State::Sealed(sealed) => return check_bounds(&sealed.meta, piece, data.len()),
            State::Partial(partial) => Arc::clone(partial),
        };
        check_bounds(&partial.meta(), piece, data.len())?;
        if partial.has(piece) {
            return Ok(());
        }
        // One at a time: the kernel lets no two writers into one file, and those who wait there burn
        // processor time.
        let turn = partial.turn_to_write().await;
        let (early, len) = (Arc::clone(partial.early()), data.len());
        let file = self
            .blocking(move |shared| {
                let (_slot, _turn) = (slot, turn);
                shared.write_piece(&partial, piece, &data)
            })
            .await?;
        if early.wrote(len) {
            self.sync_early(&early, file);
        }
        Ok(())
    }

    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        let (read, sealed) = self.read_once(digest, offset, len).await?;
        match (read, sealed) {
            // It looks wrong. When it is not, the next read does not stumble over it.
            (Err(StoreError::Damaged { .. }), Some(sealed)) if self.examine(&sealed).await? => {
                self.read_once(digest, offset, len).await?.0
            }
            (read, _) => read,
        }
    }

    async fn file(&self, digest: Digest) -> Result<Option<Arc<File>>, StoreError> {
        loop {
            let slot = self.loaded(digest).await?;
            let State::Sealed(sealed) = &*slot else {
                return Ok(None);
            };
            let sealed = Arc::clone(sealed);
            self.shared.ledger().touch(digest, room::now_ms());
            let file = match self.shared.files.opened(digest, Part::Data) {
                Some(file) => {
                    drop(slot);
                    file
                }
                None => {
                    let open = move |shared: &Shared| {
                        let _slot = slot;
                        shared.sealed_file(digest)
                    };
                    self.blocking(open).await?
                }
            };
            if !sealed.is_touched(&file) {
                return Ok(Some(file));
            }
            if !self.examine(&sealed).await? {
                return Ok(None);
            }
        }
    }

    async fn damaged(&self) -> Digest {
        self.shared.damaged.next().await
    }

    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        loop {
            // Syncing takes long and changes nothing, so others may read meanwhile.
            let slot = self.loaded(digest).await?;
            let synced = match &*slot {
                State::Unknown | State::Absent => return Err(StoreError::Absent(digest)),
                State::Sealed(_) => {
                    return self
                        .blocking(move |shared| {
                            let _slot = slot;
                            shared.sync_sealed(digest)
                        })
                        .await;
                }
                State::Partial(partial) => Arc::clone(partial),
            };
            if let Some(piece) = synced.have().missing().next() {
                return Err(StoreError::Missing { digest, piece });
            }
            if !synced.meta().is_whole() {
                return Err(StoreError::Open(digest));
            }
            let whole = Arc::clone(&synced);
            self.blocking(move |shared| {
                let _slot = slot;
                shared.sync_partial(&whole)
            })
            .await?;

            let mut slot = self.loaded_mut(digest).await?;
            // Sealed, removed or begun anew by others meanwhile: look again.
            if !matches!(&*slot, State::Partial(now) if Arc::ptr_eq(now, &synced)) {
                continue;
            }
            return self
                .blocking(move |shared| shared.seal(&synced, &mut slot))
                .await;
        }
    }

    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        let mut slot = self.shared.slots.get(digest).write_owned().await;
        self.blocking(move |shared| {
            *slot = State::Unknown;
            shared.remove_blob(digest)?;
            *slot = State::Absent;
            Ok(())
        })
        .await
    }

    async fn discard(&self, digest: Digest) -> Result<(), StoreError> {
        let mut slot = self.loaded_mut(digest).await?;
        if !matches!(*slot, State::Partial(_)) {
            return Ok(());
        }
        self.blocking(move |shared| {
            *slot = State::Unknown;
            shared.files.forget(digest);
            shared.remove_partial(digest)?;
            shared.ledger().forget(digest);
            *slot = State::Absent;
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        self.blocking(|shared| shared.layout.sealed()).await
    }

    async fn victims(
        &self,
        need: Need<'_>,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        self.shared.victims(need.bytes, spared)
    }

    async fn surplus(
        &self,
        goal: Goal,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        Ok(self.shared.surplus(goal, spared))
    }

    fn usage(&self) -> Option<Usage> {
        let ledger = self.shared.ledger();
        Some(Usage {
            bytes: ledger.used(),
            blobs: ledger.len() as u64,
            ceiling: ledger.ceiling(),
        })
    }

    fn page(&self, after: Option<Digest>, max: usize) -> Vec<Kept> {
        self.shared.ledger().page(after, max)
    }

    fn kept(&self, digest: Digest) -> Option<Kept> {
        self.shared.ledger().get(digest)
    }

    fn touch(&self, digest: Digest) {
        self.shared.ledger().touch(digest, room::now_ms());
    }

    async fn note_uses(&self) -> Result<(), StoreError> {
        self.blocking(Shared::note_uses).await
    }

    async fn pin(&self, digest: Digest, is_pinned: bool) -> Result<(), StoreError> {
        self.blocking(move |shared| shared.pin(digest, is_pinned))
            .await
    }

    async fn verify(&self, digest: Digest) -> Result<Verdict, StoreError> {
        self.verify_at(digest, None).await
    }

    async fn path(&self, digest: Digest) -> Result<Option<PathBuf>, StoreError> {
        let slot = self.loaded(digest).await?;
        let is_sealed = matches!(&*slot, State::Sealed(_));
        Ok(is_sealed.then(|| self.shared.layout.sealed_data(digest)))
    }
}

impl fmt::Debug for FsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FsStore")
            .field("layout", &self.shared.layout)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn open(path: PathBuf, options: FsOptions) -> Result<Self, StoreError> {
        let layout = Layout::create(path)?;
        let lock = layout.lock()?;
        layout.sweep()?;
        let ledger = Mutex::new(room::count(&layout, options.ceiling, options.order)?);
        let cores = available_parallelism().map_or(1, usize::from);
        Ok(Self {
            layout,
            slots: Slots::default(),
            files: Files::default(),
            pool: Pool::default(),
            uploads: Uploads::default(),
            // Half of them may wait for the disk while the others hash and copy.
            permits: Arc::new(Semaphore::new((2 * cores).max(4))),
            early: Arc::new(Semaphore::new(1)),
            ledger,
            damaged: Damaged::default(),
            pins: Mutex::default(),
            _lock: lock,
        })
    }

    fn seal(&self, partial: &Partial, slot: &mut State) -> Result<(), StoreError> {
        let meta = partial.meta();
        let data = self.layout.partial_data(meta.digest());
        let sealed = self.publish(&data, &meta).inspect_err(|_| {
            // After the rename the blob is sealed, but perhaps not durably: the next call looks.
            if !data.exists() {
                *slot = State::Unknown;
            }
        })?;
        *slot = State::Sealed(Arc::new(sealed));
        // It is opened anew, as a sealed blob's.
        self.files.forget(partial.digest());
        Ok(())
    }
}

/// The pieces that are there, unless the blob has to be made or made anew.
fn held(state: &State, meta: &MetaInfo) -> Option<Bitfield> {
    match state {
        State::Sealed(sealed) => Some(Bitfield::full(sealed.meta.piece_count())),
        // What is known here may be more than the caller knows.
        State::Partial(partial) if is_continued(partial, meta) => Some(partial.have()),
        _ => None,
    }
}

fn is_continued(partial: &Partial, meta: &MetaInfo) -> bool {
    partial.meta().continues(meta) && !partial.early().has_failed()
}

fn flatten<T>(
    joined: Result<Result<T, StoreError>, tokio::task::JoinError>,
) -> Result<T, StoreError> {
    match joined.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Err(StoreError::Io {
            doing: "finish, as the runtime is shutting down".to_string(),
            source: io::ErrorKind::Interrupted.into(),
        }),
    }
}
