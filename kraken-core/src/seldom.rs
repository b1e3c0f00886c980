//! What would be said again and again is said now and then.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the same is not said again.
const QUIET: Duration = Duration::from_secs(60);
/// Different things that are remembered.
const MOST: usize = 64;

/// Remembers what was said lately.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<BTreeMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    left_out: u64,
}

impl Seldom {
    /// Whether `what` is to be said now, and how often it was left out since it was said last.
    pub(crate) fn due(&self, what: &str) -> Option<u64> {
        let now = Instant::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match said.get_mut(what) {
            Some(before) if before.at + QUIET > now => {
                before.left_out += 1;
                return None;
            }
            Some(before) => {
                before.at = now;
                return Some(std::mem::take(&mut before.left_out));
            }
            None => {}
        }
        if said.len() >= MOST {
            said.retain(|_, before| before.at + QUIET > now);
        }
        // With so many reasons at once one more is said each time.
        if said.len() < MOST {
            said.insert(
                what.to_owned(),
                Said {
                    at: now,
                    left_out: 0,
                },
            );
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_a_minute_with_how_often_it_was_not() {
        let seldom = Seldom::default();
        assert_eq!(seldom.due("away"), Some(0));
        assert_eq!((seldom.due("away"), seldom.due("full")), (None, Some(0)));
        assert_eq!(seldom.due("away"), None);
        advance(QUIET).await;
        assert_eq!((seldom.due("away"), seldom.due("away")), (Some(2), None));
        for number in 0..2 * MOST {
            assert_eq!(seldom.due(&format!("reason {number}")), Some(0));
        }
        assert_eq!(seldom.0.lock().unwrap().len(), MOST);
    }
}
