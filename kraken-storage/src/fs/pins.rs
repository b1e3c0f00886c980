//! Blobs that stay whatever happens: an empty file for each.

use std::sync::PoisonError;

use kraken_proto::Digest;

use super::{Shared, disk};
use crate::store::StoreError;

impl Shared {
    /// Durable when it returns.
    pub(super) fn pin(&self, digest: Digest, is_pinned: bool) -> Result<(), StoreError> {
        let _turn = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = self.layout.pins_dir();
        let path = dir.join(digest.hex());
        match is_pinned {
            true => drop(disk::create(&path).map_err(disk::failed("create", &path))?),
            false => drop(disk::remove(&path)?),
        }
        disk::sync_dir(&dir)?;
        self.ledger().pin(digest, is_pinned);
        Ok(())
    }
}
