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
    /// From when on it may go along with others that are due; none while it is due for a reason of its own.
    along_from: Option<Timestamp>,
    hurry: Duration,
    failures: u32,
}

/// How long blobs that a host has from the start are gathered, so that one announce tells of many.
const GATHER: Duration = Duration::from_secs(1);
/// The part of an interval by which an announce may come early, to go along with others: blobs that were
/// announced at different times so come together, and stay so.
const EARLY: u32 = 4;

impl Announces {
    /// Announce the blob as soon as possible.
    pub(crate) fn now(&mut self, now: Timestamp, digest: Digest, config: &Config) {
        self.at(now, digest, None, config);
    }

    /// Announce a blob that is whole already soon, together with others.
    pub(crate) fn gather(&mut self, now: Timestamp, digest: Digest, config: &Config) {
        self.at(now + GATHER, digest, Some(now), config);
    }

    fn at(
        &mut self,
        due: Timestamp,
        digest: Digest,
        along_from: Option<Timestamp>,
        config: &Config,
    ) {
        let entry = self.blobs.entry(digest).or_insert(Entry {
            due,
            under_way: false,
            again: false,
            along_from,
            hurry: config.announce_hurry,
            failures: 0,
        });
        entry.due = due;
        entry.again = entry.under_way;
        entry.along_from = along_from;
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

    /// The blobs that are due, at most `most`, and with them those that may go along; they count as under
    /// way.
    pub(crate) fn take_due(&mut self, now: Timestamp, most: usize) -> Vec<Digest> {
        let mut due = self.waiting.take_due(now, most);
        if !due.is_empty() {
            let blobs = &self.blobs;
            let may = |digest: &Digest| {
                let from = blobs.get(digest).and_then(|entry| entry.along_from);
                from.is_some_and(|from| from <= now)
            };
            due.extend(self.waiting.take_early(most - due.len(), may));
        }
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
        entry.along_from = None;
        if std::mem::take(&mut entry.again) {
            entry.due = now;
        } else if short {
            entry.due = now + entry.hurry.min(interval);
            entry.hurry = (entry.hurry * 2).min(config.announce_hurry_max);
        } else {
            entry.due = now + interval;
            entry.along_from = Some(now + interval - interval / EARLY);
            entry.hurry = config.announce_hurry;
        }
        self.wait(digest);
    }

    /// No tracker could be asked about these, in one announce: again after a wait that doubles, with up to half
    /// of it by chance, so that a fleet does not come back in step. The chance is one for all of them, so that they
    /// stay together.
    pub(crate) fn failed(
        &mut self,
        now: Timestamp,
        digests: &[Digest],
        config: &Config,
        rng: &mut Rng,
    ) {
        let part = 1.0 - rng.unit() / 2.0;
        for digest in digests {
            let Some(entry) = self.blobs.get_mut(digest) else {
                continue;
            };
            entry.under_way = false;
            entry.again = false;
            entry.along_from = None;
            let doubled = config.retry * 2_u32.saturating_pow(entry.failures.min(16));
            entry.failures += 1;
            entry.due = now + doubled.min(config.retry_max).mul_f64(part);
            self.wait(*digest);
        }
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

    /// Answers every announce as it goes out, and counts them.
    fn settle(announces: &mut Announces, until: u64) -> usize {
        let (config, end) = (Config::lan(), at(until));
        let mut requests = 0;
        while let Some(now) = announces.next_due(end).filter(|due| *due <= end) {
            let due = announces.take_due(now, 256);
            requests += 1;
            for digest in due {
                announces.answered(now, digest, INTERVAL, false, &config);
            }
        }
        requests
    }

    #[test]
    fn a_host_with_many_blobs_tells_of_many_at_once() {
        let config = Config::lan();
        let mut announces = Announces::default();
        for n in 0..10_000_u32 {
            // A store that opens two blobs in a millisecond.
            let now = at(u64::from(n) / 2);
            announces.gather(now, Digest::of(&n.to_be_bytes()), &config);
        }
        let first = settle(&mut announces, 6_000);
        assert!(first <= 10_000 / 256 + 6, "{first} announces");
        // Ten more rounds.
        let later = settle(&mut announces, 106_000);
        assert!(later <= 14 * (10_000 / 256 + 6), "{later} announces");
    }

    #[test]
    fn blobs_that_came_one_by_one_are_announced_together_later() {
        let config = Config::lan();
        let mut announces = Announces::default();
        for n in 0..1000_u32 {
            let digest = Digest::of(&n.to_be_bytes());
            announces.now(at(u64::from(n) * 10), digest, &config);
            settle(&mut announces, u64::from(n) * 10);
        }
        settle(&mut announces, 60_000);
        let round = settle(&mut announces, 70_000);
        assert!(
            round <= 12,
            "{round} announces of 1000 blobs in one interval"
        );
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
    fn blobs_that_failed_together_stay_together() {
        let config = Config::lan();
        let mut announces = Announces::default();
        let mut rng = Rng::seeded(1);
        for n in 0..1000_u32 {
            announces.gather(at(0), Digest::of(&n.to_be_bytes()), &config);
        }
        let (mut requests, end) = (0, at(60_000));
        while let Some(now) = announces.next_due(end).filter(|due| *due <= end) {
            let due = announces.take_due(now, 256);
            requests += 1;
            announces.failed(now, &due, &config, &mut rng);
        }
        // Four are enough for all, again and again with the longest wait between.
        let rounds = 60_000 / (config.retry_max.as_millis() / 2) + 8;
        let bound = usize::try_from(4 * rounds).unwrap();
        assert!(requests <= bound, "{requests} announces, {bound} at most");
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
            announces.failed(now, &[digest], &config, &mut rng);
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
