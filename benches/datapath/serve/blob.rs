//! The blob that all serve: in a store on disk, sealed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kraken_core::Digest;
use kraken_core::proto::ChainHasher;
use kraken_core::storage::{FsStore, UploadStore as _};
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use crate::Outcome;

/// A sealed blob.
pub(crate) struct Blob {
    /// The store's directory.
    pub(super) store: PathBuf,
    pub(super) digest: Digest,
    pub(super) length: u64,
}

const STEP: usize = 1 << 20;

impl Blob {
    /// Makes one of `length` bytes that nobody compresses. Its pages are cached afterwards.
    pub(crate) fn make(dir: &Path, length: u64) -> Outcome<Self> {
        let store = dir.join("store");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let digest = runtime.block_on(fill(&store, length))?;
        Ok(Self {
            store,
            digest,
            length,
        })
    }

    /// The file that holds it.
    pub(super) fn file(&self) -> PathBuf {
        let hex = self.digest.hex();
        self.store.join("sealed").join(&hex[..2]).join(hex)
    }
}

async fn fill(path: &Path, length: u64) -> Outcome<Digest> {
    let store = FsStore::open(path).await?;
    let upload = store.upload_start().await?;
    let (mut chance, mut hasher) = (Pcg64Mcg::seed_from_u64(1), ChainHasher::new());
    let mut at = 0;
    while at < length {
        let step = usize::try_from(length - at).map_or(STEP, |left| left.min(STEP));
        let mut bytes = vec![0; step];
        chance.fill_bytes(&mut bytes);
        hasher.update(&bytes);
        at = store.upload_append(&upload, at, Bytes::from(bytes)).await?;
    }
    let digest = hasher.finish().digest();
    store.upload_commit(&upload, digest).await?;
    Ok(digest)
}
