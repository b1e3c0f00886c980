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

/// For how long this host has run, whatever was done to its clock, and which of its runs this is: by
/// both, a process can tell how long ago something was in an earlier life. None where it cannot be had.
#[cfg(all(feature = "http", feature = "fs"))]
pub(crate) fn host_run() -> Option<(String, std::time::Duration)> {
    let read = |path| std::fs::read_to_string(path).ok();
    let run = read("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let uptime = read("/proc/uptime")?;
    let seconds: f64 = uptime.split(' ').next()?.parse().ok()?;
    let ran = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    (!run.is_empty()).then_some((run, ran))
}

/// Milliseconds since 1970: for what outlives the process.
pub(crate) fn unix_ms() -> u64 {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
