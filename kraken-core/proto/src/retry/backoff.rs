//! How long to wait before the next attempt.

use std::time::Duration;

use crate::rng::Rng;

/// Waits that double with each failure up to a ceiling, spread by chance so that many callers
/// that failed together do not come back together.
///
/// It owns no clock and no generator: ask [`Backoff::delay`] after a failure, add the answer to
/// the present, and call [`Backoff::reset`] after a success.
///
/// ```
/// use std::time::Duration;
///
/// use kraken_proto::retry::backoff::{Backoff, Jitter};
/// use kraken_proto::rng::Rng;
///
/// let mut rng = Rng::seeded(1);
/// let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), Jitter::Equal);
/// let first = backoff.delay(&mut rng);
/// assert!((Duration::from_millis(50)..=Duration::from_millis(100)).contains(&first));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    ceiling: Duration,
    jitter: Jitter,
    failures: u32,
}

impl Backoff {
    /// Waits of `base`, twice `base`, four times `base`, … and at most `ceiling`, before jitter.
    pub const fn new(base: Duration, ceiling: Duration, jitter: Jitter) -> Self {
        Self {
            base,
            ceiling,
            jitter,
            failures: 0,
        }
    }

    /// The same waits, after `failures` that happened before: for a task that was read back from
    /// a durable queue.
    #[must_use]
    pub const fn resumed(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    /// Counts one failure and says how long to wait after it.
    pub fn delay(&mut self, rng: &mut Rng) -> Duration {
        let longest = self.longest();
        self.failures = self.failures.saturating_add(1);
        match self.jitter {
            Jitter::None => longest,
            Jitter::Equal => longest / 2 + (longest / 2).mul_f64(rng.unit()),
            Jitter::Full => longest.mul_f64(rng.unit()),
        }
    }

    /// Forgets the failures: the next wait is short again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The failures since the last [`Backoff::reset`].
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The next wait without jitter.
    fn longest(&self) -> Duration {
        // 2^31 already takes a nanosecond past two seconds; a larger factor only meets the
        // ceiling sooner.
        let factor = 1_u32 << self.failures.min(31);
        self.base.saturating_mul(factor).min(self.ceiling)
    }
}

/// How a wait is spread. The names and the comparison are those of Brooker, "Exponential Backoff
/// And Jitter" (AWS Architecture Blog, 2015).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jitter {
    /// Not at all: for one caller alone.
    None,
    /// Half of the wait is fixed, half is chance: where a retry at once would hurt, such as a
    /// ban.
    Equal,
    /// All of the wait is chance, from nothing: fewest collisions when many callers compete.
    Full,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    const BASE: Duration = Duration::from_millis(100);
    const CEILING: Duration = Duration::from_secs(3);

    #[test]
    fn doubles_up_to_the_ceiling_and_starts_again_after_a_reset() {
        let mut rng = Rng::seeded(0);
        let mut backoff = Backoff::new(BASE, CEILING, Jitter::None);
        let mut millis = || backoff.delay(&mut rng).as_millis();
        let waits: Vec<_> = (0..7).map(|_| millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3000, 3000]);
        assert_eq!(backoff.failures(), 7);
        backoff.reset();
        assert_eq!(backoff.delay(&mut rng), BASE);
    }

    #[test]
    fn a_resumed_backoff_goes_on_where_it_was() {
        let mut rng = Rng::seeded(0);
        let mut backoff = Backoff::new(BASE, CEILING, Jitter::None).resumed(3);
        assert_eq!(backoff.delay(&mut rng), 8 * BASE);
        let mut old = Backoff::new(BASE, Duration::MAX, Jitter::None).resumed(u32::MAX);
        assert!(old.delay(&mut rng) > Duration::from_secs(86_400));
        assert_eq!(old.failures(), u32::MAX);
    }

    #[test]
    fn jitter_uses_its_whole_range() {
        let mut rng = Rng::seeded(5);
        for (jitter, low) in [(Jitter::Full, 0.0), (Jitter::Equal, 0.5)] {
            let waits: Vec<_> = (0..1000)
                .map(|_| Backoff::new(BASE, CEILING, jitter).delay(&mut rng))
                .map(|wait| wait.as_secs_f64() / BASE.as_secs_f64())
                .collect();
            let within = |from, to| waits.iter().filter(|at| (from..to).contains(*at)).count();
            let width = (1.0 - low) / 4.0;
            for quarter in 0..4 {
                let from = low + f64::from(quarter) * width;
                // 250 expected; five standard deviations are about 68.
                let found = within(from, from + width);
                assert!((180..320).contains(&found), "{jitter:?} {quarter}: {found}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_wait_never_passes_the_ceiling(
            base in 0_u64..1 << 40,
            ceiling in 0_u64..1 << 42,
            failures in any::<u32>(),
            seed in any::<u64>(),
        ) {
            let (base, ceiling) = (Duration::from_nanos(base), Duration::from_nanos(ceiling));
            for jitter in [Jitter::None, Jitter::Equal, Jitter::Full] {
                let mut backoff = Backoff::new(base, ceiling, jitter).resumed(failures);
                prop_assert!(backoff.delay(&mut Rng::seeded(seed)) <= ceiling);
            }
        }

        #[test]
        fn one_seed_gives_one_sequence(seed in any::<u64>()) {
            let run = || {
                let mut rng = Rng::seeded(seed);
                let mut backoff = Backoff::new(BASE, CEILING, Jitter::Full);
                (0..10).map(|_| backoff.delay(&mut rng)).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }
    }
}
