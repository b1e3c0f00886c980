//! What passes in any window of time.

use std::fmt;
use std::time::{Duration, Instant};

const MB: f64 = 1e6;
/// Between two looks at a count.
const LOOK: Duration = Duration::from_millis(5);

/// A count that was watched: what every window of some length held, whenever it began.
#[derive(Debug)]
pub struct Watched {
    window: Duration,
    /// In windows that follow each other, in MB.
    windows: Vec<f64>,
    least: f64,
    most: f64,
}

impl Watched {
    /// Looks at `count`, of bytes, for so long.
    pub async fn of(time: Duration, window: Duration, count: impl Fn() -> u64) -> Self {
        let begun = Instant::now();
        let mut samples = vec![(Duration::ZERO, count())];
        while begun.elapsed() < time {
            tokio::time::sleep(LOOK).await;
            samples.push((begun.elapsed(), count()));
        }
        Self::from_samples(&samples, time, window)
    }

    fn from_samples(samples: &[(Duration, u64)], time: Duration, window: Duration) -> Self {
        // The count at a moment, between two samples.
        let at = |moment: Duration| {
            let after = samples
                .partition_point(|(when, _)| *when < moment)
                .clamp(1, samples.len() - 1);
            let ((from, low), (to, high)) = (samples[after - 1], samples[after]);
            let part = (moment - from).as_secs_f64() / (to - from).as_secs_f64();
            (low as f64 + part * (high - low) as f64) / MB
        };
        let within = |from: Duration| at(from + window) - at(from);
        let starts = samples.iter().map(|(when, _)| *when);
        let all: Vec<_> = starts
            .filter(|start| *start + window <= time)
            .map(within)
            .collect();
        let mut windows = Vec::new();
        let mut from = Duration::ZERO;
        while from + window <= time {
            windows.push(within(from));
            from += window;
        }
        Self {
            window,
            windows,
            least: all.iter().copied().fold(f64::MAX, f64::min),
            most: all.iter().copied().fold(0.0, f64::max),
        }
    }

    /// How far the window that is farthest from `rate`, in bytes per second, is from it: 0.02 is
    /// 2 %, above or below.
    pub fn off(&self, rate: u64) -> f64 {
        let expected = rate as f64 * self.window.as_secs_f64() / MB;
        (self.most / expected - 1.0).max(1.0 - self.least / expected)
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for window in &self.windows {
            write!(f, "{window:7.2}")?;
        }
        let Self { least, most, .. } = self;
        write!(f, " MB; any window: {least:.2} to {most:.2} MB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_that_is_farthest_off_is_found_wherever_it_begins() {
        let second = Duration::from_secs(1);
        // 10 MB a second, but for a pause of half a second that the next half makes up for.
        let counts = [0, 5, 10, 15, 15, 25, 30, 35, 40];
        let samples: Vec<_> = (0..)
            .zip(counts)
            .map(|(half, count)| (second / 2 * half, count * 1_000_000))
            .collect();
        let watched = Watched::from_samples(&samples, 4 * second, second);
        assert_eq!((watched.least, watched.most), (5.0, 15.0));
        assert!((watched.off(10_000_000) - 0.5).abs() < 1e-9);
        let two = Watched::from_samples(&samples, 4 * second, 2 * second);
        assert_eq!((two.least, two.most), (15.0, 25.0));
    }
}
