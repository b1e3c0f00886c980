//! How fast blobs are asked for.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The longest that one blob may hold up the next: a manifest may lie about sizes.
const MOST: Duration = Duration::from_secs(24 * 3600);

/// Lets blobs be asked for one after the other, each once those before it have had their time at a
/// rate.
///
/// At any moment, what was asked for since the beginning, without the blob that was asked for last, is at
/// most the rate times the time since: `rate × t` bytes. What turns out to be there already does not
/// count. Time in which nobody asks is not made up for.
#[derive(Debug)]
pub struct Pacer {
    /// In bytes per second; no limit when absent.
    rate: Option<NonZeroU64>,
    /// Who is next, in the order of asking.
    queue: tokio::sync::Mutex<()>,
    /// When the next may ask.
    free_at: Mutex<Instant>,
    earlier: Notify,
}

impl Pacer {
    /// One for so many bytes per second, or for any number.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self {
            rate,
            queue: tokio::sync::Mutex::default(),
            free_at: Mutex::new(Instant::now()),
            earlier: Notify::new(),
        }
    }

    /// Waits until a blob of this length may be asked for.
    pub async fn turn(&self, bytes: u64) -> Turn<'_> {
        let cost = self.cost(bytes);
        if self.rate.is_some() {
            let _next = self.queue.lock().await;
            while let Some(free_at) = self.busy_until() {
                tokio::select! {
                    () = sleep_until(free_at) => {}
                    () = self.earlier.notified() => {}
                }
            }
            *self.free_at() = Instant::now() + cost;
        }
        Turn { pacer: self, cost }
    }

    fn cost(&self, bytes: u64) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let seconds = bytes as f64 / rate.get() as f64;
        Duration::try_from_secs_f64(seconds).map_or(MOST, |cost| cost.min(MOST))
    }

    fn busy_until(&self) -> Option<Instant> {
        let free_at = *self.free_at();
        (free_at > Instant::now()).then_some(free_at)
    }

    fn free_at(&self) -> MutexGuard<'_, Instant> {
        self.free_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leave to ask for one blob.
#[derive(Debug)]
#[must_use = "it counts unless it is given back"]
pub struct Turn<'a> {
    pacer: &'a Pacer,
    cost: Duration,
}

impl Turn<'_> {
    /// Gives the time back: the blob was there, or nobody took the question.
    pub fn give_back(self) {
        if self.cost.is_zero() {
            return;
        }
        let mut free_at = self.pacer.free_at();
        if let Some(earlier) = free_at.checked_sub(self.cost) {
            *free_at = earlier;
        }
        drop(free_at);
        self.pacer.earlier.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    fn pacer(rate: u64) -> Pacer {
        Pacer::new(NonZeroU64::new(rate))
    }

    /// When each of these may be asked for, all being asked about at once, in milliseconds.
    async fn turns(pacer: &Pacer, lengths: &[u64], are_there: bool) -> Vec<u128> {
        let began = Instant::now();
        let turns = lengths.iter().map(async |bytes| {
            let turn = pacer.turn(*bytes).await;
            let at = began.elapsed().as_millis();
            if are_there {
                turn.give_back();
            }
            at
        });
        join_all(turns).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_waits_for_the_time_of_those_before_it() {
        let pacer = pacer(1000);
        let at = turns(&pacer, &[500, 2000, 0, 10], false).await;
        assert_eq!(at, [0, 500, 2500, 2500]);
        // Nothing is made up for.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let at = turns(&pacer, &[1000, 1000, 1000], false).await;
        assert_eq!(at, [0, 1000, 2000]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_takes_no_time() {
        let pacer = pacer(1);
        assert_eq!(turns(&pacer, &[u64::MAX; 1000], true).await, [0; 1000]);
        // Also for those that wait already.
        let first = pacer.turn(5000).await;
        let second = async {
            let _second = pacer.turn(1).await;
            Instant::now()
        };
        let began = Instant::now();
        let given_back = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.give_back();
        };
        let (second, ()) = tokio::join!(second, given_back);
        assert!(second - began < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_size_that_cannot_be_holds_nobody_up_for_ever() {
        let pacer = pacer(1);
        let at = turns(&pacer, &[u64::MAX, 1], false).await;
        assert!(
            (MOST.as_millis()..=MOST.as_millis() + 1).contains(&at[1]),
            "{at:?}"
        );
        let free = Pacer::new(None);
        assert_eq!(turns(&free, &[u64::MAX; 3], false).await, [0; 3]);
    }
}
