//! The bytes that blobs take on a disk of bounded size, and which go when others need the room.
//!
//! Invariant: what is used is the sum of the entries, and it passes the ceiling only by what was
//! there before the ledger was opened or the ceiling lowered. The blob that was not used for the
//! longest time goes first: to fetch a byte again costs the same whatever blob it is of, so that
//! only the time until it is needed counts, and the past is the best guess at that (Sleator and
//! Tarjan, Communications of the ACM 28(2), 1985).

use std::collections::BTreeMap;

use crate::blob::digest::Digest;

/// How much may be used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    most: u64,
}

impl Ceiling {
    /// At most so many bytes.
    pub const fn of(most: u64) -> Self {
        Self { most }
    }

    /// The most that is ever used.
    pub const fn most(self) -> u64 {
        self.most
    }

    /// Where it ends once something has to go: a twentieth lower, so that a full disk does not
    /// have to look for room at every blob.
    const fn low(self) -> u64 {
        self.most - self.most / 20
    }
}

/// What is kept. See [`Ledger::room_for`].
///
/// ```
/// use kraken_proto::Digest;
/// use kraken_proto::cache::ledger::{Ceiling, Ledger, Room};
///
/// let [old, new] = [Digest::of(b"old"), Digest::of(b"new")];
/// let mut ledger = Ledger::new(Some(Ceiling::of(100)));
/// ledger.keep(old, 60);
/// ledger.keep(new, 30);
/// assert_eq!(ledger.room_for(10, |_| true), Room::Free);
/// assert_eq!(ledger.room_for(40, |_| true), Room::After(vec![old]));
/// ledger.touch(old);
/// assert_eq!(ledger.room_for(40, |_| true), Room::After(vec![new, old]));
/// assert_eq!(ledger.room_for(101, |_| true), Room::None);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    ceiling: Option<Ceiling>,
    entries: BTreeMap<Digest, Entry>,
    /// The blobs by their last use.
    order: BTreeMap<u64, Digest>,
    uses: u64,
    used: u64,
    /// What belongs to no blob, as part of `used`.
    held: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    used_at: u64,
}

/// Whether there is room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Free,
    /// There is when these are gone, the one that was not used for the longest time first.
    After(Vec<Digest>),
    /// There would not be when all went that may.
    None,
}

impl Ledger {
    /// A ledger of nothing yet; without a ceiling everything fits.
    pub fn new(ceiling: Option<Ceiling>) -> Self {
        Self {
            ceiling,
            ..Self::default()
        }
    }

    /// What is used, in bytes.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The most that may be used.
    pub fn ceiling(&self) -> Option<Ceiling> {
        self.ceiling
    }

    /// A blob takes so many bytes from now on, whatever it took before. That is its last use.
    pub fn keep(&mut self, blob: Digest, bytes: u64) {
        self.forget(blob);
        self.uses += 1;
        let used_at = self.uses;
        self.entries.insert(blob, Entry { bytes, used_at });
        self.order.insert(used_at, blob);
        self.used += bytes;
        self.check();
    }

    /// A blob is used.
    pub fn touch(&mut self, blob: Digest) {
        if let Some(entry) = self.entries.get_mut(&blob) {
            self.uses += 1;
            self.order.remove(&entry.used_at);
            entry.used_at = self.uses;
            self.order.insert(self.uses, blob);
        }
    }

    /// A blob takes nothing any more.
    pub fn forget(&mut self, blob: Digest) {
        if let Some(entry) = self.entries.remove(&blob) {
            self.order.remove(&entry.used_at);
            self.used -= entry.bytes;
        }
    }

    /// So many bytes are taken by something that is no blob, and never goes by itself.
    pub fn hold(&mut self, bytes: u64) {
        self.held += bytes;
        self.used += bytes;
    }

    /// So many of those are free again.
    pub fn release(&mut self, bytes: u64) {
        let bytes = bytes.min(self.held);
        self.held -= bytes;
        self.used -= bytes;
    }

    /// What a blob takes.
    pub fn bytes_of(&self, blob: Digest) -> u64 {
        self.entries.get(&blob).map_or(0, |entry| entry.bytes)
    }

    /// Whether `bytes` more fit, perhaps after some of those have gone that `may_go`. If any must go,
    /// so many do that the disk is not full again at once.
    pub fn room_for(&self, bytes: u64, may_go: impl Fn(Digest) -> bool) -> Room {
        let Some(ceiling) = self.ceiling else {
            return Room::Free;
        };
        let wanted = self.used.saturating_add(bytes);
        if wanted <= ceiling.most {
            return Room::Free;
        }
        // A blob that fits only without the reserve gets that, too.
        let goal = ceiling.low().max(bytes.min(ceiling.most));
        let (going, gone) = self.oldest(wanted - goal, may_go);
        if wanted - gone <= ceiling.most {
            Room::After(going)
        } else {
            Room::None
        }
    }

    /// What is to go so that `bytes` become free, whatever the ceiling says: for a volume that is full
    /// although there is room by this ledger.
    pub fn making_room(&self, bytes: u64, may_go: impl Fn(Digest) -> bool) -> Room {
        match self.oldest(bytes, may_go) {
            (going, gone) if gone >= bytes => Room::After(going),
            _ => Room::None,
        }
    }

    /// The blobs that were not used for the longest time and take `bytes` together, if there are so
    /// many, and what they take.
    fn oldest(&self, bytes: u64, may_go: impl Fn(Digest) -> bool) -> (Vec<Digest>, u64) {
        let (mut going, mut gone) = (Vec::new(), 0);
        for blob in self.order.values().copied().filter(|blob| may_go(*blob)) {
            if gone >= bytes {
                break;
            }
            gone += self.entries[&blob].bytes;
            going.push(blob);
        }
        (going, gone)
    }

    /// Recounts, where that is cheap beside the call.
    fn check(&self) {
        let few = self.entries.len() < 1000;
        let sum = || self.entries.values().map(|it| it.bytes).sum::<u64>() + self.held;
        debug_assert!(!few || self.used == sum());
        debug_assert_eq!(self.order.len(), self.entries.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn ledger(most: u64, sizes: &[u64]) -> Ledger {
        let mut ledger = Ledger::new(Some(Ceiling::of(most)));
        for (number, bytes) in (0..).zip(sizes) {
            ledger.keep(blob(number), *bytes);
        }
        ledger
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first_and_some_more_than_must() {
        let mut ledger = ledger(1000, &[100; 10]);
        ledger.touch(blob(0));
        let going = vec![blob(1), blob(2)];
        assert_eq!(ledger.room_for(100, |_| true), Room::After(going.clone()));
        assert_eq!(ledger.room_for(1, |_| true), Room::After(vec![blob(1)]));
        going.into_iter().for_each(|blob| ledger.forget(blob));
        assert_eq!(ledger.used(), 800);
        assert_eq!(ledger.room_for(200, |_| true), Room::Free);
    }

    #[test]
    fn what_may_not_go_stays_and_its_room_is_not_promised() {
        let ledger = ledger(100, &[40, 40]);
        let spared = |kept| move |other| other != blob(kept);
        assert_eq!(ledger.room_for(30, spared(0)), Room::After(vec![blob(1)]));
        assert_eq!(ledger.room_for(61, spared(0)), Room::None);
        assert_eq!(ledger.room_for(30, |_| false), Room::None);
        assert_eq!(ledger.room_for(20, |_| false), Room::Free);
    }

    #[test]
    fn a_blob_as_large_as_the_disk_fits_alone() {
        let ledger = ledger(100, &[10]);
        assert_eq!(ledger.room_for(100, |_| true), Room::After(vec![blob(0)]));
        assert_eq!(ledger.room_for(101, |_| true), Room::None);
        assert_eq!(ledger.room_for(u64::MAX, |_| true), Room::None);
    }

    #[test]
    fn what_is_held_takes_room_and_never_goes() {
        let mut ledger = ledger(100, &[40]);
        ledger.hold(50);
        assert_eq!(ledger.room_for(10, |_| true), Room::Free);
        assert_eq!(ledger.room_for(50, |_| true), Room::After(vec![blob(0)]));
        assert_eq!(ledger.room_for(51, |_| true), Room::None);
        ledger.release(50);
        assert_eq!(ledger.used(), 40);
        ledger.release(1);
        assert_eq!(ledger.used(), 40, "no more than was held");
    }

    #[test]
    fn a_volume_that_is_full_before_its_ceiling_gets_room_too() {
        let ledger = ledger(1000, &[30, 30, 30]);
        let two = vec![blob(0), blob(1)];
        assert_eq!(ledger.making_room(31, |_| true), Room::After(two));
        assert_eq!(ledger.making_room(91, |_| true), Room::None);
        assert_eq!(ledger.making_room(31, |other| other == blob(2)), Room::None);
    }

    #[test]
    fn without_a_ceiling_everything_fits() {
        let mut ledger = Ledger::new(None);
        ledger.keep(blob(1), u64::MAX / 2);
        assert_eq!(ledger.room_for(u64::MAX, |_| false), Room::Free);
    }

    #[test]
    fn a_blob_is_counted_once() {
        let mut ledger = ledger(100, &[40]);
        ledger.keep(blob(0), 50);
        assert_eq!(ledger.used(), 50);
        ledger.forget(blob(0));
        ledger.forget(blob(0));
        ledger.touch(blob(0));
        assert_eq!(ledger.used(), 0);
        assert!(ledger.order.is_empty());
    }

    proptest! {
        /// Against a list, the least recently used first.
        #[test]
        fn the_order_is_that_of_a_naive_list(
            steps in proptest::collection::vec((0..4_u8, 0..8_u8, 0..400_u64), 1..200)
        ) {
            let mut ledger = Ledger::new(Some(Ceiling::of(1000)));
            let mut list: Vec<(Digest, u64)> = Vec::new();
            for (step, number, bytes) in steps {
                let (id, at) = (blob(number), list.iter().position(|it| it.0 == blob(number)));
                match (step, at) {
                    (0, at) => {
                        if let Some(at) = at {
                            list.remove(at);
                        }
                        list.push((id, bytes));
                        ledger.keep(id, bytes);
                    }
                    (1, Some(at)) => {
                        let entry = list.remove(at);
                        list.push(entry);
                        ledger.touch(id);
                    }
                    (2, Some(at)) => {
                        list.remove(at);
                        ledger.forget(id);
                    }
                    _ => {
                        let used: u64 = list.iter().map(|it| it.1).sum();
                        prop_assert_eq!(ledger.used(), used);
                        match ledger.room_for(bytes, |_| true) {
                            Room::Free => prop_assert!(used + bytes <= 1000),
                            Room::After(going) => {
                                prop_assert!(used + bytes > 1000);
                                let first = list.iter().take(going.len());
                                let gone: u64 = first.clone().map(|it| it.1).sum();
                                let first: Vec<_> = first.map(|it| it.0).collect();
                                prop_assert_eq!(going, first);
                                prop_assert!(used - gone + bytes <= 1000);
                            }
                            Room::None => prop_assert!(false, "all may go"),
                        }
                    }
                }
            }
        }
    }
}
