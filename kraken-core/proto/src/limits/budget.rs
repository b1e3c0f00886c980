//! A budget of bytes in memory, shared among blobs.
//!
//! Invariant: what is held never exceeds the budget, and no blob holds more than what was free when
//! it took its last part. So one blob alone gets half of the budget, `n` blobs get one part in
//! `n + 1` each, and a blob that has just come finds room at once. (The dynamic threshold of
//! Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998.)

use std::collections::{BTreeMap, VecDeque};

use crate::blob::digest::Digest;

/// Hands out a fixed number of bytes, the next part to the blob that holds the least.
///
/// ```
/// use kraken_proto::Digest;
/// use kraken_proto::limits::budget::Budget;
///
/// let (large, small) = (Digest::of(b"large"), Digest::of(b"small"));
/// let mut budget = Budget::new(8);
/// for piece in 0..8 {
///     budget.push(large, 1, piece);
/// }
/// assert_eq!(std::iter::from_fn(|| budget.pop()).count(), 4);
/// budget.push(small, 1, 100);
/// assert_eq!(budget.pop(), Some((small, 100)));
/// ```
#[derive(Debug, Clone)]
pub struct Budget<T> {
    total: u64,
    held: u64,
    blobs: BTreeMap<Digest, Part<T>>,
    last: u64,
}

#[derive(Debug, Clone)]
struct Part<T> {
    held: u64,
    waiting: VecDeque<Waiting<T>>,
}

#[derive(Debug, Clone)]
struct Waiting<T> {
    number: u64,
    bytes: u64,
    item: T,
}

impl<T> Budget<T> {
    /// A budget of `total` bytes. Give it several times the longest part that is asked for.
    pub const fn new(total: u64) -> Self {
        Self {
            total,
            held: 0,
            blobs: BTreeMap::new(),
            last: 0,
        }
    }

    /// Asks for room. More than the whole budget is cut to it.
    pub fn push(&mut self, blob: Digest, bytes: u64, item: T) {
        self.last += 1;
        let waiting = Waiting {
            number: self.last,
            bytes: bytes.min(self.total),
            item,
        };
        let part = self.blobs.entry(blob).or_insert_with(|| Part {
            held: 0,
            waiting: VecDeque::new(),
        });
        part.waiting.push_back(waiting);
    }

    /// Gives room to the first of the blob that holds the least. When that does not fit, nobody
    /// gets any: smaller ones would keep it from ever fitting.
    pub fn pop(&mut self) -> Option<(Digest, T)> {
        let free = self.total - self.held;
        let next = self.blobs.iter_mut().filter_map(|(blob, part)| {
            let first = part.waiting.front()?;
            Some(((part.held, first.number), blob, first.bytes, part))
        });
        let (_, blob, bytes, part) = next.min_by_key(|(order, ..)| *order)?;
        if part.held + bytes > free {
            return None;
        }
        let Waiting { item, .. } = part.waiting.pop_front()?;
        part.held += bytes;
        self.held += bytes;
        Some((*blob, item))
    }

    /// Takes room back: as many bytes as were asked for.
    pub fn release(&mut self, blob: Digest, bytes: u64) {
        let bytes = bytes.min(self.total);
        let Some(part) = self.blobs.get_mut(&blob) else {
            return;
        };
        let bytes = bytes.min(part.held);
        part.held -= bytes;
        self.held -= bytes;
        if part.held == 0 && part.waiting.is_empty() {
            self.blobs.remove(&blob);
        }
    }

    /// Removes those who wait and for whom `unwanted` holds. Looks at every one.
    pub fn remove(&mut self, mut unwanted: impl FnMut(&T) -> bool) {
        self.blobs.retain(|_, part| {
            part.waiting.retain(|waiting| !unwanted(&waiting.item));
            part.held > 0 || !part.waiting.is_empty()
        });
    }

    /// Bytes that are held.
    pub const fn held(&self) -> u64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn pops<T>(budget: &mut Budget<T>) -> Vec<T> {
        std::iter::from_fn(|| budget.pop())
            .map(|(_, item)| item)
            .collect()
    }

    #[test]
    fn the_blob_that_holds_least_is_next_and_its_oldest_first() {
        let mut budget = Budget::new(100);
        for (of, item) in [(1, 'a'), (1, 'b'), (2, 'c'), (1, 'd'), (2, 'e')] {
            budget.push(blob(of), 5, item);
        }
        assert_eq!(pops(&mut budget), ['a', 'c', 'b', 'e', 'd']);
        assert_eq!(budget.held(), 25);
    }

    #[test]
    fn a_newcomer_finds_room_beside_a_dozen_greedy_ones() {
        let mut budget = Budget::new(120);
        for of in 0..12 {
            (0..100).for_each(|_| budget.push(blob(of), 1, of));
        }
        assert!(pops(&mut budget).len() >= 108);
        budget.push(blob(99), 5, 99);
        assert_eq!(budget.pop(), Some((blob(99), 99)));
    }

    #[test]
    fn a_long_part_is_not_overtaken_for_ever() {
        let mut budget = Budget::new(10);
        (0..5).for_each(|item| budget.push(blob(1), 1, item));
        assert_eq!(pops(&mut budget).len(), 5);
        budget.push(blob(2), 10, 100);
        for item in 0..5 {
            budget.push(blob(1), 1, item);
            assert_eq!(budget.pop(), None);
            budget.release(blob(1), 1);
        }
        assert_eq!(budget.pop(), Some((blob(2), 100)));
    }

    #[test]
    fn too_long_a_part_gets_everything() {
        let mut budget = Budget::new(10);
        budget.push(blob(1), 1000, 'a');
        assert_eq!(budget.pop(), Some((blob(1), 'a')));
        assert_eq!(budget.held(), 10);
        budget.release(blob(1), 1000);
        assert!(budget.held() == 0 && budget.blobs.is_empty());
    }

    #[test]
    fn those_who_left_do_not_stand_in_the_way() {
        let mut budget = Budget::new(10);
        budget.push(blob(1), 5, 'a');
        budget.push(blob(2), 5, 'b');
        budget.remove(|item| *item == 'a');
        assert_eq!(pops(&mut budget), ['b']);
        budget.release(blob(2), 5);
        assert!(budget.blobs.is_empty());
        budget.release(blob(2), 5);
        assert_eq!(budget.held(), 0);
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_everybody_gets_a_part_in_the_end(
            steps in prop::collection::vec((0_u8..5, 1_u64..20), 1..200),
        ) {
            let total = 50;
            let mut budget = Budget::new(total);
            let mut holding = VecDeque::new();
            let mut given = 0;
            let arrivals = steps.iter().copied().map(Some);
            for arrival in arrivals.chain(std::iter::repeat_n(None, steps.len())) {
                if let Some((of, bytes)) = arrival {
                    budget.push(blob(of), bytes, (of, bytes));
                }
                while let Some((_, item)) = budget.pop() {
                    holding.push_back(item);
                    given += 1;
                }
                let held: u64 = holding.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!(held, budget.held());
                prop_assert!(held <= total);
                // Slower than they come, and then to the end.
                let done = if arrival.is_some() && given % 2 == 1 { None } else { holding.pop_front() };
                if let Some((of, bytes)) = done {
                    budget.release(blob(of), bytes);
                }
            }
            prop_assert_eq!(given, steps.len());
            prop_assert!(budget.blobs.is_empty());
        }
    }
}
