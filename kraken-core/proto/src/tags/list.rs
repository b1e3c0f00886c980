//! Which owners there are, and how one list of them follows another.
//!
//! Between two lists attempts need most owners by both, so that whoever knows only one of the lists
//! meets whoever knows both (joint consensus: Ongaro and Ousterhout, "In Search of an Understandable
//! Consensus Algorithm", 2014, section 6). Once all members of the new list know of it they *close* the
//! old one: an attempt that asks only its owners is refused. When so many have done so that no such attempt
//! can come to its end any more, each member *copies* what it is the first owner of to the owners by the
//! new list, and when all have, the new list stands alone. Each step depends only on what others have
//! said of steps that they do not take back, so that nobody has to be asked at one time with others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::round::quorum;
use crate::blob::digest::Digest;

/// Who the members are, by name, and where each is reached.
pub type Members = BTreeMap<String, String>;

/// One list in a row of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// One more than that of the list before.
    pub number: u64,
    /// Its members.
    pub members: Members,
}

/// Names a list: its number and the names in it, not where these are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ListId(u64);

impl List {
    /// Its name.
    pub fn id(&self) -> ListId {
        let mut text = self.number.to_string();
        for name in self.members.keys() {
            text.push('\n');
            text.push_str(name);
        }
        let digest = Digest::of(text.as_bytes());
        let first = digest.as_bytes().iter().take(8);
        ListId(first.fold(0, |id, byte| id << 8 | u64::from(*byte)))
    }

    /// From how many members one must hear to have heard one of each majority of owners.
    pub fn enough(&self, replicas: usize) -> usize {
        let owners = replicas.min(self.members.len());
        (self.members.len() + 1).saturating_sub(quorum(owners))
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.members.keys()
    }
}

/// What one of them knows of the lists. What it has told others of this it does not take back, apart
/// from a next list that it has not closed the settled one for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lists {
    /// The list that stands.
    pub settled: List,
    /// The one that is to follow.
    pub next: Option<List>,
    /// It refuses attempts that do not ask the owners by the next list.
    pub is_closed: bool,
    /// What it is the first owner of by the next list is with most owners by that list.
    pub has_copied: bool,
    /// It has this from another one, being without a memory: what it did before is not known.
    pub is_adopted: bool,
}

/// What is to be done next about a list that is to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing, until others have said more.
    Wait,
    /// Remember these, and tell the others.
    Become(Lists),
    /// Copy what it is the first owner of, then [`Lists::copied`].
    Copy,
}

/// Why a list cannot follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list is being changed to {0}: let that end first")]
pub struct UnderWay(String);

impl Lists {
    /// The first list of a cluster.
    pub const fn first(members: Members) -> Self {
        Self::standing_alone(List { number: 1, members })
    }

    const fn standing_alone(settled: List) -> Self {
        Self {
            settled,
            next: None,
            is_closed: false,
            has_copied: false,
            is_adopted: false,
        }
    }

    /// The configuration names these members.
    ///
    /// # Errors
    /// Others have begun to rely on another list that is to follow.
    pub fn configure(&mut self, members: Members) -> Result<(), UnderWay> {
        if same(&members, &self.settled) && !self.is_closed {
            self.settled.members = members;
            self.next = None;
        } else if let Some(next) = &mut self.next
            && same(&members, next)
        {
            next.members = members;
        } else if self.is_closed {
            let names: Vec<_> = self.next.iter().flat_map(List::names).cloned().collect();
            return Err(UnderWay(names.join(", ")));
        } else {
            let number = self.settled.number + 1;
            self.next = Some(List { number, members });
            self.is_adopted = false;
        }
        Ok(())
    }

    /// The lists whose owners an attempt of this one asks.
    pub fn asked(&self) -> Vec<ListId> {
        self.all().map(List::id).collect()
    }

    /// Whether an attempt that asks owners by these lists may come to its end here.
    pub fn allow(&self, asked: &[ListId]) -> bool {
        let required = match &self.next {
            Some(next) if self.is_closed => next,
            _ => &self.settled,
        };
        asked.contains(&required.id())
    }

    /// The lists in force: one, or two.
    pub fn all(&self) -> impl Iterator<Item = &List> {
        std::iter::once(&self.settled).chain(&self.next)
    }

    /// All members by any of the lists; where the later one says that they are.
    pub fn members(&self) -> Members {
        let all = self.all().flat_map(|list| &list.members);
        all.map(|(name, at)| (name.clone(), at.clone())).collect()
    }

    /// The list that the configuration names.
    pub fn latest(&self) -> &List {
        self.next.as_ref().unwrap_or(&self.settled)
    }

    /// Whether `own` is a member for good: of the list that stands, or the one that is to follow.
    pub fn keeps(&self, own: &str) -> bool {
        self.latest().members.contains_key(own)
    }

    /// Whether `own` was a member, and the list stands that it is not one of.
    pub fn has_left(&self, own: &str) -> bool {
        self.next.is_none() && !self.settled.members.contains_key(own)
    }

    /// It has copied what it is the first owner of.
    #[must_use]
    pub fn copied(mut self) -> Self {
        self.has_copied = true;
        self
    }

    /// What `own` is to do next, by what the others have said last.
    pub fn decide(&self, own: &str, others: &BTreeMap<String, Self>, replicas: usize) -> Move {
        if let Some(ahead) = others.values().find(|it| self.is_behind(it)) {
            return Move::Become(ahead.adopted());
        }
        let Some(next) = &self.next else {
            return Move::Wait;
        };
        // Where nobody else is asked there is only this one.
        let says = |name: &String, what: &dyn Fn(&Self) -> bool| {
            if name == own {
                what(self)
            } else {
                others.get(name).is_some_and(what)
            }
        };
        let stands = |it: &Self| it.settled.id() == next.id();
        let knows =
            |it: &Self| stands(it) || it.next.as_ref().is_some_and(|it| it.id() == next.id());
        let closed = |it: &Self| stands(it) || it.is_closed && knows(it);
        let copied = |it: &Self| stands(it) || it.has_copied && knows(it);
        if others.values().any(stands) || next.names().all(|it| says(it, &copied)) {
            return Move::Become(Self::standing_alone(next.clone()));
        }
        if !self.is_closed {
            let all_know = next.names().all(|it| says(it, &knows));
            return if all_know {
                let is_closed = true;
                Move::Become(Self {
                    is_closed,
                    ..self.clone()
                })
            } else {
                Move::Wait
            };
        }
        let closed = self.settled.names().filter(|it| says(it, &closed));
        let can_copy = closed.count() >= self.to_close(replicas);
        if can_copy && !self.has_copied && next.members.contains_key(own) {
            return Move::Copy;
        }
        Move::Wait
    }

    /// How many must have closed the settled list before anybody copies: then no majority is left for an
    /// attempt by that list, and whoever hears from [`List::enough`] hears of it.
    fn to_close(&self, replicas: usize) -> usize {
        let owners = replicas.min(self.settled.members.len());
        self.settled.enough(replicas).max(quorum(owners))
    }

    /// Whether another one, with the same list in its configuration, has gone further than by one step.
    fn is_behind(&self, other: &Self) -> bool {
        let is_next = self
            .next
            .as_ref()
            .is_some_and(|it| it.id() == other.settled.id());
        let is_further = other.settled.number > self.settled.number;
        is_further && !is_next && same(&self.latest().members, other.latest())
    }

    /// What one without a memory takes over that has these members in its configuration, of what those
    /// told that have one; nothing while the others know of a list that is not its.
    pub fn to_adopt(told: &BTreeMap<String, Self>, configured: &Members) -> Option<Self> {
        let agrees = |it: &Self| same(configured, it.latest());
        // One that was left behind may believe that its list follows another one.
        let furthest = told
            .values()
            .max_by_key(|it| (it.settled.number, it.is_closed, agrees(it)))?;
        agrees(furthest).then(|| furthest.adopted())
    }

    /// The same for one that knows nothing, or less. An attempt by the old list alone may have been
    /// refused here before.
    #[must_use]
    pub fn adopted(&self) -> Self {
        Self {
            settled: self.settled.clone(),
            next: self.next.clone(),
            is_closed: self.next.is_some(),
            has_copied: false,
            is_adopted: true,
        }
    }

    /// Whether `own`, which has no memory, has learnt all that was acknowledged when it has heard from
    /// these, which have one; `told` is what they say of the lists.
    pub fn suffices(&self, own: &str, told: &BTreeMap<String, Self>, replicas: usize) -> bool {
        let heard = |list: &List| {
            let others = list.names().filter(|name| *name != own);
            let (all, heard) = others.fold((0, 0), |(all, heard), name| {
                (all + 1, heard + usize::from(told.contains_key(name)))
            });
            heard >= list.enough(replicas).min(all)
        };
        // As long as one has not copied, or too few have closed for any to copy, who cannot have forgotten
        // it, nothing is kept by the next list alone.
        let is_open = |next: &List| {
            let remembers = |name: &String, what: &dyn Fn(&Self) -> bool| {
                told.get(name).is_some_and(|it| !it.is_adopted && what(it))
            };
            let follows = |it: &Self| it.next.as_ref().is_some_and(|it| it.id() == next.id());
            let not_copied = |it: &Self| follows(it) && !it.has_copied;
            let settled = self.settled.id();
            let not_closed = |it: &Self| it.settled.id() == settled && !it.is_closed;
            let open = self.settled.names().filter(|it| remembers(it, &not_closed));
            let closed = self.settled.members.len() - open.count();
            closed < self.to_close(replicas) || next.names().any(|it| remembers(it, &not_copied))
        };
        let next = self.next.as_ref();
        heard(&self.settled) && next.is_none_or(|next| is_open(next) || heard(next))
    }
}

fn same(members: &Members, list: &List) -> bool {
    members.keys().eq(list.members.keys())
}
