//! The bytes that blobs take on a disk of bounded size, and which go when others need the room.
//!
//! Invariant: what is used is the sum of the entries, and it passes the ceiling only by what was
//! there before the ledger was opened or the ceiling lowered. What is pinned never goes.
//!
//! Two orders to go in, see [`Order`]. The time is the wall clock's, in milliseconds since 1970: it goes
//! on while the process does not run. A clock that is set back makes nothing older.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::blob::digest::Digest;

/// How much may be used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    most: u64,
    high: u64,
    low: u64,
}

impl Ceiling {
    /// At most so many bytes. From 95 % of them on there is a [surplus](Ledger::surplus), and once
    /// something has to go, so much goes that 90 % are used.
    pub const fn of(most: u64) -> Self {
        Self {
            most,
            high: most - most / 20,
            low: most - most / 10,
        }
    }

    /// With other marks, in bytes; `None` unless `low` ≤ `high` ≤ the most.
    pub fn with_marks(self, high: u64, low: u64) -> Option<Self> {
        let fits = low <= high && high <= self.most;
        fits.then_some(Self { high, low, ..self })
    }

    /// The most that is ever used.
    pub const fn most(self) -> u64 {
        self.most
    }

    /// From where on something goes without need.
    pub const fn high(self) -> u64 {
        self.high
    }

    /// Where it ends once something goes.
    pub const fn low(self) -> u64 {
        self.low
    }
}

/// What goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// What was not used for the longest time: to fetch a byte again costs the same whatever blob it
    /// is of, so that only the time until it is needed counts, and the past is the best guess at that
    /// (Sleator and Tarjan, Communications of the ACM 28(2), 1985).
    #[default]
    Recent,
    /// What costs the least to lose for its bytes: uses so far, times what a fetch costs, by size, on
    /// top of the cost of what went last, so that the unused grow old (GreedyDual-Size with frequency:
    /// Cherkasova, HPL-98-69, 1998). Small blobs, such as manifests, and those that are used often
    /// stay; for where many small blobs are pulled beside a few large ones.
    Cost,
}

/// What a fetch costs besides the bytes of the blob, in bytes: to look it up and find peers takes
/// some 40 ms, in which 4 MiB come at 100 MB/s.
const FETCH: u64 = 4 << 20;
/// Costs are counted in parts of this size.
const UNIT: u64 = 1024;
/// What comes within so many milliseconds is one use.
const ONE_USE: u64 = 60_000;
/// No more uses are counted than these.
const MOST_USES: u64 = 1 << 16;

/// How long blobs stay whatever room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lifetimes {
    /// Since they came.
    pub to_live: Option<Duration>,
    /// Since they were used last.
    pub to_idle: Option<Duration>,
}

impl Lifetimes {
    /// Whether any is set.
    pub const fn is_bounded(&self) -> bool {
        self.to_live.is_some() || self.to_idle.is_some()
    }

    /// Whether what came and was used last at these times is over at `now_ms`.
    pub fn are_over(&self, born_ms: u64, used_ms: u64, now_ms: u64) -> bool {
        let over = |limit: Option<Duration>, since: u64| {
            limit.is_some_and(|limit| u128::from(now_ms.saturating_sub(since)) > limit.as_millis())
        };
        over(self.to_live, born_ms) || over(self.to_idle, used_ms)
    }
}

/// What is kept. See [`Ledger::room_for`].
///
/// ```
/// use kraken_proto::Digest;
/// use kraken_proto::cache::ledger::{Ceiling, Ledger, Order, Room};
///
/// let [old, new] = [Digest::of(b"old"), Digest::of(b"new")];
/// let mut ledger = Ledger::new(Some(Ceiling::of(100)), Order::Recent);
/// ledger.keep(old, 60, 1000);
/// ledger.keep(new, 30, 2000);
/// assert_eq!(ledger.room_for(10, |_| true), Room::Free);
/// assert_eq!(ledger.room_for(40, |_| true), Room::After(vec![old]));
/// ledger.touch(old, 3000);
/// assert_eq!(ledger.room_for(40, |_| true), Room::After(vec![new, old]));
/// assert_eq!(ledger.room_for(101, |_| true), Room::None);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    ceiling: Option<Ceiling>,
    order: Order,
    entries: BTreeMap<Digest, Entry>,
    /// The blobs in the order in which they go.
    ranks: BTreeMap<Rank, Digest>,
    pinned: BTreeSet<Digest>,
    uses: u64,
    used: u64,
    /// What belongs to no blob, as part of `used`.
    held: u64,
    /// The cost of what went last.
    gone: u64,
}

/// By cost, and what costs the same by its last use.
type Rank = (u64, u64);

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    born_ms: u64,
    used_ms: u64,
    uses: u64,
    rank: Rank,
    /// Whether [`Ledger::take_used`] has told its last use, or need not.
    is_noted: bool,
}

/// A blob as the ledger knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The blob.
    pub digest: Digest,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// When it came, in milliseconds since 1970.
    pub born_ms: u64,
    /// When it was used last.
    pub used_ms: u64,
    /// Whether it stays whatever happens.
    pub is_pinned: bool,
}

/// Whether there is room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Free,
    /// There is when these are gone, the first of the order first.
    After(Vec<Digest>),
    /// There would not be when all went that may.
    None,
}

impl Ledger {
    /// A ledger of nothing yet; without a ceiling everything fits.
    pub fn new(ceiling: Option<Ceiling>, order: Order) -> Self {
        Self {
            ceiling,
            order,
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

    /// How many blobs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no blob.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A blob takes so many bytes from now on, whatever it took before. That is its last use; it came
    /// when it took something first.
    pub fn keep(&mut self, blob: Digest, bytes: u64, now_ms: u64) {
        let born_ms = self.entries.get(&blob).map_or(now_ms, |it| it.born_ms);
        self.restore(blob, bytes, born_ms, now_ms);
    }

    /// As [`Ledger::keep`] for a blob of an earlier process, which came and was used at these times.
    pub fn restore(&mut self, blob: Digest, bytes: u64, born_ms: u64, used_ms: u64) {
        let before = self.entries.remove(&blob);
        if let Some(before) = before {
            self.ranks.remove(&before.rank);
            self.used -= before.bytes;
        }
        let uses = before.map_or(1, |before| before.uses);
        let used_ms = before.map_or(used_ms, |before| before.used_ms.max(used_ms));
        let rank = self.next_rank(bytes, uses);
        let entry = Entry {
            bytes,
            born_ms,
            used_ms,
            uses,
            rank,
            is_noted: true,
        };
        self.used += bytes;
        self.ranks.insert(rank, blob);
        self.entries.insert(blob, entry);
        self.check();
    }

    /// A blob is used.
    pub fn touch(&mut self, blob: Digest, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(&blob) else {
            return;
        };
        // Whoever reads a blob reads many times.
        if now_ms.saturating_sub(entry.used_ms) >= ONE_USE {
            entry.uses = (entry.uses + 1).min(MOST_USES);
        }
        entry.used_ms = now_ms.max(entry.used_ms);
        entry.is_noted = false;
        let (before, bytes, uses) = (entry.rank, entry.bytes, entry.uses);
        let rank = self.next_rank(bytes, uses);
        self.ranks.remove(&before);
        self.ranks.insert(rank, blob);
        if let Some(entry) = self.entries.get_mut(&blob) {
            entry.rank = rank;
        }
    }

    /// A blob takes nothing any more.
    pub fn forget(&mut self, blob: Digest) {
        let is_first = self.going(|_| true).next() == Some(blob);
        if let Some(entry) = self.entries.remove(&blob) {
            self.ranks.remove(&entry.rank);
            self.used -= entry.bytes;
            // One that goes out of turn says nothing of what the others are worth.
            if is_first {
                self.gone = self.gone.max(entry.rank.0);
            }
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

    /// A blob stays whatever happens, or does not any more; also one that is not here yet.
    pub fn pin(&mut self, blob: Digest, is_pinned: bool) {
        match is_pinned {
            true => self.pinned.insert(blob),
            false => self.pinned.remove(&blob),
        };
    }

    /// Whether a blob stays whatever happens.
    pub fn is_pinned(&self, blob: Digest) -> bool {
        self.pinned.contains(&blob)
    }

    /// The blobs that stay whatever happens, also those that are not here.
    pub fn pinned(&self) -> impl Iterator<Item = Digest> {
        self.pinned.iter().copied()
    }

    /// What a blob takes.
    pub fn bytes_of(&self, blob: Digest) -> u64 {
        self.entries.get(&blob).map_or(0, |entry| entry.bytes)
    }

    /// A blob that is kept.
    pub fn get(&self, blob: Digest) -> Option<Kept> {
        let entry = self.entries.get(&blob)?;
        Some(self.kept(blob, entry))
    }

    /// Up to `max` blobs in the order of their digests, from the one after `after` on.
    pub fn page(&self, after: Option<Digest>, max: usize) -> Vec<Kept> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page = self.entries.range((from, Bound::Unbounded)).take(max);
        page.map(|(digest, entry)| self.kept(*digest, entry))
            .collect()
    }

    fn kept(&self, digest: Digest, entry: &Entry) -> Kept {
        Kept {
            digest,
            bytes: entry.bytes,
            born_ms: entry.born_ms,
            used_ms: entry.used_ms,
            is_pinned: self.is_pinned(digest),
        }
    }

    /// Of up to `max` blobs from the one after `after` on, those that were used since this was asked
    /// last, with the time; and the last blob that was looked at, if there may be more behind it.
    pub fn take_used(
        &mut self,
        after: Option<Digest>,
        max: usize,
    ) -> (Vec<(Digest, u64)>, Option<Digest>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut used, mut seen, mut last) = (Vec::new(), 0, None);
        for (digest, entry) in self.entries.range_mut((from, Bound::Unbounded)).take(max) {
            (seen, last) = (seen + 1, Some(*digest));
            if !std::mem::replace(&mut entry.is_noted, true) {
                used.push((*digest, entry.used_ms));
            }
        }
        (used, last.filter(|_| seen == max))
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
        let goal = ceiling.low.max(bytes.min(ceiling.most));
        let (going, gone) = self.first(wanted - goal, may_go);
        if wanted - gone <= ceiling.most {
            Room::After(going)
        } else {
            Room::None
        }
    }

    /// What is to go so that `bytes` become free, whatever the ceiling says: for a volume that is full
    /// although there is room by this ledger.
    pub fn making_room(&self, bytes: u64, may_go: impl Fn(Digest) -> bool) -> Room {
        match self.first(bytes, may_go) {
            (going, gone) if gone >= bytes => Room::After(going),
            _ => Room::None,
        }
    }

    /// What may go although nothing needs its room: all that is used passes the high mark. Until the
    /// low mark, if that many may go.
    pub fn surplus(&self, may_go: impl Fn(Digest) -> bool) -> Vec<Digest> {
        match self.ceiling {
            Some(ceiling) if self.used > ceiling.high => self.down_to(ceiling.low, may_go),
            _ => Vec::new(),
        }
    }

    /// What is to go so that no more than `goal` bytes are used, if that many may.
    pub fn down_to(&self, goal: u64, may_go: impl Fn(Digest) -> bool) -> Vec<Digest> {
        self.first(self.used.saturating_sub(goal), may_go).0
    }

    /// Of up to `max` blobs from the one after `after` on, those whose time is over; and the last blob
    /// that was looked at, if there may be more behind it.
    pub fn expired(
        &self,
        lifetimes: Lifetimes,
        now_ms: u64,
        after: Option<Digest>,
        max: usize,
    ) -> (Vec<Digest>, Option<Digest>) {
        let page = self.page(after, max);
        let last = page.last().map(|kept| kept.digest);
        let is_over = |kept: &&Kept| {
            !kept.is_pinned && lifetimes.are_over(kept.born_ms, kept.used_ms, now_ms)
        };
        let over = page.iter().filter(is_over).map(|kept| kept.digest);
        (over.collect(), last.filter(|_| page.len() == max))
    }

    /// The first blobs of the order that take `bytes` together, if there are so many, and what they
    /// take.
    fn first(&self, bytes: u64, may_go: impl Fn(Digest) -> bool) -> (Vec<Digest>, u64) {
        let (mut going, mut gone) = (Vec::new(), 0);
        for blob in self.going(may_go) {
            if gone >= bytes {
                break;
            }
            gone += self.entries[&blob].bytes;
            going.push(blob);
        }
        (going, gone)
    }

    fn going(&self, may_go: impl Fn(Digest) -> bool) -> impl Iterator<Item = Digest> {
        let unpinned = self
            .ranks
            .values()
            .copied()
            .filter(|it| !self.is_pinned(*it));
        unpinned.filter(move |blob| may_go(*blob))
    }

    /// The rank of a blob that is used now.
    fn next_rank(&mut self, bytes: u64, uses: u64) -> Rank {
        self.uses += 1;
        let cost = match self.order {
            Order::Recent => 0,
            Order::Cost => {
                let fetch = UNIT + FETCH * UNIT / bytes.max(1);
                self.gone.saturating_add(uses * fetch)
            }
        };
        (cost, self.uses)
    }

    /// Recounts, where that is cheap beside the call.
    fn check(&self) {
        let few = self.entries.len() < 1000;
        let sum = || self.entries.values().map(|it| it.bytes).sum::<u64>() + self.held;
        debug_assert!(!few || self.used == sum());
        debug_assert_eq!(self.ranks.len(), self.entries.len());
    }
}

#[cfg(test)]
mod tests;
