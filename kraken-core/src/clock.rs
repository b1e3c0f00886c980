//! The one place that reads time.

use kraken_proto::Timestamp;
use tokio::time::Instant;

/// Turns the runtime's monotonic clock into the machines' timestamps: a test can pause it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose zero is now.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.start.elapsed()
    }

    /// The moment of a timestamp, for a timer.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        self.start + at.since(Timestamp::ZERO)
    }
}

/// Milliseconds since 1970: for what outlives the process.
pub(crate) fn unix_ms() -> u64 {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
