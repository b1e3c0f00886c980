//! What the store remembers of blobs between calls: their state and their open files. Both are
//! bounded, whatever number of blobs is asked for.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use kraken_proto::Digest;
use tokio::sync::RwLock;

use super::partial::Partial;
use super::trust::Sealed;
use crate::store::StoreError;

/// What is known of one blob. Held for reading while its pieces are read and written, for writing
/// while the blob comes, is sealed or goes.
pub(super) type Slot = Arc<RwLock<State>>;

#[derive(Debug, Default)]
pub(super) enum State {
    /// The disk has not been asked yet.
    #[default]
    Unknown,
    Absent,
    Partial(Arc<Partial>),
    Sealed(Arc<Sealed>),
}

/// The slots of the blobs in use. A partial blob keeps its slot, as its pieces would have to be
/// verified again; others go when they are not in use and there are too many.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<Recent<Digest, Slot>>);

impl Slots {
    const MAX: usize = 256;

    pub(super) fn get(&self, digest: Digest) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&digest) {
            return slot;
        }
        let slot = Slot::default();
        slots.insert(digest, Arc::clone(&slot));
        slots.shrink(Self::MAX, |slot| {
            // Nobody can take a second handle while this map is locked.
            Arc::strong_count(slot) == 1
                && slot
                    .try_read()
                    .is_ok_and(|state| !matches!(*state, State::Partial(_)))
        });
        slot
    }
}

/// Which file of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Data,
    Journal,
}

/// Open files, the least recently used closed first.
#[derive(Debug, Default)]
pub(super) struct Files(Mutex<Recent<(Digest, Part), Arc<File>>>);

impl Files {
    const MAX: usize = 256;

    pub(super) fn get(
        &self,
        digest: Digest,
        part: Part,
        open: impl FnOnce() -> Result<File, StoreError>,
    ) -> Result<Arc<File>, StoreError> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(&(digest, part)) {
            return Ok(file);
        }
        // Opened without the lock; should another task be as fast, one of the two handles stays.
        let file = Arc::new(open()?);
        let mut files = lock();
        files.insert((digest, part), Arc::clone(&file));
        files.shrink(Self::MAX, |_| true);
        Ok(file)
    }

    /// A file that is open already.
    pub(super) fn opened(&self, digest: Digest, part: Part) -> Option<Arc<File>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&(digest, part))
    }

    /// Closes the blob's files, as other files will have their names.
    pub(super) fn forget(&self, digest: Digest) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(&(digest, Part::Data));
        files.remove(&(digest, Part::Journal));
    }
}

/// A map that knows which entries were used last.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, (V, u64)>,
    uses: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            uses: 0,
        }
    }
}

impl<K: Hash + Eq + Copy, V: Clone> Recent<K, V> {
    fn get(&mut self, key: &K) -> Option<V> {
        let (value, used) = self.entries.get_mut(key)?;
        self.uses += 1;
        *used = self.uses;
        Some(value.clone())
    }

    fn insert(&mut self, key: K, value: V) {
        self.uses += 1;
        self.entries.insert(key, (value, self.uses));
    }

    fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// When there are more than `max`, drops a quarter of them: those that `may_go` and were used
    /// longest ago. A quarter, so that the scan is paid once in many calls.
    fn shrink(&mut self, max: usize, may_go: impl Fn(&V) -> bool) {
        if self.entries.len() <= max {
            return;
        }
        let old = self.entries.iter().filter(|(_, (value, _))| may_go(value));
        let mut old: Vec<_> = old.map(|(key, (_, used))| (*used, *key)).collect();
        old.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in old.into_iter().take(max.div_ceil(4)) {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_what_may_not_go_stays() {
        let mut recent = Recent::default();
        for key in 0..9 {
            recent.insert(key, key);
        }
        recent.get(&0);
        recent.shrink(8, |value| *value != 1);
        let mut left: Vec<_> = recent.entries.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [0, 1, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn slots_stay_bounded_and_a_slot_in_use_stays() {
        let slots = Slots::default();
        let held = slots.get(Digest::of(b"held"));
        for i in 0..2000_u32 {
            slots.get(Digest::of(&i.to_le_bytes()));
        }
        assert!(slots.0.lock().unwrap().entries.len() <= Slots::MAX);
        assert!(Arc::ptr_eq(&held, &slots.get(Digest::of(b"held"))));
    }
}
