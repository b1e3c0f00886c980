//! A blob that is not whole yet.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kraken_proto::{Bitfield, Digest, MetaInfo};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::Part;
use super::early::EarlySync;
use super::journal::{self, JournalEnd};
use super::{Shared, disk, meta};
use crate::store::{StoreError, first_missing};

/// A partial blob as this process knows it: each piece in `have` was written by this process or
/// verified by it.
#[derive(Debug)]
pub(super) struct Partial {
    digest: Digest,
    progress: Mutex<Progress>,
    /// How many states of the metainfo are in its file.
    kept: Mutex<u32>,
    writer: Arc<Semaphore>,
    early: Arc<EarlySync>,
}

/// An open metainfo is written to its file whenever it has grown by so many states. After a crash,
/// the pieces behind them cannot be verified and are fetched again.
const KEEP_EVERY: u32 = 64;

#[derive(Debug)]
struct Progress {
    meta: MetaInfo,
    have: Bitfield,
    journal: JournalEnd,
}

impl Partial {
    fn new(meta: MetaInfo, have: Bitfield, journal: JournalEnd, early: Arc<EarlySync>) -> Self {
        Self {
            digest: meta.digest(),
            kept: Mutex::new(meta.known_states()),
            progress: Mutex::new(Progress {
                meta,
                have,
                journal,
            }),
            writer: Arc::new(Semaphore::new(1)),
            early,
        }
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn meta(&self) -> MetaInfo {
        self.progress().meta.clone()
    }

    pub(super) fn have(&self) -> Bitfield {
        self.progress().have.clone()
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        self.progress().have.has(piece)
    }

    /// Waits until nobody else writes pieces of this blob.
    pub(super) async fn turn_to_write(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.writer).acquire_owned();
        turn.await.expect("never closed")
    }

    /// What has gone to the disk of it.
    pub(super) fn early(&self) -> &Arc<EarlySync> {
        &self.early
    }

    /// The first piece under the bytes `range` that is not there.
    pub(super) fn first_missing(&self, range: Range<u64>) -> Option<u32> {
        let progress = self.progress();
        first_missing(&progress.meta, &progress.have, range)
    }

    /// The blob's length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.progress().meta.length()
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // The end of the journal and the bit move in two infallible steps: no half state is seen.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Makes room for a blob of which nothing is there.
    pub(super) fn create_partial(&self, meta: MetaInfo) -> Result<Arc<Partial>, StoreError> {
        let digest = meta.digest();
        self.reserve(digest, meta.length())?;
        self.make_partial(&meta).inspect_err(|_| {
            // Without a metainfo these would be swept at the next start; better to give the room
            // back now. The error that counts is the first.
            let _ = self.remove_partial(digest);
            self.ledger().forget(digest);
        })?;
        let have = Bitfield::empty(meta.piece_count());
        let journal = JournalEnd::default();
        Ok(Arc::new(Partial::new(meta, have, journal, Arc::default())))
    }

    fn make_partial(&self, meta: &MetaInfo) -> Result<(), StoreError> {
        let digest = meta.digest();
        let path = self.layout.partial_data(digest);
        disk::create(&path)
            .and_then(|file| disk::preallocate(&file, meta.length()))
            .map_err(disk::failed("make room in", &path))?;
        let path = self.layout.partial_have(digest);
        disk::create(&path).map_err(disk::failed("create", &path))?;
        meta::write(&self.layout, &self.layout.partial_meta(digest), meta, false)
    }

    /// Finds what an earlier process left, and verifies every piece that its journal claims.
    pub(super) fn load_partial(&self, digest: Digest) -> Result<Option<Arc<Partial>>, StoreError> {
        let Some(meta) = meta::read(&self.layout.partial_meta(digest), digest)? else {
            self.remove_partial(digest)?;
            self.ledger().forget(digest);
            return Ok(None);
        };
        let path = self.layout.partial_have(digest);
        let journal = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            result => result.map_err(disk::failed("read", &path))?,
        };
        let claimed = journal::claims(&journal, meta.piece_count());
        self.adopt(meta, &claimed, Arc::default()).map(Some)
    }

    /// Goes on with another metainfo of the same blob: pieces that also verify under it stay.
    pub(super) fn reopen_partial(
        &self,
        old: &Partial,
        meta: MetaInfo,
    ) -> Result<Arc<Partial>, StoreError> {
        tracing::warn!(digest = %meta.digest(), "a partial blob is opened with another metainfo");
        let (before, have) = (old.meta(), old.have());
        let covered = |piece: &u32| {
            let range = meta.piece_range(*piece);
            range.end <= before.length() && before.pieces_of(range).all(|piece| have.has(piece))
        };
        let mut claimed = Bitfield::empty(meta.piece_count());
        for piece in (0..meta.piece_count()).filter(covered) {
            claimed.insert(piece);
        }
        self.reserve(meta.digest(), meta.length())?;
        let path = self.layout.partial_meta(meta.digest());
        meta::write(&self.layout, &path, &meta, false)?;
        // The file is the same, and so are its syncs.
        self.adopt(meta, &claimed, Arc::clone(old.early()))
    }

    /// Makes a partial blob of the files that are there and the pieces of `claimed` that verify.
    fn adopt(
        &self,
        meta: MetaInfo,
        claimed: &Bitfield,
        early: Arc<EarlySync>,
    ) -> Result<Arc<Partial>, StoreError> {
        let digest = meta.digest();
        self.files.forget(digest);
        let path = self.layout.partial_data(digest);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(disk::failed("open", &path))?;
        let mut have = Bitfield::empty(meta.piece_count());
        for piece in claimed.iter() {
            let range = meta.piece_range(piece);
            let bytes = disk::read_at(&file, range.start, meta.piece_size(piece) as usize)
                .map_err(disk::failed("read", &path))?;
            if meta.verify(piece, &bytes).is_ok() {
                have.insert(piece);
            }
        }
        disk::set_len(&file, meta.length())
            .and_then(|()| disk::preallocate(&file, meta.length()))
            .map_err(disk::failed("make room in", &path))?;
        let (journal, end) = journal::encode(&have);
        let path = self.layout.partial_have(digest);
        disk::write_whole(&self.layout.temp(), &path, &journal, false)?;
        let (lost, kept) = (claimed.count() - have.count(), have.count());
        tracing::debug!(%digest, kept, lost, "partial blob found and verified");
        Ok(Arc::new(Partial::new(meta, have, end, early)))
    }

    /// More of the blob's metainfo is known; what is here stays as it is.
    pub(super) fn continue_partial(
        &self,
        partial: &Partial,
        meta: MetaInfo,
    ) -> Result<Bitfield, StoreError> {
        let (known, whole) = (meta.known_states(), meta.is_whole());
        let mut kept = partial.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if known > *kept && (whole || known - *kept >= KEEP_EVERY) {
            let path = self.layout.partial_meta(partial.digest);
            meta::write(&self.layout, &path, &meta, false)?;
            *kept = known;
        }
        let mut progress = partial.progress();
        // Another caller may have been faster, and know more.
        if meta.continues(&progress.meta) {
            progress.meta = meta;
        }
        Ok(progress.have.clone())
    }

    /// Writes a piece of the right length, and marks it. Gives the file that it is in.
    pub(super) fn write_piece(
        &self,
        partial: &Partial,
        piece: u32,
        data: &[u8],
    ) -> Result<Arc<File>, StoreError> {
        let digest = partial.digest;
        let file = self.partial_file(digest, Part::Data)?;
        let journal = self.partial_file(digest, Part::Journal)?;
        let offset = partial.progress().meta.piece_range(piece).start;
        disk::write_at(&file, data, offset)
            .map_err(disk::failed("write", &self.layout.partial_data(digest)))?;
        let mut progress = partial.progress();
        if !progress.have.has(piece) {
            progress
                .journal
                .append(&journal, piece)
                .map_err(disk::failed("write", &self.layout.partial_have(digest)))?;
            progress.have.insert(piece);
        }
        Ok(file)
    }

    pub(super) fn partial_file(&self, digest: Digest, part: Part) -> Result<Arc<File>, StoreError> {
        self.files.get(digest, part, || {
            let path = match part {
                Part::Data => self.layout.partial_data(digest),
                Part::Journal => self.layout.partial_have(digest),
            };
            File::options()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(disk::failed("open", &path))
        })
    }

    /// Removes the files of a partial blob; the metainfo first, as without it the rest is nothing.
    pub(super) fn remove_partial(&self, digest: Digest) -> Result<(), StoreError> {
        disk::remove(&self.layout.partial_meta(digest))?;
        disk::remove(&self.layout.partial_have(digest))?;
        disk::remove(&self.layout.partial_data(digest))?;
        Ok(())
    }
}
