//! A token bucket that may be in debt.
//!
//! Invariant: of the takes no longer than the burst, those that may proceed within any span of
//! `t` seconds sum up to at most `rate × t + burst` bytes.
//!
//! The bucket keeps one number, the moment at which its debt is paid (the "theoretical arrival
//! time" of the generic cell rate algorithm, ITU-T I.371): each take moves it on by the time that
//! its bytes cost, and may proceed as long as that moment is at most a burst ahead of the
//! present. There is nothing to refill, so an idle bucket needs no timer.
//! That moment is kept in nanoseconds times the rate, where a byte costs 10⁹: no rounding.

use std::num::NonZeroU64;

use crate::time::Timestamp;

/// Limits bytes per second, with a burst.
///
/// ```
/// use std::num::NonZeroU64;
/// use std::time::Duration;
///
/// use kraken_proto::limits::bucket::Bucket;
/// use kraken_proto::Timestamp;
///
/// let rate = NonZeroU64::new(1_000_000).unwrap();
/// let mut bucket = Bucket::new(rate, 500_000);
/// let now = Timestamp::ZERO;
/// assert_eq!(bucket.take(now, 500_000), None);
/// assert_eq!(bucket.take(now, 250_000), Some(now + Duration::from_millis(250)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    rate: u128,
    burst: u128,
    paid_at: u128,
}

impl Bucket {
    /// A full bucket: `rate` in bytes per second, and at most `burst` bytes at once.
    ///
    /// A take longer than the burst proceeds when the bucket would hold that much if it could, so
    /// choose a burst of at least the longest take.
    pub const fn new(rate: NonZeroU64, burst: u64) -> Self {
        Self {
            rate: rate.get() as u128,
            burst: burst as u128 * BYTE,
            paid_at: 0,
        }
    }

    /// Changes rate and burst from now on, the bucket being as full, or as deep in debt, as it was:
    /// a change lets nothing through by itself, and nobody pays again for what went before.
    ///
    /// A bucket that holds more than the new burst loses the excess. What [`Bucket::take`] has
    /// promised stays promised.
    pub fn set_rate(&mut self, now: Timestamp, rate: NonZeroU64, burst: u64) {
        let debt = self
            .paid_at
            .saturating_sub(u128::from(now.as_nanos()) * self.rate);
        let burst = u128::from(burst) * BYTE;
        self.rate = u128::from(rate.get());
        let debt = debt.saturating_add(burst).saturating_sub(self.burst);
        self.paid_at = (u128::from(now.as_nanos()) * self.rate).saturating_add(debt);
        self.burst = burst;
    }

    /// Takes `bytes` for good and says when the caller may proceed: `None` is now. Callers are
    /// served in the order in which they ask.
    #[must_use = "the bytes are charged: proceed, but not before that moment"]
    pub fn take(&mut self, now: Timestamp, bytes: u64) -> Option<Timestamp> {
        let (paid_at, may) = self.quote(now, bytes, self.burst);
        self.paid_at = paid_at;
        (may > now).then_some(may)
    }

    /// Takes `bytes` if the caller may proceed now; charges nothing otherwise. More than the burst
    /// may proceed when the bucket is full, and leaves it in debt: it would never hold as much.
    ///
    /// # Errors
    /// The moment from which on it would succeed, if nobody else takes anything before.
    pub fn try_take(&mut self, now: Timestamp, bytes: u64) -> Result<(), Timestamp> {
        let cost = u128::from(bytes) * BYTE;
        let (paid_at, may) = self.quote(now, bytes, self.burst.max(cost));
        if may > now {
            return Err(may);
        }
        self.paid_at = paid_at;
        Ok(())
    }

    /// When the debt with `bytes` would be paid, and when these bytes may go: as soon as no more
    /// than `credit` of it is left.
    fn quote(&self, now: Timestamp, bytes: u64, credit: u128) -> (u128, Timestamp) {
        let start = self.paid_at.max(u128::from(now.as_nanos()) * self.rate);
        let paid_at = start.saturating_add(u128::from(bytes) * BYTE);
        let nanos = paid_at.saturating_sub(credit).div_ceil(self.rate);
        let may = Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        (paid_at, may)
    }
}

/// What a byte costs, in nanoseconds times bytes per second.
const BYTE: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn bucket(rate: u64, burst: u64) -> Bucket {
        Bucket::new(NonZeroU64::new(rate).unwrap(), burst)
    }

    fn millis(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = bucket(1000, 500);
        assert_eq!(bucket.take(millis(0), 500), None);
        assert_eq!(bucket.take(millis(0), 100), Some(millis(100)));
        assert_eq!(bucket.take(millis(50), 100), Some(millis(200)));
        // Idle for long enough that it is full again, and not fuller.
        assert_eq!(bucket.take(millis(5000), 500), None);
        assert_eq!(bucket.take(millis(5000), 1), Some(millis(5001)));
    }

    #[test]
    fn a_refused_try_charges_nothing() {
        let mut bucket = bucket(1000, 100);
        assert_eq!(bucket.try_take(millis(0), 100), Ok(()));
        assert_eq!(bucket.try_take(millis(0), 50), Err(millis(50)));
        assert_eq!(bucket.try_take(millis(10), 50), Err(millis(50)));
        assert_eq!(bucket.try_take(millis(50), 50), Ok(()));
    }

    #[test]
    fn a_take_longer_than_the_burst_waits_for_its_excess() {
        let mut bucket = bucket(1000, 100);
        assert_eq!(bucket.take(millis(0), 300), Some(millis(200)));
        assert_eq!(bucket.take(millis(0), 100), Some(millis(300)));
    }

    #[test]
    fn a_try_longer_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
        let mut bucket = bucket(1000, 100);
        assert_eq!(bucket.try_take(millis(0), 50), Ok(()));
        assert_eq!(bucket.try_take(millis(0), 300), Err(millis(50)));
        assert_eq!(bucket.try_take(millis(50), 300), Ok(()));
        assert_eq!(bucket.try_take(millis(50), 1), Err(millis(251)));
    }

    #[test]
    fn a_change_of_the_rate_keeps_what_is_there() {
        let new = |rate| NonZeroU64::new(rate).unwrap();
        // Full: twice the burst has to be earned.
        let mut bucket = bucket(1000, 100);
        bucket.set_rate(millis(0), new(2000), 200);
        assert_eq!(bucket.try_take(millis(0), 100), Ok(()));
        assert_eq!(bucket.try_take(millis(0), 100), Err(millis(50)));
        // Half full, and slower from now on.
        bucket.set_rate(millis(25), new(10), 200);
        assert_eq!(bucket.try_take(millis(25), 51), Err(millis(125)));
        assert_eq!(bucket.try_take(millis(25), 50), Ok(()));
        // A debt is a number of bytes, and is paid at the new rate.
        assert_eq!(bucket.take(millis(25), 10), Some(millis(1025)));
        bucket.set_rate(millis(25), new(1000), 10);
        assert_eq!(bucket.try_take(millis(25), 1), Err(millis(36)));
    }

    #[test]
    fn a_rate_set_again_and_again_lets_nothing_more_through() {
        let mut bucket = bucket(1_000_000, 10_000);
        let rate = NonZeroU64::new(1_000_000).unwrap();
        let mut sum = 0;
        for now in 0..1000 {
            while bucket.try_take(millis(now), 500).is_ok() {
                sum += 500;
            }
            bucket.set_rate(millis(now), NonZeroU64::MIN, 1);
            bucket.set_rate(millis(now), rate, 10_000);
        }
        assert!((990_000..=1_010_000).contains(&sum), "{sum}");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut slow = bucket(1, 0);
        let never = slow.take(millis(0), u64::MAX).unwrap();
        assert_eq!(never.as_nanos(), u64::MAX);
        assert!(slow.take(millis(1), u64::MAX).is_some());
        slow.set_rate(Timestamp::from_nanos(u64::MAX), NonZeroU64::MAX, u64::MAX);
        assert!(slow.take(millis(1), u64::MAX).is_some());
        let mut fast = bucket(u64::MAX, u64::MAX);
        assert_eq!(fast.take(millis(0), u64::MAX / 2), None);
        assert_eq!(fast.take(millis(0), 0), None);
    }

    /// When each take proceeds, with its bytes.
    fn run(mut bucket: Bucket, takes: &[(u64, u64)]) -> Vec<(Timestamp, u64)> {
        let mut now = Timestamp::ZERO;
        takes
            .iter()
            .map(|&(gap, bytes)| {
                now = now + Duration::from_nanos(gap);
                (bucket.take(now, bytes).unwrap_or(now), bytes)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_rate_and_burst(
            rate in 1_u64..1 << 40,
            burst in 1_u64..1 << 26,
            takes in prop::collection::vec((0_u64..50_000_000, 0_u64..1 << 26), 1..60),
        ) {
            let takes: Vec<_> = takes.into_iter().map(|(gap, bytes)| (gap, bytes % (burst + 1))).collect();
            let went = run(bucket(rate, burst), &takes);
            for first in 0..went.len() {
                let mut sum = 0;
                for (at, bytes) in &went[first..] {
                    sum += u128::from(*bytes);
                    let nanos = at.since(went[first].0).as_nanos();
                    let allowed = u128::from(burst) * BYTE + u128::from(rate) * nanos;
                    prop_assert!(sum * BYTE <= allowed, "{} bytes in {} ns", sum, nanos);
                }
            }
        }

        #[test]
        fn a_busy_bucket_delivers_its_rate(rate in 1_000_u64..1 << 33, each in 1_000_u64..1 << 20) {
            let count = 200;
            let went = run(bucket(rate, each), &vec![(0, each); count as usize]);
            let took = went[went.len() - 1].0.as_nanos() as f64 / 1e9;
            let ideal = ((count - 1) * each) as f64 / rate as f64;
            prop_assert!((took - ideal).abs() <= 2e-9 + 1e-12 * ideal, "{took} {ideal}");
        }

        #[test]
        fn nobody_overtakes(takes in prop::collection::vec((0_u64..1_000_000, 0_u64..1 << 20), 1..60)) {
            let went = run(bucket(1 << 24, 1 << 16), &takes);
            prop_assert!(went.is_sorted_by_key(|(at, _)| *at));
        }
    }
}
