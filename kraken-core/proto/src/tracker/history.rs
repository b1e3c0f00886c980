//! What moved in the last hour, in steps of five seconds.

use std::collections::VecDeque;
use std::time::Duration;

use super::report::Traffic;
use crate::time::Timestamp;

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(5);
/// How many steps are kept: an hour.
pub const STEPS: usize = 720;

/// Bytes by the time at which they moved. Invariant: at most [`STEPS`] steps, without gaps.
#[derive(Debug, Default)]
pub struct History {
    /// The number of the first step, counted from the clock's zero.
    first: u64,
    steps: VecDeque<Traffic>,
}

impl History {
    /// Counts bytes that moved between two moments, evenly. What is older than an hour is left out.
    pub(super) fn add(&mut self, from: Timestamp, to: Timestamp, moved: Traffic) {
        let (from, to) = (from.as_nanos(), to.as_nanos().max(from.as_nanos() + 1));
        self.reach(step_of(to - 1));
        let whole = to - from;
        let mut counted = moved.part(from.max(self.first * STEP_NANOS).min(to) - from, whole);
        for step in step_of(from).max(self.first)..=step_of(to - 1) {
            let end = ((step + 1) * STEP_NANOS).min(to);
            let until = moved.part(end - from, whole);
            let place = usize::try_from(step - self.first).unwrap_or(usize::MAX);
            if let Some(sum) = self.steps.get_mut(place) {
                *sum = *sum + (until - counted);
            }
            counted = until;
        }
    }

    /// The steps with the moments at which they began, up to the last one that has ended at `now`.
    pub fn points(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Traffic)> {
        let steps = (self.first..).zip(&self.steps);
        let ended = step_of(now.as_nanos());
        steps
            .map(|(step, moved)| (Timestamp::from_nanos(step * STEP_NANOS), *moved))
            .take_while(move |(began, _)| step_of(began.as_nanos()) < ended)
    }

    /// Makes room for a step.
    fn reach(&mut self, step: u64) {
        if self.steps.is_empty() {
            // The first report may tell of the longest time between two.
            self.first = step.saturating_sub(12);
        }
        let after = self.first + self.steps.len() as u64;
        if step >= after + STEPS as u64 {
            self.steps.clear();
            self.first = step;
        }
        while self.first + (self.steps.len() as u64) <= step {
            self.steps.push_back(Traffic::default());
            if self.steps.len() > STEPS {
                self.steps.pop_front();
                self.first += 1;
            }
        }
    }
}

const STEP_NANOS: u64 = 5_000_000_000;

fn step_of(nanos: u64) -> u64 {
    nanos / STEP_NANOS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn sent(sent: u64) -> Traffic {
        Traffic {
            sent,
            ..Traffic::default()
        }
    }

    fn points(history: &History, now: u64) -> Vec<(u64, u64)> {
        let points = history.points(at(now));
        points
            .map(|(began, moved)| (began.since(Timestamp::ZERO).as_secs(), moved.sent))
            .collect()
    }

    #[test]
    fn bytes_are_spread_over_the_time_in_which_they_moved() {
        let mut history = History::default();
        history.add(at(8), at(18), sent(1000));
        assert_eq!(
            points(&history, 20),
            [(0, 0), (5, 200), (10, 500), (15, 300)]
        );
        let ended = points(&history, 19);
        assert_eq!(ended, [(0, 0), (5, 200), (10, 500)]);
    }

    #[test]
    fn an_hour_is_kept() {
        let mut history = History::default();
        for second in 0..7300 {
            history.add(at(second), at(second + 1), sent(10));
        }
        let kept = points(&history, 7300);
        assert_eq!(kept.len(), STEPS);
        assert_eq!((kept[0], kept[STEPS - 1]), ((3700, 50), (7295, 50)));
        // A host that was away for long tells of what no step is kept for.
        history.add(at(3000), at(7300), sent(4300));
        assert_eq!(points(&history, 7300)[0], (3700, 55));
        history.add(at(100_000), at(100_001), sent(7));
        assert_eq!(points(&history, 100_005), [(100_000, 7)]);
    }

    proptest! {
        #[test]
        fn nothing_is_counted_twice_or_lost(
            spans in proptest::collection::vec((0_u64..3000, 0_u64..500, 0_u64..10_000), 1..40)
        ) {
            let mut history = History::default();
            // The first step that is kept stands one before the first that was heard of.
            history.add(at(0), at(1), sent(0));
            let mut total = 0;
            for (from, span, bytes) in spans {
                history.add(at(from), at(from + span), sent(bytes));
                total += bytes;
            }
            prop_assert!(history.steps.len() <= STEPS);
            let counted: u64 = history.steps.iter().map(|it| it.sent).sum();
            prop_assert_eq!(counted, total);
        }
    }
}
