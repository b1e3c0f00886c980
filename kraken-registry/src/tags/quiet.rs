//! Registries that are left alone for a while, because they did not answer or said so.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::name::RepoName;

/// How long a registry is left alone after it did not answer.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// The longest that one which says so is.
const MOST: Duration = Duration::from_secs(600);
/// Registries that are remembered at once; further ones are asked.
const REMEMBERED: usize = 1024;

/// Until when which registry is left alone. Repositories whose names begin with the same part, such as
/// `docker.io`, are of the same registry.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<HashMap<String, Instant>>);

impl Quiet {
    /// Whether the registry of a repository is left alone now.
    pub(super) fn holds(&self, repo: &RepoName) -> bool {
        let known = self.known();
        let until = known.get(registry(repo));
        until.is_some_and(|until| *until > Instant::now())
    }

    /// Leaves it alone, for as long as it wants if it says so, within bounds.
    pub(super) fn begin(&self, repo: &RepoName, wait: Option<Duration>) {
        let wait = wait.map_or(LEFT_ALONE, |wait| wait.clamp(LEFT_ALONE, MOST));
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.retain(|_, until| *until > now);
        }
        if known.len() < REMEMBERED || known.contains_key(registry(repo)) {
            let until = known.entry(registry(repo).to_owned()).or_insert(now);
            // Somebody who asked before may be told later, and less.
            *until = (now + wait).max(*until);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn registry(repo: &RepoName) -> &str {
    let name = repo.as_str();
    name.split_once('/').map_or(name, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn repo(name: &str) -> RepoName {
        name.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_left_alone_as_long_as_it_wants_within_bounds() {
        let quiet = Quiet::default();
        let (busybox, alpine, other) = (
            "docker.io/library/busybox",
            "docker.io/alpine",
            "quay.io/a/b",
        );
        let [busybox, alpine, other] = [busybox, alpine, other].map(repo);
        let second = Duration::from_secs(1);
        for (wait, seconds) in [
            (None, 10),
            (Some(2), 10),
            (Some(30), 30),
            (Some(86_400), 600),
        ] {
            assert!(!quiet.holds(&alpine));
            quiet.begin(&busybox, wait.map(Duration::from_secs));
            // What is told later does not shorten it.
            quiet.begin(&alpine, None);
            assert!(quiet.holds(&alpine) && quiet.holds(&busybox) && !quiet.holds(&other));
            advance(second * (seconds - 1)).await;
            assert!(quiet.holds(&alpine), "{wait:?}");
            advance(second).await;
            assert!(!quiet.holds(&alpine), "{wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_registries_are_remembered() {
        let quiet = Quiet::default();
        for number in 0..2 * REMEMBERED {
            quiet.begin(&repo(&format!("r{number}.example/a")), None);
        }
        assert_eq!(quiet.known().len(), REMEMBERED);
        advance(LEFT_ALONE).await;
        quiet.begin(&repo("late.example/a"), None);
        assert_eq!(quiet.known().len(), 1);
    }
}
