//! How often a tag was told that may be out of date.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts answers about tags of other registries that could not be asked then. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct StaleTags(Arc<AtomicU64>);

impl StaleTags {
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many such answers there were.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
