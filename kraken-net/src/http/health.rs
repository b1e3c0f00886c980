//! A memory of who failed lately.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long somebody who failed is asked last: longer than a restart of a process takes, short
/// enough that a healed one gets its share back soon.
const GRUDGE: Duration = Duration::from_secs(10);

/// Remembers failures. Nobody is ever left out: who failed is asked after all others.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failed: Mutex<BTreeMap<String, Instant>>,
}

impl Health {
    /// `name` did not answer.
    pub(crate) fn failed(&self, name: &str) {
        self.failures().insert(name.to_string(), Instant::now());
    }

    /// `name` answered.
    pub(crate) fn answered(&self, name: &str) {
        self.failures().remove(name);
    }

    /// Whether `name` failed lately.
    pub(crate) fn has_failed(&self, name: &str) -> bool {
        self.failures()
            .get(name)
            .is_some_and(|at| at.elapsed() < GRUDGE)
    }

    /// The names in their order, those that failed lately behind the others.
    pub(crate) fn order<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let failures = self.failures();
        let lately = |name: &str| failures.get(name).is_some_and(|at| at.elapsed() < GRUDGE);
        let (mut good, bad): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| !lately(name));
        good.extend(bad);
        good
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed_comes_last_until_it_answers() {
        let health = Health::default();
        health.failed("a");
        assert_eq!(health.order(["a", "b", "c"]), ["b", "c", "a"]);
        health.answered("a");
        assert_eq!(health.order(["a", "b", "c"]), ["a", "b", "c"]);
    }
}
