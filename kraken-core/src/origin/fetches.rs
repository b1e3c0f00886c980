//! What is remembered of the last blobs that an origin fetched: who asked, and where it turned to.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kraken_proto::history::End;
use kraken_proto::{Digest, Namespace};
use serde::{Deserialize, Serialize};

use crate::clock::unix_ms;

/// Fetches that are remembered.
const MOST: usize = 512;
/// Steps of one fetch; further ones are left out.
const MOST_STEPS: usize = 16;
/// The longest text of a step, in bytes: others' errors are in it.
const LONGEST: usize = 300;

/// A blob that an origin did not have, and fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The blob.
    pub digest: Digest,
    /// What it belongs to.
    pub namespace: String,
    /// Who asked for it first.
    pub asked_by: Asker,
    /// When, in milliseconds since 1970.
    pub begun_ms: u64,
    /// Where the origin turned to, and why.
    pub steps: Vec<Step>,
    /// How it ended.
    pub end: Option<End>,
}

/// Who wants a blob of an origin that does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// A tracker, or a proxy for it: a host wants to know what the blob consists of.
    Metainfo,
    /// Another origin, or a proxy: it reads the bytes.
    Reader,
    /// A tracker whose hosts want it, or a preheat.
    Prefetch,
}

/// One thing that an origin did for a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What, in words.
    pub what: String,
}

/// The last fetches of an origin.
#[derive(Debug, Default)]
pub(super) struct Fetches(Mutex<VecDeque<Fetch>>);

impl Fetches {
    pub(super) fn begin(&self, namespace: &Namespace, digest: Digest, asked_by: Asker) {
        let mut fetches = self.lock();
        if fetches.len() >= MOST {
            let ended = fetches.iter().position(|it| it.end.is_some());
            fetches.remove(ended.unwrap_or(0));
        }
        fetches.push_back(Fetch {
            digest,
            namespace: namespace.to_string(),
            asked_by,
            begun_ms: unix_ms(),
            steps: Vec::new(),
            end: None,
        });
    }

    /// A step of the fetch of a blob that runs; of one that does not, nothing is remembered.
    pub(super) fn step(&self, digest: Digest, what: impl Into<String>) {
        let mut what = what.into();
        let end = what
            .char_indices()
            .map(|(at, _)| at)
            .find(|at| *at >= LONGEST);
        what.truncate(end.unwrap_or(what.len()));
        let at_ms = unix_ms();
        self.change(digest, |fetch| {
            if fetch.steps.len() < MOST_STEPS {
                fetch.steps.push(Step { at_ms, what });
            }
        });
    }

    pub(super) fn end(&self, digest: Digest, failed: Option<String>) {
        let at_ms = unix_ms();
        self.change(digest, |fetch| fetch.end = Some(End { at_ms, failed }));
    }

    pub(super) fn of(&self, digest: Digest) -> Vec<Fetch> {
        let fetches = self.lock();
        fetches
            .iter()
            .filter(|it| it.digest == digest)
            .cloned()
            .collect()
    }

    fn change(&self, digest: Digest, change: impl FnOnce(&mut Fetch)) {
        let mut fetches = self.lock();
        let mut last = fetches.iter_mut().rev();
        if let Some(fetch) = last.find(|it| it.digest == digest && it.end.is_none()) {
            change(fetch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Fetch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fetches_are_remembered_and_no_more() {
        let fetches = Fetches::default();
        let namespace: Namespace = "a".parse().unwrap();
        let running = Digest::of(b"running");
        fetches.begin(&namespace, running, Asker::Prefetch);
        for number in 0..2 * MOST {
            let digest = Digest::of(&number.to_be_bytes());
            fetches.begin(&namespace, digest, Asker::Metainfo);
            fetches.end(digest, None);
        }
        for number in 0..2 * MOST_STEPS {
            fetches.step(running, format!("{number} {}", "ä".repeat(LONGEST)));
        }
        fetches.end(running, Some("no".into()));
        fetches.step(running, "late");
        assert_eq!(fetches.lock().len(), MOST);
        let [fetch] = &fetches.of(running)[..] else {
            panic!("it ran")
        };
        assert_eq!(fetch.steps.len(), MOST_STEPS);
        assert!(
            fetch
                .steps
                .iter()
                .all(|step| step.what.len() <= LONGEST + 2)
        );
        assert_eq!(fetch.end.as_ref().unwrap().failed.as_deref(), Some("no"));
    }
}
