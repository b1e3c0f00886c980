//! How an owner that lost its disk comes back, and how a new cluster begins.
//!
//! An owner without a memory must not vote: with it, a majority could forget what another majority,
//! of which this owner was one, has acknowledged. So it first hears from the others what they hold,
//! from so many that each earlier majority is among them. In a new cluster nobody remembers anything,
//! and those that see that of all others write down who began it: whoever is among these had nothing
//! to forget.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::round::quorum;

/// Which lives of the other owners' disks this one has helped to begin: what an attempt was promised in
/// an earlier life of one of them must not come to its end here.
///
/// Of each majority that promised, one has told the new life what it holds. Either it had taken the
/// attempt's state by then, and told of it; or it turns the attempt down from then on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lives(BTreeMap<String, u64>);

impl Lives {
    /// This owner tells a new life of another what it holds.
    pub fn began(&mut self, owner: &str, incarnation: u64) {
        self.0.insert(owner.to_owned(), incarnation);
    }

    /// Whether an attempt stands on promises of these lives, and not on forgotten ones.
    pub fn allow<'a>(&self, promised: impl IntoIterator<Item = (&'a str, u64)>) -> bool {
        let is_new = |(owner, incarnation)| {
            let known = self.0.get(owner);
            known.is_none_or(|known| *known == incarnation)
        };
        promised.into_iter().all(is_new)
    }
}

/// What an owner says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Names the life of its disk: drawn when that was empty.
    pub incarnation: u64,
    /// The incarnations that began the cluster, as far as it remembers; nobody while it does not vote.
    pub founders: Vec<u64>,
    /// How many owners each tag is to have, by the configuration that it began with.
    pub replicas: usize,
}

impl Standing {
    /// Whether it votes.
    pub fn votes(&self) -> bool {
        !self.founders.is_empty()
    }
}

/// What is to be done by an owner that does not vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Ask again later: too few of the others answer.
    Wait,
    /// Vote from now on, and remember these founders.
    Begin(Vec<u64>),
    /// Learn from those that vote, at least `from` of them, what they hold; then vote, and remember
    /// these founders.
    CatchUp {
        /// From how many others.
        from: usize,
        /// The founders.
        founders: Vec<u64>,
    },
}

/// From how many of the others an owner without a memory must hear, where each tag has so many
/// owners: of each majority that it may have been one of, one other is among these.
pub const fn needed(members: usize, owners: usize) -> usize {
    // A majority has `quorum - 1` others; one of them is left when `quorum - 2` cannot be asked.
    let spare = quorum(owners).saturating_sub(2);
    (members - 1).saturating_sub(spare)
}

/// Decides, of what the other members say; `None` of who does not answer.
pub fn decide(ours: u64, others: &[Option<Standing>], owners: usize) -> Decision {
    let members = others.len() + 1;
    let heard = others.iter().flatten();
    let voting: Vec<_> = heard.clone().filter(|it| it.votes()).collect();
    let founded = voting.iter().find(|it| it.founders.contains(&ours));
    if let Some(founded) = founded {
        return Decision::Begin(founded.founders.clone());
    }
    let from = needed(members, owners);
    match voting.first() {
        Some(first) if voting.len() >= from => Decision::CatchUp {
            from,
            founders: first.founders.clone(),
        },
        Some(_) => Decision::Wait,
        None if heard.clone().count() == others.len() => {
            let mut founders: Vec<_> = heard.map(|it| it.incarnation).chain([ours]).collect();
            founders.sort_unstable();
            Decision::Begin(founders)
        }
        None => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(incarnation: u64, founders: &[u64]) -> Option<Standing> {
        let founders = founders.to_vec();
        Some(Standing {
            incarnation,
            founders,
            replicas: 3,
        })
    }

    #[test]
    fn a_new_cluster_begins_when_all_are_there() {
        let all_new = [standing(2, &[]), standing(3, &[])];
        assert_eq!(decide(1, &all_new, 3), Decision::Begin(vec![1, 2, 3]));
        assert_eq!(decide(1, &[standing(2, &[]), None], 3), Decision::Wait);
        // Those that come to it a moment later find that it has begun with them.
        let begun = [standing(1, &[1, 2, 3]), None];
        assert_eq!(decide(2, &begun, 3), Decision::Begin(vec![1, 2, 3]));
        assert_eq!(decide(7, &[], 3), Decision::Begin(vec![7]), "alone");
    }

    #[test]
    fn whoever_lost_its_disk_hears_one_of_each_majority() {
        let founders = [1, 2, 3];
        let others = [standing(2, &founders), standing(3, &founders)];
        let catch_up = Decision::CatchUp {
            from: 2,
            founders: founders.to_vec(),
        };
        assert_eq!(decide(9, &others, 3), catch_up);
        assert_eq!(
            decide(9, &[standing(2, &founders), None], 3),
            Decision::Wait
        );
        // One that lost its disk as well knows nothing of a majority of these two.
        let both = [standing(2, &founders), standing(8, &[])];
        assert_eq!(decide(9, &both, 3), Decision::Wait);
        assert_eq!((needed(3, 3), needed(5, 5), needed(5, 3)), (2, 3, 4));
        assert_eq!((needed(1, 1), needed(2, 2)), (0, 1));
    }
}
