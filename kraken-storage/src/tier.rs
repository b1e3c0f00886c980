//! Memory in front of a slower store: pieces are there as soon as they are in memory, and reach the
//! store behind a little later.
//!
//! For hosts whose disks are slower than their networks: what comes is passed on and read from memory,
//! in bursts as large as the memory. Nothing else changes: a blob is sealed when the store behind has
//! all of it, a crash loses pieces of partial blobs only, and room is counted and made there.
//!
//! Always true: at most so many bytes are held as the tier was made with; a piece that is larger goes
//! straight to the store behind. A piece that the store has not taken yet stays; when only such are
//! left, a writer waits for the store as if there were no tier.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kraken_proto::cache::ledger::Kept;
use kraken_proto::{Bitfield, Digest, MetaInfo};
use tokio::sync::Notify;

use crate::store::{BlobStatus, Goal, Need, PieceStore, StoreError, Usage, Verdict};

/// A store with memory in front of it. Clones share both.
#[derive(Debug)]
pub struct MemoryTier<S> {
    store: Arc<S>,
    tier: Arc<Tier>,
}

impl<S> Clone for MemoryTier<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            tier: Arc::clone(&self.tier),
        }
    }
}

#[derive(Debug)]
struct Tier {
    held: Mutex<Held>,
    /// A piece has reached the store behind, or could not.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Held {
    most: u64,
    bytes: u64,
    blobs: HashMap<Digest, Blob>,
    /// The pieces that may go, by their last use.
    order: BTreeMap<u64, (Digest, u32)>,
    uses: u64,
}

#[derive(Debug)]
struct Blob {
    meta: MetaInfo,
    pieces: HashMap<u32, Piece>,
    is_sealed: bool,
    /// Why a piece did not reach the store behind.
    failed: Option<StoreError>,
}

#[derive(Debug)]
struct Piece {
    data: Bytes,
    /// Its place in the order; `None` while the store behind does not have it.
    used: Option<u64>,
}

impl<S> MemoryTier<S> {
    /// A tier of up to `bytes` in front of a store.
    pub fn new(store: S, bytes: u64) -> Self {
        let held = Held {
            most: bytes,
            ..Held::default()
        };
        Self {
            store: Arc::new(store),
            tier: Arc::new(Tier {
                held: Mutex::new(held),
                settled: Notify::new(),
            }),
        }
    }

    /// The store behind.
    pub fn behind(&self) -> &S {
        &self.store
    }

    /// What is held, in bytes.
    pub fn held(&self) -> u64 {
        self.tier.held().bytes
    }
}

impl Tier {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Each change is made whole before the lock goes.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the store behind has every piece of the blob that is held.
    async fn settled(&self, digest: Digest) -> Result<(), StoreError> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            // Whoever settles from here on is heard.
            settled.as_mut().enable();
            match self.held().blobs.get_mut(&digest) {
                None => return Ok(()),
                Some(blob) => match blob.failed.take() {
                    Some(error) => return Err(error),
                    None if blob.pieces.values().all(|piece| piece.used.is_some()) => return Ok(()),
                    None => {}
                },
            }
            settled.await;
        }
    }
}

impl Held {
    fn knows(&mut self, meta: &MetaInfo) {
        let blob = self.blobs.entry(meta.digest()).or_insert_with(|| Blob {
            meta: meta.clone(),
            pieces: HashMap::new(),
            is_sealed: false,
            failed: None,
        });
        // The store behind says that it is not, any more.
        blob.is_sealed = false;
        if meta.continues(&blob.meta) {
            blob.meta = meta.clone();
        }
    }

    /// Whether what is held of a blob belongs to another metainfo, one that turned out wrong.
    fn contradicts(&self, meta: &MetaInfo) -> bool {
        let known = self.blobs.get(&meta.digest()).map(|blob| &blob.meta);
        known.is_some_and(|known| !meta.continues(known) && !known.continues(meta))
    }

    /// The pieces that the store behind does not have yet.
    fn under_way(&self, digest: Digest) -> Vec<u32> {
        let pieces = self
            .blobs
            .get(&digest)
            .into_iter()
            .flat_map(|blob| &blob.pieces);
        let under_way = pieces.filter(|(_, piece)| piece.used.is_none());
        under_way.map(|(index, _)| *index).collect()
    }

    /// Lets go of what the store behind had and has no more.
    fn keep_only(&mut self, digest: Digest, have: &Bitfield) {
        let Some(blob) = self.blobs.get(&digest) else {
            return;
        };
        let had = blob
            .pieces
            .iter()
            .filter_map(|(index, piece)| Some((*index, piece.used?)));
        let gone: Vec<_> = had.filter(|(index, _)| !have.has(*index)).collect();
        for (piece, used) in gone {
            self.order.remove(&used);
            self.drop_piece(digest, piece);
        }
    }

    fn has(&self, digest: Digest, piece: u32) -> bool {
        let blob = self.blobs.get(&digest);
        blob.is_some_and(|blob| blob.pieces.contains_key(&piece))
    }

    /// Holds a piece if there is room, or can be made.
    fn hold(&mut self, digest: Digest, piece: u32, data: &Bytes) -> bool {
        let len = data.len() as u64;
        // What comes late for a sealed blob is there.
        let is_open = self.blobs.get(&digest).is_some_and(|blob| !blob.is_sealed);
        if !is_open || len > self.most {
            return false;
        }
        while self.bytes + len > self.most {
            let Some((_, (digest, piece))) = self.order.pop_first() else {
                return false;
            };
            self.drop_piece(digest, piece);
        }
        self.bytes += len;
        let blob = self.blobs.get_mut(&digest);
        let held = Piece {
            data: data.clone(),
            used: None,
        };
        // One that was held goes out of the order.
        let before = blob.and_then(|blob| blob.pieces.insert(piece, held));
        if let Some(before) = before {
            self.bytes -= before.data.len() as u64;
            self.order.remove(&before.used.unwrap_or(0));
        }
        true
    }

    fn drop_piece(&mut self, digest: Digest, piece: u32) {
        let Some(blob) = self.blobs.get_mut(&digest) else {
            return;
        };
        if let Some(gone) = blob.pieces.remove(&piece) {
            self.bytes -= gone.data.len() as u64;
        }
        if blob.is_sealed && blob.pieces.is_empty() {
            self.blobs.remove(&digest);
        }
    }

    /// The store behind has a piece, or could not take it.
    fn settle(&mut self, digest: Digest, piece: u32, written: Result<(), StoreError>) {
        let Some(blob) = self.blobs.get_mut(&digest) else {
            return;
        };
        match written {
            Ok(()) => {
                if let Some(held) = blob.pieces.get_mut(&piece) {
                    self.uses += 1;
                    held.used = Some(self.uses);
                    self.order.insert(self.uses, (digest, piece));
                }
            }
            Err(error) => {
                blob.failed = Some(error);
                self.drop_piece(digest, piece);
            }
        }
    }

    /// A piece's bytes, which are used.
    fn read(&mut self, digest: Digest, piece: u32) -> Option<Bytes> {
        let held = self.blobs.get_mut(&digest)?.pieces.get_mut(&piece)?;
        if let Some(used) = &mut held.used {
            self.uses += 1;
            self.order.remove(used);
            *used = self.uses;
            self.order.insert(self.uses, (digest, piece));
        }
        Some(held.data.clone())
    }

    fn forget(&mut self, digest: Digest) {
        let Some(blob) = self.blobs.remove(&digest) else {
            return;
        };
        for piece in blob.pieces.into_values() {
            self.bytes -= piece.data.len() as u64;
            if let Some(used) = piece.used {
                self.order.remove(&used);
            }
        }
    }

    /// From now on an entry without pieces is of no use.
    fn sealed(&mut self, digest: Digest) {
        if let Some(blob) = self.blobs.get_mut(&digest) {
            blob.is_sealed = true;
            if blob.pieces.is_empty() {
                self.blobs.remove(&digest);
            }
        }
    }
}

impl<S: PieceStore> MemoryTier<S> {
    /// Hands a piece that is held to the store behind.
    fn pass_on(&self, digest: Digest, piece: u32, data: Bytes) {
        let Self { store, tier } = self.clone();
        tokio::spawn(async move {
            let written = store.write(digest, piece, data).await;
            if let Err(error) = &written {
                tracing::debug!(%digest, piece, %error, "a piece did not get behind the memory tier");
            }
            tier.held().settle(digest, piece, written);
            tier.settled.notify_waiters();
        });
    }
}

impl<S: PieceStore> PieceStore for MemoryTier<S> {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        // In this order: what is not under way any more the store has.
        let under_way = self.tier.held().under_way(digest);
        let mut status = self.store.status(digest).await?;
        if let BlobStatus::Partial { have, .. } = &mut status {
            for piece in under_way {
                have.insert(piece);
            }
        }
        Ok(status)
    }

    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        let digest = meta.digest();
        if self.tier.held().contradicts(&meta) {
            // What is under way must not come behind the new one, which it does not fit.
            let _ = self.tier.settled(digest).await;
            self.tier.held().forget(digest);
        }
        let mut have = self.store.open(meta.clone()).await?;
        if have.is_full() {
            return Ok(have);
        }
        let mut held = self.tier.held();
        held.knows(&meta);
        held.keep_only(digest, &have);
        for piece in held.under_way(digest) {
            have.insert(piece);
        }
        Ok(have)
    }

    async fn write(&self, digest: Digest, piece: u32, data: Bytes) -> Result<(), StoreError> {
        {
            let mut held = self.tier.held();
            if held.has(digest, piece) {
                return Ok(());
            }
            let meta = held.blobs.get(&digest).map(|blob| blob.meta.clone());
            if let Some(meta) = meta {
                crate::store::check_bounds(&meta, piece, data.len())?;
            }
            if held.hold(digest, piece, &data) {
                drop(held);
                self.pass_on(digest, piece, data);
                return Ok(());
            }
        }
        self.store.write(digest, piece, data).await
    }

    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        let meta = self
            .tier
            .held()
            .blobs
            .get(&digest)
            .map(|blob| blob.meta.clone());
        let Some(meta) = meta else {
            return self.store.read(digest, offset, len).await;
        };
        let end = offset.saturating_add(len.into()).min(meta.length());
        self.store.touch(digest);
        let mut parts = Vec::new();
        for piece in meta.pieces_of(offset..end) {
            let range = meta.piece_range(piece);
            let (from, to) = (offset.max(range.start), end.min(range.end));
            let held = self.tier.held().read(digest, piece);
            parts.push(match held {
                Some(bytes) => {
                    let within = |at: u64| usize::try_from(at - range.start).expect("of a piece");
                    bytes.slice(within(from)..within(to))
                }
                None => {
                    let len = u32::try_from(to - from).expect("of a piece");
                    self.store.read(digest, from, len).await?
                }
            });
        }
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| joined.extend_from_slice(part));
        Ok(joined.freeze())
    }

    async fn file(&self, digest: Digest) -> Result<Option<Arc<File>>, StoreError> {
        self.store.file(digest).await
    }

    async fn damaged(&self) -> Digest {
        self.store.damaged().await
    }

    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        self.tier.settled(digest).await?;
        self.store.seal(digest).await?;
        self.tier.held().sealed(digest);
        Ok(())
    }

    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        // What is under way must not come behind what takes the blob's place.
        let _ = self.tier.settled(digest).await;
        self.tier.held().forget(digest);
        self.store.remove(digest).await
    }

    async fn discard(&self, digest: Digest) -> Result<(), StoreError> {
        let _ = self.tier.settled(digest).await;
        self.store.discard(digest).await?;
        if matches!(self.store.status(digest).await?, BlobStatus::Absent) {
            self.tier.held().forget(digest);
        }
        Ok(())
    }

    async fn victims(
        &self,
        need: Need<'_>,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        self.store.victims(need, spared).await
    }

    async fn surplus(
        &self,
        goal: Goal,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        self.store.surplus(goal, spared).await
    }

    fn usage(&self) -> Option<Usage> {
        self.store.usage()
    }

    fn page(&self, after: Option<Digest>, max: usize) -> Vec<Kept> {
        self.store.page(after, max)
    }

    fn kept(&self, digest: Digest) -> Option<Kept> {
        self.store.kept(digest)
    }

    fn touch(&self, digest: Digest) {
        self.store.touch(digest);
    }

    async fn note_uses(&self) -> Result<(), StoreError> {
        self.store.note_uses().await
    }

    async fn pin(&self, digest: Digest, is_pinned: bool) -> Result<(), StoreError> {
        self.store.pin(digest, is_pinned).await
    }

    async fn verify(&self, digest: Digest) -> Result<Verdict, StoreError> {
        self.store.verify(digest).await
    }

    async fn path(&self, digest: Digest) -> Result<Option<PathBuf>, StoreError> {
        self.store.path(digest).await
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        self.store.list().await
    }
}

#[cfg(test)]
#[cfg(feature = "testkit")]
mod tests;
