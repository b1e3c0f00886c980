//! Bytes per second, over the clock of the runtime.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kraken_proto::Timestamp;
use kraken_proto::limits::bucket::Bucket;
use tokio::time::Instant;

/// A rate that all who share this keep together.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    bucket: Mutex<Bucket>,
}

impl Pace {
    /// What may pass at once: a tenth of a second's worth.
    const BURST: Duration = Duration::from_millis(100);

    /// A rate in bytes per second.
    pub fn new(rate: NonZeroU64) -> Self {
        let burst = u128::from(rate.get()) * Self::BURST.as_millis() / 1000;
        let burst = u64::try_from(burst).unwrap_or(u64::MAX);
        Self {
            started: Instant::now(),
            bucket: Mutex::new(Bucket::new(rate, burst)),
        }
    }

    /// Waits until `bytes` may go.
    pub async fn pass(&self, bytes: u64) {
        let now = self.started.elapsed();
        let now = Timestamp::from_nanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        let may = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(now, bytes)
        };
        if let Some(may) = may {
            let at = self.started + Duration::from_nanos(may.as_nanos());
            tokio::time::sleep_until(at).await;
        }
    }
}
