//! A rate, shared fairly: what may go now, and else when.
//!
//! The numbers behind the promise that a limit holds within 2 % over any second:
//!
//! - The burst is 1 % of what the rate lets through in a second, so no second passes more than
//!   101 % ([`Bucket`]'s invariant). The other 1 % is for the shell: bytes that were let go at the
//!   end of one second and reach the wire in the next.
//! - A chunk is a quarter of the burst, and at most 256 KiB. So a shell whose timer is late by
//!   7.5 ms loses nothing of the rate, and a blob waits for one chunk of each other blob, 2.5 ms.
//! - At rates below 400 bytes per second, a chunk of one byte is more than that, and the burst is
//!   one byte where that is more than 1 %.

use std::num::NonZeroU64;

use super::bucket::Bucket;
use super::fair::FairQueue;
use crate::blob::digest::Digest;
use crate::time::Timestamp;

/// The longest chunk in bytes, also without a limit: between two chunks a limit can come up.
pub const MAX_CHUNK: u64 = 256 << 10;

/// Lets chunks of blobs pass at a rate, or as they come when there is no limit.
///
/// ```
/// use std::num::NonZeroU64;
/// use std::time::Duration;
///
/// use kraken_proto::limits::shaper::{Next, Shaper};
/// use kraken_proto::{Digest, Timestamp};
///
/// let (now, blob) = (Timestamp::ZERO, Digest::of(b"blob"));
/// let mut shaper = Shaper::new();
/// shaper.set_rate(now, NonZeroU64::new(1_000_000));
/// assert_eq!(shaper.chunk(), 2500);
/// for chunk in 0..5 {
///     shaper.push(blob, 0, shaper.chunk(), chunk);
/// }
/// for chunk in 0..4 {
///     assert_eq!(shaper.poll(now), Next::Go(chunk));
/// }
/// let later = now + Duration::from_micros(2500);
/// assert_eq!(shaper.poll(now), Next::Wait(later));
/// assert_eq!(shaper.poll(later), Next::Go(4));
/// assert_eq!(shaper.poll(later), Next::Idle);
/// ```
#[derive(Debug, Clone)]
pub struct Shaper<T> {
    limit: Option<Limit>,
    queue: FairQueue<T>,
}

#[derive(Debug, Clone)]
struct Limit {
    rate: NonZeroU64,
    bucket: Bucket,
}

/// What a [`Shaper`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Next<T> {
    /// This chunk passes now. Ask again.
    Go(T),
    /// No chunk passes before that moment.
    Wait(Timestamp),
    /// Nothing waits.
    Idle,
}

impl<T> Shaper<T> {
    /// A shaper without a limit.
    pub const fn new() -> Self {
        Self {
            limit: None,
            queue: FairQueue::new(),
        }
    }

    /// Changes the rate, in bytes per second, from now on; `None` is no limit. What waits keeps
    /// waiting until the next [`Shaper::poll`].
    pub fn set_rate(&mut self, now: Timestamp, rate: Option<NonZeroU64>) {
        self.queue.set_head_start(rate.map_or(0, head_start));
        self.limit = match (rate, self.limit.take()) {
            (Some(rate), Some(Limit { mut bucket, .. })) => {
                bucket.set_rate(now, rate, burst(rate));
                Some(Limit { rate, bucket })
            }
            (Some(rate), None) => {
                let bucket = Bucket::new(rate, burst(rate));
                Some(Limit { rate, bucket })
            }
            (None, _) => None,
        };
    }

    /// The rate in bytes per second.
    pub fn rate(&self) -> Option<NonZeroU64> {
        self.limit.as_ref().map(|limit| limit.rate)
    }

    /// The most bytes to push at once.
    pub fn chunk(&self) -> u64 {
        self.rate().map_or(MAX_CHUNK, chunk)
    }

    /// Queues a chunk: see [`FairQueue::push`].
    pub fn push(&mut self, blob: Digest, rank: u64, bytes: u64, item: T) {
        self.queue.push(blob, rank, bytes, item);
    }

    /// The next chunk, if it may pass now.
    pub fn poll(&mut self, now: Timestamp) -> Next<T> {
        let Some(bytes) = self.queue.next_bytes() else {
            return Next::Idle;
        };
        if let Some(limit) = &mut self.limit
            && let Err(later) = limit.bucket.try_take(now, bytes)
        {
            return Next::Wait(later);
        }
        match self.queue.pop() {
            Some((_, item)) => Next::Go(item),
            None => Next::Idle,
        }
    }

    /// Removes the chunks for which `unwanted` holds. Looks at every one that waits.
    pub fn remove(&mut self, mut unwanted: impl FnMut(&T) -> bool) {
        self.queue.remove(|_, item| unwanted(item));
    }
}

impl<T> Default for Shaper<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that may go at once: 1 % of a second's.
const fn burst(rate: NonZeroU64) -> u64 {
    let burst = rate.get() / 100;
    if burst == 0 { 1 } else { burst }
}

/// Bytes that are asked for at once: a quarter of the burst.
fn chunk(rate: NonZeroU64) -> u64 {
    (burst(rate) / 4).clamp(1, MAX_CHUNK)
}

/// What a blob that comes may have before the others go on: with 4 MiB, a blob of 10 MB beside a
/// large one takes 1.6 times as long as alone. Nobody is held up for longer than a quarter of a
/// second.
pub fn head_start(rate: NonZeroU64) -> u64 {
    (rate.get() / 4).min(4 << 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn blob(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    /// Senders that each push their next chunk when the last one has passed, and what passed when.
    struct Senders {
        shaper: Shaper<(u8, u64)>,
        now: Timestamp,
        passed: Vec<(Timestamp, u8, u64)>,
    }

    impl Senders {
        /// `each[b]` senders of blob `b`.
        fn start(rate: Option<u64>, each: &[usize]) -> Self {
            let mut senders = Self {
                shaper: Shaper::new(),
                now: Timestamp::ZERO,
                passed: Vec::new(),
            };
            senders.set_rate(rate);
            for (of, count) in (0..).zip(each) {
                (0..*count).for_each(|_| senders.push(of));
            }
            senders
        }

        fn set_rate(&mut self, rate: Option<u64>) {
            self.shaper
                .set_rate(self.now, rate.and_then(NonZeroU64::new));
        }

        fn push(&mut self, of: u8) {
            let bytes = self.shaper.chunk();
            self.shaper.push(blob(of), 0, bytes, (of, bytes));
        }

        /// Runs with a timer that is late by up to `late`.
        fn run(&mut self, span: Duration, late: Duration) {
            let end = self.now + span;
            while self.now < end {
                match self.shaper.poll(self.now) {
                    Next::Go((of, bytes)) => {
                        self.passed.push((self.now, of, bytes));
                        self.push(of);
                    }
                    Next::Wait(at) => self.now = at + late,
                    Next::Idle => panic!("someone always waits"),
                }
            }
        }

        /// Bytes that passed, of one blob.
        fn sum(&self, of: u8) -> u64 {
            let passed = self.passed.iter().filter(|(_, blob, _)| *blob == of);
            passed.map(|(.., bytes)| bytes).sum()
        }

        /// The least and the most that passed in a second, over all seconds from a moment on.
        fn extremes(&self, from: Timestamp) -> (u64, u64) {
            let sums = std::iter::once(0).chain(self.passed.iter().scan(0, |sum, (.., bytes)| {
                *sum += bytes;
                Some(*sum)
            }));
            let sums: Vec<u64> = sums.collect();
            let before = |at| self.passed.partition_point(|(when, ..)| *when < at);
            let instant = Duration::from_nanos(1);
            let mut extremes = (u64::MAX, 0);
            for &(at, ..) in &self.passed {
                if at < from || at + SECOND + instant > self.now {
                    continue;
                }
                // A second that begins with a chunk holds the most, one just after it the least.
                let most = sums[before(at + SECOND)] - sums[before(at)];
                let least = sums[before(at + instant + SECOND)] - sums[before(at + instant)];
                extremes = (extremes.0.min(least), extremes.1.max(most));
            }
            assert!(extremes.1 > 0, "no second is as long");
            extremes
        }
    }

    #[test]
    fn a_change_of_the_rate_holds_from_the_next_second_on() {
        let mut senders = Senders::start(Some(10_000_000), &[3]);
        senders.run(2 * SECOND, Duration::ZERO);
        let changed = senders.now;
        senders.set_rate(Some(1_000_000));
        senders.run(2 * SECOND, Duration::ZERO);
        // At most three chunks of the old size may be ahead of the new ones.
        let (least, most) = senders.extremes(changed);
        assert!(most <= 1_010_000 && least >= 975_000, "{least} {most}");
        let changed = senders.now;
        senders.set_rate(Some(5_000_000));
        senders.run(2 * SECOND, Duration::ZERO);
        let (least, most) = senders.extremes(changed);
        assert!(most <= 5_050_000 && least >= 4_900_000, "{least} {most}");
    }

    #[test]
    fn no_limit_withholds_nothing_and_a_limit_that_goes_frees_all() {
        let mut shaper = Shaper::new();
        (0..9).for_each(|item| shaper.push(blob(1), 0, MAX_CHUNK, item));
        assert_eq!(shaper.poll(Timestamp::ZERO), Next::Go(0));
        shaper.set_rate(Timestamp::ZERO, NonZeroU64::new(1000));
        assert_eq!(shaper.poll(Timestamp::ZERO), Next::Go(1));
        let Next::Wait(at) = shaper.poll(Timestamp::ZERO) else {
            panic!("a chunk of 256 KiB is 4 minutes of the rate");
        };
        assert!(at > Timestamp::ZERO + 200 * SECOND);
        shaper.set_rate(Timestamp::ZERO, None);
        shaper.remove(|item| *item == 5);
        let all: Vec<_> = (0..7).map(|_| shaper.poll(Timestamp::ZERO)).collect();
        assert_eq!(all[5..], [Next::Go(8), Next::Idle]);
    }

    #[test]
    fn a_late_timer_costs_nothing() {
        let late = Duration::from_micros(7400);
        let mut senders = Senders::start(Some(20_000_000), &[1]);
        senders.run(3 * SECOND, late);
        let (least, most) = senders.extremes(Timestamp::ZERO);
        assert!(least >= 19_600_000 && most <= 20_200_000, "{least} {most}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_second_holds_within_two_percent(
            rate in prop_oneof![500_u64..100_000, 100_000_u64..1 << 33],
            each in prop::collection::vec(1_usize..4, 1..4),
        ) {
            let mut senders = Senders::start(Some(rate), &each);
            senders.run(Duration::from_millis(2100), Duration::ZERO);
            let (least, most) = senders.extremes(Timestamp::ZERO);
            prop_assert!(most * 100 <= rate * 102, "{most} at {rate}");
            prop_assert!(least * 100 >= rate * 98, "{least} at {rate}");
        }

        #[test]
        fn blobs_get_equal_parts_however_many_senders_they_have(
            rate in 10_000_u64..1 << 33,
            each in prop::collection::vec(1_usize..20, 2..5),
        ) {
            let mut senders = Senders::start(Some(rate), &each);
            senders.run(2 * SECOND, Duration::ZERO);
            let chunk = senders.shaper.chunk();
            let sums: Vec<_> = (0..each.len() as u8)
                .map(|of| senders.sum(of))
                .collect();
            let (least, most) = (sums.iter().min().unwrap(), sums.iter().max().unwrap());
            prop_assert!(most - least <= 2 * chunk, "{sums:?} in chunks of {chunk}");
        }
    }
}
