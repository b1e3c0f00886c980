//! How an owner that lost its disk comes back, and how a new cluster begins.
//!
//! An owner without a memory must not vote: with it, a majority could forget what another majority,
//! of which this owner was one, has acknowledged. So it first hears from the others what they hold,
//! from so many that each earlier majority is among them. In a new cluster nobody remembers anything,
//! and those that see that of all others write down who began it: whoever is among these had nothing
//! to forget.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::list::{Lists, Members};

/// Which lives of the other owners' disks this one has helped to begin: what an attempt was promised in
/// an earlier life of one of them must not come to its end here.
///
/// Of each majority that promised, one has told the new life what it holds. Either it had taken the
/// attempt's state by then, and told of it; or it turns the attempt down from then on. Lives are in order: a
/// later one that this owner did not help to begin was helped by others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lives(BTreeMap<String, u64>);

impl Lives {
    /// This owner tells a new life of another what it holds.
    pub fn began(&mut self, owner: &str, incarnation: u64) {
        let known = self.0.entry(owner.to_owned()).or_default();
        *known = incarnation.max(*known);
    }

    /// The last life of an owner that this one helped to begin.
    pub fn last_of(&self, owner: &str) -> Option<u64> {
        self.0.get(owner).copied()
    }

    /// Whether an attempt stands on promises of these lives, and not on forgotten ones.
    pub fn allow<'a>(&self, promised: impl IntoIterator<Item = (&'a str, u64)>) -> bool {
        let is_new = |(owner, incarnation)| {
            let known = self.0.get(owner);
            known.is_none_or(|known| incarnation >= *known)
        };
        promised.into_iter().all(is_new)
    }
}

/// What an owner says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Names the life of its disk: drawn when that was empty, larger than that of any life before.
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

/// What a member says when it is asked who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// What it says of itself.
    pub standing: Standing,
    /// What it knows of the lists of members; nothing while it has no memory.
    pub lists: Option<Lists>,
    /// Which lives of others it has helped to begin.
    pub lives: Lives,
}

/// What is to be done by an owner that does not vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Ask again later: too few of the others answer.
    Wait,
    /// The clock was set back between two lives: take this incarnation, and ask again.
    Renew(u64),
    /// Ask again later: those that vote do not have this list of members in their configuration yet.
    NotListed,
    /// Ask those of a list that is being left as well.
    AskToo(Members),
    /// Vote from now on, and remember these.
    Begin(Beginning),
    /// Learn from those that vote what they hold; then ask all again, and if [`Lists::suffices`] says so of
    /// those that told, vote, and remember these.
    CatchUp(Beginning),
}

/// What an owner remembers when it begins to vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The incarnations that began the cluster.
    pub founders: Vec<u64>,
    /// The lists of members.
    pub lists: Lists,
}

/// Decides for the owner of this name and incarnation, of what the other members say; `None` of who does
/// not answer. `configured` is the list of members in the configuration.
pub fn decide(
    (own, ours): (&str, u64),
    configured: &Members,
    others: &BTreeMap<String, Option<Told>>,
    replicas: usize,
) -> Decision {
    let heard = || {
        others
            .iter()
            .filter_map(|(name, told)| Some((name, told.as_ref()?)))
    };
    let known = heard().filter_map(|(_, it)| it.lives.last_of(own)).max();
    if let Some(known) = known.filter(|known| *known > ours) {
        return Decision::Renew(known + 1);
    }
    let voting: Vec<_> = heard().filter(|(_, it)| it.standing.votes()).collect();
    let Some((_, first)) = voting.first() else {
        if heard().count() < others.len() {
            return Decision::Wait;
        }
        let all = heard().map(|(_, it)| it.standing.incarnation).chain([ours]);
        let mut founders: Vec<_> = all.collect();
        founders.sort_unstable();
        let lists = Lists::first(configured.clone());
        return Decision::Begin(Beginning { founders, lists });
    };
    let founders = first.standing.founders.clone();
    let lists: BTreeMap<_, _> = voting
        .iter()
        .filter_map(|(name, it)| Some(((*name).clone(), it.lists.clone()?)))
        .collect();
    let Some(furthest) = Lists::to_adopt(&lists, configured) else {
        return Decision::NotListed;
    };
    let mut members = furthest.members();
    members.remove(own);
    if members.keys().any(|name| !others.contains_key(name)) {
        return Decision::AskToo(members);
    }
    let is_founder = founders.contains(&ours);
    let suffices = furthest.suffices(own, &lists, replicas);
    let beginning = Beginning {
        founders,
        lists: furthest,
    };
    match (is_founder, suffices) {
        // It had nothing to forget when the others began with it.
        (true, _) => Decision::Begin(beginning),
        (false, true) => Decision::CatchUp(beginning),
        (false, false) => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Members {
        let member = |name: &&str| ((*name).to_owned(), format!("https://{name}"));
        names.iter().map(member).collect()
    }

    fn told(incarnation: u64, founders: &[u64], lists: Option<&Lists>) -> Option<Told> {
        let founders = founders.to_vec();
        let standing = Standing {
            incarnation,
            founders,
            replicas: 3,
        };
        let lists = lists.cloned();
        let lives = Lives::default();
        Some(Told {
            standing,
            lists,
            lives,
        })
    }

    fn says(others: &[(&str, Option<Told>)]) -> BTreeMap<String, Option<Told>> {
        let others = others.iter().cloned();
        others.map(|(name, it)| (name.to_owned(), it)).collect()
    }

    #[test]
    fn a_new_cluster_begins_when_all_are_there() {
        let all = members(&["a", "b", "c"]);
        let begin = |founders: &[u64], names: &[&str]| {
            Decision::Begin(Beginning {
                founders: founders.to_vec(),
                lists: Lists::first(members(names)),
            })
        };
        let new = says(&[("b", told(2, &[], None)), ("c", told(3, &[], None))]);
        assert_eq!(
            decide(("a", 1), &all, &new, 3),
            begin(&[1, 2, 3], &["a", "b", "c"])
        );
        let away = says(&[("b", told(2, &[], None)), ("c", None)]);
        assert_eq!(decide(("a", 1), &all, &away, 3), Decision::Wait);
        // Those that come to it a moment later find that it has begun with them.
        let lists = Lists::first(all.clone());
        let begun = says(&[("a", told(1, &[1, 2, 3], Some(&lists))), ("c", None)]);
        let lists = lists.adopted();
        let founders = vec![1, 2, 3];
        let begin_too = Decision::Begin(Beginning { founders, lists });
        assert_eq!(decide(("b", 2), &all, &begun, 3), begin_too);
        let alone = decide(("a", 7), &members(&["a"]), &says(&[]), 3);
        assert_eq!(alone, begin(&[7], &["a"]));
    }

    #[test]
    fn whoever_lost_its_disk_hears_one_of_each_majority() {
        let (all, founders) = (members(&["a", "b", "c"]), [1, 2, 3]);
        let lists = Lists::first(all.clone());
        let b = told(2, &founders, Some(&lists));
        let decide = |c| decide(("a", 9), &all, &says(&[("b", b.clone()), ("c", c)]), 3);
        let catch_up = Decision::CatchUp(Beginning {
            founders: founders.to_vec(),
            lists: lists.adopted(),
        });
        assert_eq!(decide(told(3, &founders, Some(&lists))), catch_up);
        assert_eq!(decide(None), Decision::Wait);
        // One that lost its disk as well knows nothing of a majority of these two.
        assert_eq!(decide(told(8, &[], None)), Decision::Wait);
    }

    #[test]
    fn a_new_life_is_later_than_those_that_others_know_of() {
        let all = members(&["a", "b", "c"]);
        let mut b = told(2, &[1, 2, 3], Some(&Lists::first(all.clone()))).unwrap();
        b.lives.began("a", 12);
        b.lives.began("a", 11);
        let b = says(&[("b", Some(b)), ("c", None)]);
        assert_eq!(decide(("a", 9), &all, &b, 3), Decision::Renew(13));
        assert_eq!(decide(("a", 13), &all, &b, 3), Decision::Wait);
    }

    #[test]
    fn whoever_comes_to_it_waits_until_the_others_know_of_it_and_asks_those_that_leave() {
        let (old, new) = (members(&["a", "b", "c"]), members(&["a", "b", "d"]));
        let mut lists = Lists::first(old);
        let decide = |lists: &Lists, others: &[&str]| {
            let others = others
                .iter()
                .map(|name| (*name, told(1, &[1, 2, 3], Some(lists))));
            let others: Vec<_> = others.collect();
            decide(("d", 9), &new, &says(&others), 3)
        };
        assert_eq!(decide(&lists, &["a", "b"]), Decision::NotListed);
        lists.configure(new.clone()).unwrap();
        let too = Decision::AskToo(members(&["a", "b", "c"]));
        assert_eq!(decide(&lists, &["a", "b"]), too);
        let catch_up = Decision::CatchUp(Beginning {
            founders: vec![1, 2, 3],
            lists: lists.adopted(),
        });
        assert_eq!(decide(&lists, &["a", "b", "c"]), catch_up);
    }
}
