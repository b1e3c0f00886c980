//! When what another cluster lacks is sent there.
//!
//! Each owner of a tag has written down that another cluster is to have it, so that none is lost with the
//! one that took it. The first of them sends it at once; the others look later, when it is mostly there.
//! What fails is tried again with growing waits of its own; a cluster that does not answer at all is left
//! alone as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::retry::backoff::{Backoff, Jitter};
use crate::rng::Rng;
use crate::time::Timestamp;

/// How long each further owner waits for those before it.
pub const STAGGER: Duration = Duration::from_secs(15);
/// The waits after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The waits while the other cluster does not answer.
const AWAY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The other cluster has it.
    Done,
    /// It failed; others may succeed.
    Failed,
    /// The other cluster did not answer.
    Away,
}

/// What waits to be sent to one other cluster, by name. It holds at most as many names as it is given room
/// for; the shell keeps all of them on disk, and fills it up.
#[derive(Debug)]
pub struct Outbox {
    room: usize,
    /// By name: what is known of it.
    entries: BTreeMap<String, Entry>,
    /// Those that are not under way, by when each is due.
    due: BTreeSet<(Timestamp, String)>,
    under_way: usize,
    away: Backoff,
    away_until: Timestamp,
    rng: Rng,
}

#[derive(Debug)]
struct Entry {
    due: Timestamp,
    backoff: Backoff,
    is_under_way: bool,
}

impl Outbox {
    /// An empty one with room for so many names.
    pub fn new(room: usize, seed: u64) -> Self {
        Self {
            room,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            under_way: 0,
            away: Backoff::new(AWAY.0, AWAY.1, Jitter::Equal),
            away_until: Timestamp::ZERO,
            rng: Rng::seeded(seed),
        }
    }

    /// A name is to be sent by the owner that comes `rank`th, from 0. Whether there was room for it.
    pub fn add(&mut self, now: Timestamp, name: &str, rank: usize) -> bool {
        if self.entries.contains_key(name) {
            return true;
        }
        if self.entries.len() >= self.room {
            return false;
        }
        let turns = u32::try_from(rank).unwrap_or(u32::MAX);
        let due = now + STAGGER.saturating_mul(turns);
        let entry = Entry {
            due,
            backoff: Backoff::new(RETRY.0, RETRY.1, Jitter::Equal),
            is_under_way: false,
        };
        self.entries.insert(name.to_owned(), entry);
        self.due.insert((due, name.to_owned()));
        true
    }

    /// A name to be sent now, which is under way from then on.
    pub fn next(&mut self, now: Timestamp) -> Option<String> {
        if now < self.away_until && self.away.failures() > 0 {
            return None;
        }
        let (due, _) = self.due.first()?;
        if *due > now {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.is_under_way = true;
        }
        self.under_way += 1;
        Some(name)
    }

    /// How an attempt that was under way has ended. What was done is forgotten: if it changed meanwhile, it is
    /// to be added again.
    pub fn ended(&mut self, now: Timestamp, name: &str, sent: Sent) {
        let Some(mut entry) = self.entries.remove(name) else {
            return;
        };
        self.under_way -= usize::from(std::mem::take(&mut entry.is_under_way));
        let wait = match sent {
            Sent::Done => {
                self.away.reset();
                return;
            }
            Sent::Failed => {
                self.away.reset();
                if self.room() <= 1 {
                    // Others wait for its place; it is read again when all have been.
                    return;
                }
                entry.backoff.delay(&mut self.rng)
            }
            Sent::Away => {
                // Those that were under way together have failed together.
                if now >= self.away_until || self.away.failures() == 0 {
                    self.away_until = now + self.away.delay(&mut self.rng);
                }
                Duration::ZERO
            }
        };
        entry.due = now + wait;
        self.due.insert((entry.due, name.to_owned()));
        self.entries.insert(name.to_owned(), entry);
    }

    /// All that waits is due now.
    pub fn hurry(&mut self, now: Timestamp) {
        self.away.reset();
        for (_, name) in std::mem::take(&mut self.due) {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.due = now;
            }
            self.due.insert((now, name));
        }
    }

    /// A name is due now, if it is not under way.
    pub fn hurry_one(&mut self, now: Timestamp, name: &str) {
        let Some(entry) = self.entries.get_mut(name).filter(|it| !it.is_under_way) else {
            return;
        };
        self.due.remove(&(entry.due, name.to_owned()));
        entry.due = now;
        self.due.insert((now, name.to_owned()));
    }

    /// How many names it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many more it has room for.
    pub fn room(&self) -> usize {
        self.room.saturating_sub(self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_owner_sends_at_once_and_the_others_look_later() {
        let mut outbox = Outbox::new(9, 1);
        assert!(outbox.add(at(1), "mine", 0));
        assert!(outbox.add(at(1), "theirs", 2));
        assert_eq!(outbox.next(at(1)).as_deref(), Some("mine"));
        assert_eq!(outbox.next(at(30)), None);
        assert_eq!((outbox.len(), outbox.under_way()), (2, 1));
        outbox.ended(at(30), "mine", Sent::Done);
        assert_eq!(outbox.next(at(31)).as_deref(), Some("theirs"));
        outbox.ended(at(31), "theirs", Sent::Done);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_name_is_sent_once_at_a_time() {
        let mut outbox = Outbox::new(9, 1);
        outbox.add(at(1), "a", 0);
        outbox.next(at(1)).unwrap();
        assert!(outbox.add(at(2), "a", 0));
        assert_eq!(outbox.next(at(2)), None);
        outbox.ended(at(3), "a", Sent::Done);
        assert!(outbox.is_empty());
        outbox.add(at(3), "a", 0);
        assert_eq!(outbox.next(at(3)).as_deref(), Some("a"));
    }

    #[test]
    fn failures_wait_longer_each_time_and_hold_up_nothing_else() {
        let mut outbox = Outbox::new(9, 1);
        outbox.add(at(1), "bad", 0);
        let mut waits = Vec::new();
        let mut now = 1;
        for _ in 0..5 {
            assert_eq!(outbox.next(at(now)).as_deref(), Some("bad"));
            outbox.ended(at(now), "bad", Sent::Failed);
            outbox.add(at(now), "good", 0);
            assert_eq!(outbox.next(at(now)).as_deref(), Some("good"));
            outbox.ended(at(now), "good", Sent::Done);
            let failed = now;
            while outbox.due.first().unwrap().0 > at(now) {
                now += 1;
            }
            waits.push(now - failed);
        }
        assert!(waits.is_sorted() && waits[4] > waits[0], "{waits:?}");
    }

    #[test]
    fn what_fails_makes_room_for_what_may_succeed() {
        let mut outbox = Outbox::new(2, 1);
        outbox.add(at(1), "a", 0);
        outbox.add(at(1), "b", 3);
        assert!(!outbox.add(at(1), "c", 0));
        assert_eq!(outbox.next(at(1)).as_deref(), Some("a"));
        outbox.ended(at(1), "a", Sent::Failed);
        assert!(outbox.add(at(1), "c", 0));
        assert_eq!(outbox.next(at(1)).as_deref(), Some("c"));
        outbox.hurry_one(at(1), "b");
        assert_eq!(outbox.next(at(1)).as_deref(), Some("b"));
    }

    #[test]
    fn a_cluster_that_does_not_answer_is_left_alone_for_a_while() {
        let mut outbox = Outbox::new(2, 1);
        assert!(outbox.add(at(1), "a", 0));
        assert!(outbox.add(at(1), "b", 0));
        assert!(!outbox.add(at(1), "c", 0), "no room");
        outbox.next(at(1)).unwrap();
        outbox.ended(at(1), "a", Sent::Away);
        assert_eq!(outbox.next(at(1)), None);
        assert!(outbox.next(at(3)).is_some());
        outbox.hurry(at(3));
        assert!(outbox.next(at(3)).is_some());
        assert_eq!(outbox.room(), 0);
    }
}
