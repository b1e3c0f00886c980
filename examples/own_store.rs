//! An agent with a store of its own: pieces in a map that is bounded by nothing but the program.
//!
//! A store keeps verified pieces and gives back exactly those. This one also counts what it is asked,
//! as an embedder may want to. The suite that every store has to pass is `storage::testkit`; it
//! runs here first. `cargo run -p kraken-examples --example own_store`
#![expect(clippy::print_stdout, reason = "an example that shows what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kraken_core::net::MemNetwork;
use kraken_core::proto::Bitfield;
use kraken_core::storage::{
    BlobStatus, MemStore, PieceStore, StoreError, UploadStore as _, testkit,
};
use kraken_core::{Agent, Digest, MetaInfo, PeerId};
use kraken_examples::KnownPeer;
use tokio::io::AsyncReadExt as _;

/// Pieces in memory. Clones share them.
#[derive(Clone, Default)]
struct Pieces {
    blobs: Arc<Mutex<BTreeMap<Digest, Blob>>>,
    written: Arc<AtomicU64>,
}

struct Blob {
    meta: MetaInfo,
    pieces: BTreeMap<u32, Bytes>,
    sealed: bool,
}

impl Blob {
    fn have(&self) -> Bitfield {
        let mut have = Bitfield::empty(self.meta.piece_count());
        for piece in self.pieces.keys() {
            have.insert(*piece);
        }
        have
    }
}

impl Pieces {
    fn blobs(&self) -> MutexGuard<'_, BTreeMap<Digest, Blob>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PieceStore for Pieces {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        Ok(match self.blobs().get(&digest) {
            None => BlobStatus::Absent,
            Some(blob) if blob.sealed => BlobStatus::Sealed {
                meta: blob.meta.clone(),
            },
            Some(blob) => BlobStatus::Partial {
                meta: blob.meta.clone(),
                have: blob.have(),
            },
        })
    }

    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        let mut blobs = self.blobs();
        let blob = blobs.entry(meta.digest()).or_insert_with(|| Blob {
            meta: meta.clone(),
            pieces: BTreeMap::new(),
            sealed: false,
        });
        if blob.sealed {
            return Ok(Bitfield::full(meta.piece_count()));
        }
        // Somebody who knows less than what is known takes nothing away; what contradicts it may.
        if !blob.meta.continues(&meta) {
            blob.pieces
                .retain(|piece, bytes| meta.verify(*piece, bytes).is_ok());
            blob.meta = meta;
        }
        Ok(blob.have())
    }

    async fn write(&self, digest: Digest, piece: u32, data: Bytes) -> Result<(), StoreError> {
        let mut blobs = self.blobs();
        let blob = blobs.get_mut(&digest).ok_or(StoreError::Absent(digest))?;
        if piece >= blob.meta.piece_count() || data.len() != blob.meta.piece_size(piece) as usize {
            let len = data.len();
            return Err(StoreError::Bounds { digest, piece, len });
        }
        blob.pieces.entry(piece).or_insert(data);
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        let blobs = self.blobs();
        let blob = blobs.get(&digest).ok_or(StoreError::Absent(digest))?;
        let end = blob.meta.length().min(offset.saturating_add(len.into()));
        let mut bytes = BytesMut::new();
        for piece in blob.meta.pieces_of(offset..end) {
            let stored = blob.pieces.get(&piece);
            let stored = stored.ok_or(StoreError::Missing { digest, piece })?;
            let range = blob.meta.piece_range(piece);
            let from = offset.saturating_sub(range.start) as usize;
            let to = (end.min(range.end) - range.start) as usize;
            bytes.extend_from_slice(&stored[from..to]);
        }
        Ok(bytes.freeze())
    }

    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        let mut blobs = self.blobs();
        let blob = blobs.get_mut(&digest).ok_or(StoreError::Absent(digest))?;
        if let Some(piece) = blob.have().missing().next() {
            return Err(StoreError::Missing { digest, piece });
        }
        if !blob.meta.is_whole() {
            return Err(StoreError::Open(digest));
        }
        blob.sealed = true;
        Ok(())
    }

    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        self.blobs().remove(&digest);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let blobs = self.blobs();
        let sealed = blobs.iter().filter(|(_, blob)| blob.sealed);
        Ok(sealed.map(|(digest, _)| *digest).collect())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    testkit::conforms(async || Pieces::default()).await;
    println!("the store does what stores promise");

    let network = MemNetwork::new();
    let (bytes, meta) = testkit::blob(5_000_000, 1);
    let full = MemStore::new();
    let upload = full.upload_start().await?;
    full.upload_append(&upload, 0, bytes.clone().into()).await?;
    full.upload_commit(&upload, meta.digest()).await?;
    let seeder = Agent::builder(full, network.transport(PeerId::from_bytes([1; 32])))
        .discovery(KnownPeer {
            peer: None,
            meta: meta.clone(),
        })
        .spawn()?;
    seeder.seed_all().await?;

    let store = Pieces::default();
    let transport = network.transport(PeerId::from_bytes([2; 32]));
    let leecher = Agent::builder(store.clone(), transport)
        .discovery(KnownPeer {
            peer: Some(seeder.local().clone()),
            meta: meta.clone(),
        })
        .spawn()?;
    let mut fetched = Vec::new();
    let mut blob = leecher.open(meta.digest()).await?;
    blob.read_to_end(&mut fetched).await?;
    assert_eq!(fetched, bytes);
    let written = store.written.load(Ordering::Relaxed);
    assert!(written >= u64::from(meta.piece_count()));
    println!(
        "{} bytes came in {} pieces",
        fetched.len(),
        meta.piece_count()
    );

    leecher.shutdown().await;
    seeder.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_comes_to_its_end() {
        super::main().unwrap();
    }
}
