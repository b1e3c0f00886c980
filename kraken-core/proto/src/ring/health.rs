//! Who of a ring is there, from what probes say, with hysteresis.
//!
//! A member is *up* until it fails several times in a row, and down until it answers several times: one
//! lost packet moves nothing. It keeps its share of the blobs for a *grace* after it went down, as most
//! come back from a restart with all that they had; from then on it is *out of the ring*, and its
//! share belongs to those behind it. It is in the ring again as soon as it is up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Timestamp;

/// When members count as up and as out of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthConfig {
    /// Down after so many failures in a row; at least 1.
    pub failures: u32,
    /// Up again after so many answers in a row; at least 1.
    pub answers: u32,
    /// Out of the ring when it was down for so long.
    pub grace: Duration,
}

impl Default for HealthConfig {
    /// 3 failures, 2 answers, a minute: a restart takes less.
    fn default() -> Self {
        Self {
            failures: 3,
            answers: 2,
            grace: Duration::from_secs(60),
        }
    }
}

/// The members of a ring and how they are.
///
/// ```
/// use std::time::Duration;
///
/// use kraken_proto::Timestamp;
/// use kraken_proto::ring::health::{HealthConfig, Members};
///
/// let mut members = Members::new(["a", "b"], HealthConfig::default());
/// let mut now = Timestamp::ZERO;
/// for _ in 0..3 {
///     now = now + Duration::from_secs(1);
///     members.heard(now, "b", false);
/// }
/// assert!(!members.is_up("b") && members.is_in(now, "b"));
/// assert!(!members.is_in(now + Duration::from_secs(60), "b"));
/// ```
#[derive(Debug, Clone)]
pub struct Members {
    config: HealthConfig,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone)]
struct Member {
    is_up: bool,
    /// Since when it is so.
    since: Timestamp,
    /// It hands its share over and leaves.
    is_leaving: bool,
    /// Answers in a row while it is down, failures in a row while it is up.
    streak: u32,
}

impl Members {
    /// These members. All count as up at first: to begin is no outage.
    pub fn new<T: Into<String>>(names: impl IntoIterator<Item = T>, config: HealthConfig) -> Self {
        let mut members = Self {
            config,
            members: BTreeMap::new(),
        };
        let names: Vec<_> = names.into_iter().map(Into::into).collect();
        members.set(Timestamp::ZERO, names);
        members
    }

    /// From now on these are the members; what is known of those that stay is kept.
    pub fn set(&mut self, now: Timestamp, names: impl IntoIterator<Item = String>) {
        let mut before = std::mem::take(&mut self.members);
        for name in names {
            let new = Member {
                is_up: true,
                since: now,
                is_leaving: false,
                streak: 0,
            };
            let member = before.remove(&name).unwrap_or(new);
            self.members.insert(name, member);
        }
    }

    /// A member answered, or did not; says whether it went up or down with that.
    pub fn heard(&mut self, now: Timestamp, name: &str, has_answered: bool) -> bool {
        let config = self.config;
        let Some(member) = self.members.get_mut(name) else {
            return false;
        };
        if has_answered == member.is_up {
            member.streak = 0;
            return false;
        }
        member.streak += 1;
        let enough = match member.is_up {
            true => config.failures,
            false => config.answers,
        };
        if member.streak < enough {
            return false;
        }
        member.is_up = has_answered;
        member.since = now;
        member.streak = 0;
        true
    }

    /// A member says that it leaves, or that it does not; says whether that is news.
    pub fn leaves(&mut self, now: Timestamp, name: &str, is_leaving: bool) -> bool {
        match self.members.get_mut(name) {
            Some(member) if member.is_leaving != is_leaving => {
                member.is_leaving = is_leaving;
                member.since = now;
                true
            }
            _ => false,
        }
    }

    /// Whether a member answers.
    pub fn is_up(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|member| member.is_up)
    }

    /// Whether a member has said that it hands its share over.
    pub fn is_leaving(&self, name: &str) -> bool {
        let member = self.members.get(name);
        member.is_some_and(|member| member.is_leaving)
    }

    /// Whether a member answers, and does not hand its share over.
    pub fn is_up_to_stay(&self, name: &str) -> bool {
        let member = self.members.get(name);
        member.is_some_and(|member| member.is_up && !member.is_leaving)
    }

    /// Whether a member has its share of the blobs.
    pub fn is_in(&self, now: Timestamp, name: &str) -> bool {
        let grace = self.config.grace;
        self.members.get(name).is_some_and(|member| {
            !member.is_leaving && (member.is_up || now.since(member.since) < grace)
        })
    }

    /// Those that have a share.
    pub fn ring(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let names = self.members.keys().map(String::as_str);
        names.filter(move |name| self.is_in(now, name))
    }

    /// Whether all members are up, and were so for the grace: then all of them see the same ring.
    pub fn are_settled(&self, now: Timestamp) -> bool {
        let grace = self.config.grace;
        let mut members = self.members.values();
        members.all(|member| member.is_up && now.since(member.since) >= grace)
    }

    /// When the next member falls out of the ring, if none answers before.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        let down = self.members.values().filter(|member| !member.is_up);
        let out = down.map(|member| member.since + self.config.grace);
        out.filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(secs)
    }

    fn members() -> Members {
        Members::new(["a", "b", "c"], HealthConfig::default())
    }

    #[test]
    fn some_failures_in_a_row_make_a_member_down_and_some_answers_make_it_up() {
        let mut members = members();
        for (answer, changes) in [
            (false, false),
            (false, false),
            (true, false),
            (false, false),
            (false, false),
            (false, true),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ] {
            assert_eq!(members.heard(at(9), "b", answer), changes);
        }
        assert!(members.is_up("a") && members.is_up("b"));
        assert!(!members.heard(at(9), "nobody", false));
    }

    fn down(members: &mut Members, name: &str, now: Timestamp) {
        for _ in 0..3 {
            members.heard(now, name, false);
        }
    }

    #[test]
    fn the_share_stays_for_a_grace() {
        let mut members = members();
        down(&mut members, "b", at(10));
        assert_eq!(members.ring(at(69)).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(members.next_change(at(11)), Some(at(70)));
        assert_eq!(members.ring(at(70)).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(members.next_change(at(70)), None);
        for _ in 0..2 {
            members.heard(at(80), "b", true);
        }
        assert_eq!(members.ring(at(80)).count(), 3);
        assert!(!members.are_settled(at(139)) && members.are_settled(at(140)));
    }

    #[test]
    fn who_leaves_has_no_share_although_it_answers() {
        let mut members = members();
        assert!(members.leaves(at(1), "c", true) && !members.leaves(at(2), "c", true));
        assert!(members.is_up("c") && !members.is_in(at(1), "c"));
        assert!(!members.is_up_to_stay("c") && members.is_up_to_stay("a"));
        assert!(members.leaves(at(3), "c", false) && members.is_in(at(3), "c"));
    }

    #[test]
    fn a_new_list_keeps_what_is_known_of_those_who_stay() {
        let mut members = members();
        down(&mut members, "b", at(10));
        members.set(at(20), ["b", "d"].map(String::from));
        assert!(!members.is_up("b") && members.is_up("d") && !members.is_up("a"));
        assert_eq!(members.ring(at(75)).collect::<Vec<_>>(), ["d"]);
        assert!(!members.are_settled(at(200)));
    }

    proptest! {
        /// Whatever is heard, a member changes only after as many of the same kind in a row.
        #[test]
        fn no_single_signal_moves_anything(heard in proptest::collection::vec(any::<bool>(), 1..80)) {
            let mut members = members();
            let (mut is_up, mut row) = (true, 0);
            for (secs, answer) in (0..).zip(heard) {
                row = if answer == is_up { 0 } else { row + 1 };
                let changes = row == if is_up { 3 } else { 2 };
                prop_assert_eq!(members.heard(at(secs), "a", answer), changes);
                if changes {
                    (is_up, row) = (answer, 0);
                }
                prop_assert_eq!(members.is_up("a"), is_up);
            }
        }
    }
}
