//! When to tell the tracker about which blob.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::blob::digest::Digest;
use crate::blob::namespace::Namespace;
use crate::rng::Rng;
use crate::scheduler::config::Config;
use crate::scheduler::timers::Timers;
use crate::time::Timestamp;

/// The announces of one host.
#[derive(Debug, Default)]
pub(crate) struct Announces {
    blobs: BTreeMap<Digest, Entry>,
    /// The due times of the blobs with no announce under way.
    waiting: Timers,
    /// Swarms that were left and whose tracker does not know yet.
    left: Vec<(Namespace, Digest)>,
}

#[derive(Debug)]
struct Entry {
    due: Timestamp,
    /// An announce is on its way; its answer sets the next due time.
    under_way: bool,
    /// It was asked for again meanwhile: due at once when the answer comes.
    again: bool,
    hurry: Duration,
    failures: u32,
}

impl Announces {
    /// Announce the blob as soon as possible.
    pub(crate) fn now(&mut self, now: Timestamp, digest: Digest, config: &Config) {
        let entry = self.blobs.entry(digest).or_insert(Entry {
            due: now,
            under_way: false,
            again: false,
            hurry: config.announce_hurry,
            failures: 0,
        });
        entry.due = now;
        entry.again = entry.under_way;
        entry.hurry = config.announce_hurry;
        self.wait(digest);
    }

    /// The blob lacks neighbours: announce it sooner than planned.
    pub(crate) fn hurry(&mut self, now: Timestamp, digest: Digest) {
        if let Some(entry) = self.blobs.get_mut(&digest) {
            entry.due = entry.due.min(now + entry.hurry);
            self.wait(digest);
        }
    }

    /// The blob has no neighbours and wants some: announce it at once, unless trackers fail.
    pub(crate) fn at_once(&mut self, now: Timestamp, digest: Digest) {
        if let Some(entry) = self.blobs.get_mut(&digest).filter(|it| it.failures == 0) {
            entry.due = entry.due.min(now);
            self.wait(digest);
        }
    }

    /// The blob's swarm was left.
    pub(crate) fn leave(&mut self, namespace: Namespace, digest: Digest) {
        if self.blobs.remove(&digest).is_some() {
            self.waiting.set(digest, None);
            self.left.push((namespace, digest));
        }
    }

    /// The swarms that were left, at most `most`.
    pub(crate) fn take_left(&mut self, most: usize) -> Vec<(Namespace, Digest)> {
        let count = most.min(self.left.len());
        self.left.drain(..count).collect()
    }

    /// The blobs that are due, at most `most`; they count as under way.
    pub(crate) fn take_due(&mut self, now: Timestamp, most: usize) -> Vec<Digest> {
        let due = self.waiting.take_due(now, most);
        for digest in &due {
            if let Some(entry) = self.blobs.get_mut(digest) {
                entry.under_way = true;
            }
        }
        due
    }

    /// The tracker answered; `short` when the blob lacks neighbours.
    pub(crate) fn answered(
        &mut self,
        now: Timestamp,
        digest: Digest,
        interval: Duration,
        short: bool,
        config: &Config,
    ) {
        let Some(entry) = self.blobs.get_mut(&digest) else {
            return;
        };
        entry.under_way = false;
        entry.failures = 0;
        if std::mem::take(&mut entry.again) {
            entry.due = now;
        } else if short {
            entry.due = now + entry.hurry.min(interval);
            entry.hurry = (entry.hurry * 2).min(config.announce_hurry_max);
        } else {
            entry.due = now + interval;
            entry.hurry = config.announce_hurry;
        }
        self.wait(digest);
    }

    /// No tracker could be asked: again after a wait that doubles, with up to half of it by
    /// chance, so that a fleet does not come back in step.
    pub(crate) fn failed(
        &mut self,
        now: Timestamp,
        digest: Digest,
        config: &Config,
        rng: &mut Rng,
    ) {
        let Some(entry) = self.blobs.get_mut(&digest) else {
            return;
        };
        entry.under_way = false;
        entry.again = false;
        let doubled = config.retry * 2_u32.saturating_pow(entry.failures.min(16));
        entry.failures += 1;
        entry.due = now
            + doubled
                .min(config.retry_max)
                .mul_f64(1.0 - rng.unit() / 2.0);
        self.wait(digest);
    }

    /// Whether the last announce of the blob came to nothing.
    pub(crate) fn is_failing(&self, digest: Digest) -> bool {
        self.blobs
            .get(&digest)
            .is_some_and(|entry| entry.failures > 0)
    }

    /// When something is due next.
    pub(crate) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let left = (!self.left.is_empty()).then_some(now);
        left.or_else(|| self.waiting.next())
    }

    fn wait(&mut self, digest: Digest) {
        if let Some(entry) = self.blobs.get(&digest).filter(|entry| !entry.under_way) {
            self.waiting.set(digest, Some(entry.due));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn hurries_while_short_and_settles() {
        let config = Config::lan();
        let digest = Digest::of(b"");
        let mut announces = Announces::default();
        announces.now(at(0), digest, &config);
        assert_eq!(announces.take_due(at(0), 9), [digest]);
        assert_eq!(announces.next_due(at(0)), None, "under way");
        announces.answered(at(10), digest, INTERVAL, true, &config);
        assert_eq!(announces.next_due(at(10)), Some(at(260)));
        assert_eq!(announces.take_due(at(260), 9), [digest]);
        announces.answered(at(260), digest, INTERVAL, true, &config);
        assert_eq!(announces.next_due(at(260)), Some(at(760)));
        announces.take_due(at(760), 9);
        announces.answered(at(760), digest, INTERVAL, false, &config);
        assert_eq!(announces.next_due(at(760)), Some(at(10_760)));
        announces.hurry(at(800), digest);
        assert_eq!(announces.next_due(at(800)), Some(at(1050)));
    }

    #[test]
    fn news_while_one_is_under_way_is_not_lost() {
        let config = Config::lan();
        let digest = Digest::of(b"");
        let mut announces = Announces::default();
        announces.now(at(0), digest, &config);
        announces.take_due(at(0), 9);
        announces.now(at(5), digest, &config);
        assert!(announces.take_due(at(5), 9).is_empty());
        announces.answered(at(10), digest, INTERVAL, false, &config);
        assert_eq!(announces.take_due(at(10), 9), [digest]);
    }

    #[test]
    fn failures_back_off_and_leaving_is_told_once() {
        let config = Config::lan();
        let digest = Digest::of(b"");
        let mut announces = Announces::default();
        let mut rng = Rng::seeded(1);
        announces.now(at(0), digest, &config);
        let mut waits = Vec::new();
        for round in 0..10 {
            let now = at(100_000 * round);
            announces.take_due(now, 9);
            announces.failed(now, digest, &config, &mut rng);
            waits.push(announces.next_due(now).unwrap().since(now));
        }
        assert!(waits[0] <= config.retry && waits[0] >= config.retry / 2);
        assert!(waits[9] <= config.retry_max && waits[9] >= config.retry_max / 2);
        announces.leave(Namespace::default(), digest);
        announces.leave(Namespace::default(), digest);
        assert_eq!(announces.take_left(9), [(Namespace::default(), digest)]);
        assert_eq!(announces.next_due(at(0)), None);
    }
}
