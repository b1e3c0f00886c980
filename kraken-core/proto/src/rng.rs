//! Chance as the machines see it: a seeded generator that each machine owns.

use rand::seq::SliceRandom;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

/// A seeded generator: the same seed gives the same decisions.
#[derive(Debug, Clone)]
pub struct Rng(Pcg64Mcg);

impl Rng {
    /// A generator from a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            0
        } else {
            self.0.random_range(0..bound)
        }
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        self.0.random::<f64>()
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0.random()
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_sequence() {
        let draw = |seed| {
            let mut rng = Rng::seeded(seed);
            let mut order: Vec<_> = (0..20).collect();
            rng.shuffle(&mut order);
            (rng.next_u64(), rng.below(1000), order)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_eq!(Rng::seeded(1).below(0), 0);
        assert!((0.0..1.0).contains(&Rng::seeded(1).unit()));
    }
}
