//! What an origin remembers so that blobs which nobody needs can go while others are pushed.
//!
//! Whoever collects garbage has marked all that is referenced, and asks the origins about the rest. Each
//! condemns what nobody has asked it about for a grace period: a push that relies on a blob has asked
//! whether it is there, so that a blob of a push under way is never condemned. What is condemned is as
//! good as gone, and whoever pushes it waits until it is; if the collector is not heard of any more, it is
//! free again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::blob::digest::Digest;
use crate::time::Timestamp;

/// How long a condemned blob waits for its removal.
const LEASE: Duration = Duration::from_secs(60);
/// The longest grace period: questions older than that are forgotten.
const MAX_GRACE: Duration = Duration::from_secs(48 * 3600);
/// Blobs whose questions are remembered: some 100 MB.
const MAX_ASKED: usize = 1_000_000;
/// A question that is written down stands for the later ones about the same blob, for so long.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// How often what is forgotten is looked for.
const PRUNE: Duration = Duration::from_secs(600);

/// One origin's memory of who was asked about, and what is about to go.
#[derive(Debug)]
pub struct Garbage {
    /// Nothing is known of what was asked before: this origin was started, or too much was asked.
    since: Timestamp,
    asked: BTreeMap<Digest, Asked>,
    condemned: BTreeMap<Digest, Sentence>,
    prune_at: Timestamp,
}

/// An origin has not run for the grace period yet, or none runs for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not know what it was asked within the grace period: it was started since")]
pub struct TooYoung;

/// When a blob was asked about last, and when that was written down last.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Timestamp,
    noted: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Sentence {
    token: u64,
    until: Timestamp,
}

impl Garbage {
    /// The longest grace period that can be asked for.
    pub const MAX_GRACE: Duration = MAX_GRACE;

    /// An origin that starts.
    pub fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            asked: BTreeMap::new(),
            condemned: BTreeMap::new(),
            prune_at: now + PRUNE,
        }
    }

    /// An origin that starts again and knows what it was asked since then: which blobs, and when that was
    /// written down, as [`Garbage::is_news`] said.
    pub fn resume(
        now: Timestamp,
        since: Timestamp,
        noted: impl IntoIterator<Item = (Digest, Timestamp)>,
    ) -> Self {
        let mut garbage = Self::new(now);
        garbage.since = since.min(now);
        for (digest, at) in noted {
            let noted = garbage.asked.get(&digest).and_then(|it| it.noted);
            let noted = noted.map_or(at, |before| before.max(at));
            // It may have been asked about again, until it would have been written down again.
            let at = (noted + NOTE_EVERY).min(now);
            let noted = Some(noted);
            garbage.asked.insert(digest, Asked { at, noted });
        }
        if garbage.asked.len() > MAX_ASKED {
            return Self::new(now);
        }
        garbage
    }

    /// From when on it is known what was asked.
    pub const fn since(&self) -> Timestamp {
        self.since
    }

    /// The blobs that were asked about, and when last, for what is written down anew.
    pub fn asked(&self) -> impl ExactSizeIterator<Item = (Digest, Timestamp)> + '_ {
        self.asked.iter().map(|(digest, it)| (*digest, it.at))
    }

    /// Whether a blob that was asked about just now is to be written down: nothing that was written down
    /// before stands for it.
    pub fn is_news(&mut self, now: Timestamp, digest: Digest) -> bool {
        let Some(asked) = self.asked.get_mut(&digest) else {
            return false;
        };
        let is_news = asked.noted.is_none_or(|at| now.since(at) >= NOTE_EVERY);
        if is_news {
            asked.noted = Some(now);
        }
        is_news
    }

    /// Somebody asks about a blob, or pushes it. False when it is condemned: it counts as not there.
    pub fn ask(&mut self, now: Timestamp, digest: Digest) -> bool {
        if self.is_condemned(now, digest) {
            return false;
        }
        if self.asked.len() >= MAX_ASKED && !self.asked.contains_key(&digest) {
            // As if started now: nothing goes for a grace period, and nothing is forgotten that counts.
            self.asked.clear();
            self.since = now;
        }
        let noted = self.asked.get(&digest).and_then(|it| it.noted);
        self.asked.insert(digest, Asked { at: now, noted });
        if now >= self.prune_at {
            self.prune_at = now + PRUNE;
            self.asked.retain(|_, it| now.since(it.at) < MAX_GRACE);
            self.condemned.retain(|_, sentence| sentence.until > now);
        }
        true
    }

    /// Whether a blob is about to go.
    pub fn is_condemned(&self, now: Timestamp, digest: Digest) -> bool {
        let sentence = self.condemned.get(&digest);
        sentence.is_some_and(|sentence| sentence.until > now)
    }

    /// When a condemned blob is free again, if nobody removes it before.
    pub fn free_at(&self, digest: Digest) -> Option<Timestamp> {
        self.condemned.get(&digest).map(|sentence| sentence.until)
    }

    /// Condemns those blobs that nobody has asked about for `grace`, under a name that the collector
    /// chose; says which.
    ///
    /// # Errors
    /// [`TooYoung`]: what was asked that long ago is not known here.
    pub fn condemn(
        &mut self,
        now: Timestamp,
        (token, grace): (u64, Duration),
        digests: Vec<Digest>,
    ) -> Result<Vec<Digest>, TooYoung> {
        if now.since(self.since) < grace || grace > MAX_GRACE {
            return Err(TooYoung);
        }
        let mut condemned = digests;
        condemned.retain(|digest| {
            let asked = self.asked.get(digest);
            let is_quiet = asked.is_none_or(|it| now.since(it.at) >= grace);
            let sentence = self.condemned.get(digest);
            let is_free = sentence.is_none_or(|it| it.until <= now || it.token == token);
            is_quiet && is_free
        });
        for digest in &condemned {
            let until = now + LEASE;
            self.condemned.insert(*digest, Sentence { token, until });
        }
        Ok(condemned)
    }

    /// Of these blobs, those that are condemned under this name and for long enough to be removed.
    pub fn doomed(&self, now: Timestamp, token: u64, mut digests: Vec<Digest>) -> Vec<Digest> {
        digests.retain(|digest| {
            let sentence = self.condemned.get(digest);
            // What is begun now may take half of the time.
            sentence.is_some_and(|it| it.token == token && it.until > now + LEASE / 2)
        });
        digests
    }

    /// What was condemned under this name is free again, be it gone or not.
    pub fn release(&mut self, token: u64) {
        self.condemned.retain(|_, sentence| sentence.token != token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn blobs() -> [Digest; 2] {
        [Digest::of(b"one"), Digest::of(b"two")]
    }

    #[test]
    fn only_what_nobody_asked_about_is_condemned() {
        let [one, two] = blobs();
        let mut garbage = Garbage::new(at(0));
        // What was asked of an earlier life of this origin is not known.
        assert_eq!(
            garbage.condemn(at(9), (1, GRACE), vec![one, two]),
            Err(TooYoung)
        );
        assert!(garbage.ask(at(15), one));
        assert_eq!(
            garbage.condemn(at(20), (1, GRACE), vec![one, two]),
            Ok(vec![two])
        );
        assert!(garbage.is_condemned(at(20), two) && !garbage.ask(at(20), two));
        // It was not asked about by the one that was told that it is not there.
        garbage.release(1);
        assert!(!garbage.is_condemned(at(20), two));
        assert_eq!(
            garbage.condemn(at(26), (2, GRACE), vec![one, two]),
            Ok(vec![one, two])
        );
    }

    #[test]
    fn a_collector_removes_only_what_it_condemned_itself_a_moment_ago() {
        let [one, two] = blobs();
        let mut garbage = Garbage::new(at(0));
        assert_eq!(
            garbage.condemn(at(20), (1, GRACE), vec![one]),
            Ok(vec![one])
        );
        // Two collectors do not meet.
        assert_eq!(
            garbage.condemn(at(21), (2, GRACE), vec![one, two]),
            Ok(vec![two])
        );
        assert_eq!(garbage.doomed(at(22), 1, vec![one, two]), [one]);
        assert!(garbage.doomed(at(60), 1, vec![one]).is_empty(), "too late");
        assert!(garbage.is_condemned(at(79), one));
        assert_eq!(garbage.free_at(one), Some(at(80)));
        assert!(garbage.ask(at(80), one), "nobody came");
    }

    #[test]
    fn an_origin_that_starts_again_knows_what_was_written_down() {
        let [one, two] = blobs();
        let mut garbage = Garbage::new(at(100));
        assert!(!garbage.is_news(at(100), one), "nobody asked");
        let mut noted = Vec::new();
        // It is asked all the time, and written down now and then.
        for second in 100..=250 {
            assert!(garbage.ask(at(second), one));
            if garbage.is_news(at(second), one) {
                noted.push((one, at(second)));
            }
        }
        assert_eq!(noted, [(one, at(100)), (one, at(160)), (one, at(220))]);
        let mut again = Garbage::resume(at(251), garbage.since(), noted);
        assert_eq!(again.asked().collect::<Vec<_>>(), [(one, at(251))]);
        assert_eq!(
            again.condemn(at(260), (1, GRACE), vec![one, two]),
            Ok(vec![two]),
            "it knows what it was asked, and when at the latest"
        );
        assert_eq!(again.condemn(at(261), (1, GRACE), vec![one]), Ok(vec![one]));
        let long = Duration::from_secs(200);
        assert_eq!(
            again.condemn(at(261), (1, long), vec![two]),
            Err(TooYoung),
            "not what it was asked before that"
        );
    }

    #[test]
    fn what_was_asked_about_is_forgotten_after_the_longest_grace_period() {
        let [one, two] = blobs();
        let mut garbage = Garbage::new(at(0));
        assert!(garbage.ask(at(1), one));
        let later = at(3 * 48 * 3600);
        assert!(garbage.ask(later, two));
        assert_eq!(garbage.asked.len(), 1);
        let too_long = MAX_GRACE * 2;
        assert_eq!(
            garbage.condemn(later, (1, too_long), vec![one]),
            Err(TooYoung)
        );
    }
}
