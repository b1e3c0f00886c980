//! When each blob's swarm is due.

use std::collections::{BTreeMap, BTreeSet};

use crate::blob::digest::Digest;
use crate::time::Timestamp;

/// One due time per blob. Setting a new one replaces the old: no stale timer fires.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<Digest, Timestamp>,
    order: BTreeSet<(Timestamp, Digest)>,
    /// The first of `order`: it is asked for after every input.
    next: Option<Timestamp>,
}

impl Timers {
    /// Replaces the due time of a blob.
    pub(crate) fn set(&mut self, digest: Digest, at: Option<Timestamp>) {
        let before = match at {
            Some(at) => self.due.insert(digest, at),
            None => self.due.remove(&digest),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, digest));
        }
        if let Some(at) = at {
            self.order.insert((at, digest));
        }
        self.next = self.order.first().map(|(at, _)| *at);
    }

    /// The earliest due time.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.next
    }

    /// Takes the blobs that are due, at most `most`, the earliest first.
    pub(crate) fn take_due(&mut self, now: Timestamp, most: usize) -> Vec<Digest> {
        let mut due = Vec::new();
        if self.next.is_none_or(|at| at > now) {
            return due;
        }
        while due.len() < most
            && let Some((at, digest)) = self.order.first().copied().filter(|(at, _)| *at <= now)
        {
            self.order.remove(&(at, digest));
            self.due.remove(&digest);
            due.push(digest);
        }
        self.next = self.order.first().map(|(at, _)| *at);
        due
    }

    /// Takes blobs that are due after all others, at most `most` of those that `may` go early, the earliest
    /// first. Not more than twice as many are looked at.
    pub(crate) fn take_early(&mut self, most: usize, may: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        let looked_at = self.order.iter().take(2 * most);
        let early = looked_at
            .map(|(_, digest)| *digest)
            .filter(|digest| may(digest));
        let early: Vec<_> = early.take(most).collect();
        for digest in &early {
            self.set(*digest, None);
        }
        early
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_time_replaces_the_old() {
        let at = Timestamp::from_nanos;
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut timers = Timers::default();
        timers.set(a, Some(at(5)));
        timers.set(b, Some(at(7)));
        timers.set(a, Some(at(9)));
        assert_eq!(timers.next(), Some(at(7)));
        assert_eq!(timers.take_due(at(8), 9), [b]);
        timers.set(a, None);
        assert_eq!(timers.next(), None);
        assert!(timers.take_due(at(100), 9).is_empty());
    }
}
