//! The pieces to ask for, by how many neighbours have them.
//!
//! Invariant: a piece that is *open* (missing here and asked of nobody) is in exactly one bucket,
//! that of its count; any other piece is in none. Every change costs O(1).
//!
//! Ties are broken at random. Breaking them by index makes every host want the same piece next:
//! a simulated swarm of 2,600 hosts then takes fifty times as long.

use std::ops::RangeBounds;

use crate::blob::bitfield::Bitfield;
use crate::rng::Rng;

/// Counts and buckets of one blob's pieces.
#[derive(Debug)]
pub(crate) struct Rarest {
    /// What is known of each piece, side by side: news of a piece touches both.
    pieces: Vec<Piece>,
    /// The open pieces by count.
    buckets: Vec<Vec<u32>>,
    /// The open pieces once more, to compare them with what a neighbour has.
    open: Bitfield,
}

/// One piece: where it waits to be asked for, and who could be asked.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where an open piece lies in its bucket; `CLOSED` for the others.
    slot: u32,
    /// How many agents among the neighbours have it. Origins do not count: a piece that only they
    /// have is the rarest of all.
    count: u16,
}

const CLOSED: u32 = u32::MAX;

impl Rarest {
    /// All pieces that `have` lacks are open, nobody has any.
    pub(crate) fn new(have: &Bitfield) -> Self {
        let len = have.len() as usize;
        let unknown = Piece {
            slot: CLOSED,
            count: 0,
        };
        let mut rarest = Self {
            pieces: vec![unknown; len],
            buckets: vec![Vec::new()],
            open: Bitfield::empty(have.len()),
        };
        have.missing().for_each(|piece| rarest.open(piece));
        rarest
    }

    /// How many pieces are open.
    pub(crate) fn open_count(&self) -> u32 {
        self.open.count()
    }

    /// Whether no open piece is in `have`.
    pub(crate) fn has_none_of(&self, have: &Bitfield) -> bool {
        self.open.is_disjoint(have)
    }

    /// Whether `piece` is missing and asked of nobody.
    pub(crate) fn is_open(&self, piece: u32) -> bool {
        self.pieces
            .get(piece as usize)
            .is_some_and(|it| it.slot != CLOSED)
    }

    /// How many agents among the neighbours have `piece`.
    pub(crate) fn count(&self, piece: u32) -> u16 {
        self.pieces[piece as usize].count
    }

    /// `piece` may be asked for (again).
    pub(crate) fn open(&mut self, piece: u32) {
        if self.pieces[piece as usize].slot == CLOSED {
            self.put(piece);
            self.open.insert(piece);
        }
    }

    /// `piece` has arrived or is asked for.
    pub(crate) fn close(&mut self, piece: u32) {
        if self.is_open(piece) {
            self.take(piece);
            self.open.remove(piece);
        }
    }

    /// One more agent has `piece`.
    pub(crate) fn more(&mut self, piece: u32) {
        self.recount(piece, |count| count.saturating_add(1));
    }

    /// One agent fewer has `piece`.
    pub(crate) fn fewer(&mut self, piece: u32) {
        self.recount(piece, |count| count.saturating_sub(1));
    }

    /// The rarest open piece whose count lies in `counts` and which `eligible` accepts; of equals
    /// a random one.
    pub(crate) fn pick(
        &self,
        counts: impl RangeBounds<u16>,
        rng: &mut Rng,
        eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let within = |(count, _): &(usize, &Vec<u32>)| {
            u16::try_from(*count).is_ok_and(|count| counts.contains(&count))
        };
        self.buckets
            .iter()
            .enumerate()
            .filter(within)
            .find_map(|(_, bucket)| {
                let start = rng.below(bucket.len());
                let (before, after) = bucket.split_at(start);
                after
                    .iter()
                    .chain(before)
                    .copied()
                    .find(|piece| eligible(*piece))
            })
    }

    fn recount(&mut self, piece: u32, change: impl Fn(u16) -> u16) {
        let open = self.is_open(piece);
        if open {
            self.take(piece);
        }
        let count = &mut self.pieces[piece as usize].count;
        *count = change(*count);
        if open {
            self.put(piece);
        }
    }

    fn put(&mut self, piece: u32) {
        let count = self.pieces[piece as usize].count as usize;
        if self.buckets.len() <= count {
            self.buckets.resize_with(count + 1, Vec::new);
        }
        let bucket = &mut self.buckets[count];
        self.pieces[piece as usize].slot = u32::try_from(bucket.len()).expect("at most MAX_PIECES");
        bucket.push(piece);
    }

    fn take(&mut self, piece: u32) {
        let it = &mut self.pieces[piece as usize];
        let bucket = &mut self.buckets[it.count as usize];
        let slot = std::mem::replace(&mut it.slot, CLOSED);
        bucket.swap_remove(slot as usize);
        if let Some(moved) = bucket.get(slot as usize) {
            self.pieces[*moved as usize].slot = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    proptest! {
        #[test]
        fn agrees_with_a_naive_model(ops in prop::collection::vec((0u8..4, 0u32..12), 0..120), seed in any::<u64>()) {
            let mut rarest = Rarest::new(&Bitfield::empty(12));
            let mut model: BTreeMap<u32, (u16, bool)> = (0..12).map(|p| (p, (0, true))).collect();
            for (op, piece) in ops {
                let entry = model.get_mut(&piece).unwrap();
                match op {
                    0 => { rarest.open(piece); entry.1 = true; }
                    1 => { rarest.close(piece); entry.1 = false; }
                    2 => { rarest.more(piece); entry.0 += 1; }
                    _ => { rarest.fewer(piece); entry.0 = entry.0.saturating_sub(1); }
                }
                prop_assert_eq!(rarest.count(piece), model[&piece].0);
            }
            prop_assert_eq!(rarest.open_count() as usize, model.values().filter(|e| e.1).count());
            let odd = |piece: u32| piece % 2 == 1;
            let least = model.iter().filter(|(p, e)| e.1 && odd(**p)).map(|(_, e)| e.0).min();
            let picked = rarest.pick(.., &mut Rng::seeded(seed), odd);
            prop_assert_eq!(picked.map(|piece| model[&piece].0), least);
            prop_assert!(picked.is_none_or(|piece| model[&piece].1 && odd(piece)));
        }
    }

    #[test]
    fn ties_are_random_and_ranges_hold() {
        let mut rarest = Rarest::new(&Bitfield::empty(64));
        let mut rng = Rng::seeded(3);
        let picks: std::collections::BTreeSet<_> = (0..200)
            .filter_map(|_| rarest.pick(.., &mut rng, |_| true))
            .collect();
        assert!(
            picks.len() > 40,
            "only {} different pieces in 200 draws",
            picks.len()
        );
        (0..63).for_each(|piece| rarest.more(piece));
        assert_eq!(rarest.pick(..=0, &mut rng, |_| true), Some(63));
        assert_ne!(rarest.pick(1.., &mut rng, |_| true), Some(63));
        assert_eq!(rarest.pick(2.., &mut rng, |_| true), None);
    }
}
