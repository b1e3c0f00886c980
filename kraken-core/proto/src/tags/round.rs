//! The side of whoever reads or changes a tag.
//!
//! A read asks the owners what they hold: when most of them hold what the same attempt left, that is
//! the tag. Otherwise, and for every change, there is a round: most owners promise to take nothing
//! earlier, the change is made to the latest state that they hold, and most owners take the result.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Change, Refusal, TagState};
use super::register::{Ballot, Outbid, Register};

/// More than half of the owners.
pub const fn quorum(owners: usize) -> usize {
    owners / 2 + 1
}

/// Which owners are enough: most of all, or, while one list of them follows another, most of those by
/// the one and most of those by the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Majorities(Vec<BTreeSet<usize>>);

impl Majorities {
    /// Most of so many owners.
    pub fn of(owners: usize) -> Self {
        Self(vec![(0..owners).collect()])
    }

    /// Most owners of each of these groups.
    pub fn of_each(groups: Vec<BTreeSet<usize>>) -> Self {
        Self(groups)
    }

    /// Whether those of whom `is_one` holds are enough.
    fn are(&self, is_one: impl Fn(usize) -> bool) -> bool {
        let most = |group: &BTreeSet<usize>| {
            group.iter().filter(|it| is_one(**it)).count() >= quorum(group.len())
        };
        self.0.iter().all(most)
    }

    /// How many may be missing where one of each majority must be among those heard; a few less, so that
    /// these are a majority themselves.
    pub fn spare(&self) -> usize {
        let spare = self
            .0
            .iter()
            .map(|it| it.len().saturating_sub(quorum(it.len())));
        spare.min().unwrap_or(0)
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Wait for further answers.
    Wait,
    /// Ask those owners to take this state that promised and were not asked yet, in the incarnation
    /// in which they did. One that did not promise, or has lost its disk since, must not take it.
    Accept(Option<TagState>),
    /// Done: most owners hold this.
    Done(Option<TagState>),
    /// The change is not to be made.
    Refused(Refusal),
    /// Somebody else attempts at the same time: again, with a larger ballot than this.
    Again(Ballot),
    /// Too few owners can be reached. Nothing is known of the outcome: the change may yet show.
    Unreachable,
}

/// A look at what the owners hold.
#[derive(Debug)]
pub struct Look {
    owners: Majorities,
    held: BTreeMap<usize, Register>,
    failed: BTreeSet<usize>,
}

impl Look {
    /// Among these owners.
    pub fn new(owners: Majorities) -> Self {
        Self {
            owners,
            held: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// An owner told what it holds. `Again` when the owners do not agree.
    pub fn heard(&mut self, owner: usize, register: &Register) -> Step {
        self.held.insert(owner, register.clone());
        self.step()
    }

    /// An owner does not answer.
    pub fn failed(&mut self, owner: usize) -> Step {
        self.failed.insert(owner);
        self.step()
    }

    fn step(&self) -> Step {
        if !self.owners.are(|it| self.held.contains_key(&it)) {
            return if self.owners.are(|it| !self.failed.contains(&it)) {
                Step::Wait
            } else {
                Step::Unreachable
            };
        }
        let latest = self.held.values().max_by_key(|it| it.accepted);
        let Some(latest) = latest else {
            return Step::Wait;
        };
        // Of a tag that nobody has ever set there is nothing to vote for.
        let agrees =
            |it: &Register| it.accepted == latest.accepted && (it.voted || it.state.is_none());
        if self.owners.are(|it| self.held.get(&it).is_some_and(agrees)) {
            return Step::Done(latest.state.clone());
        }
        // Whether those who have not answered would agree is not worth the wait.
        Step::Again(latest.promised)
    }
}

/// One attempt to change a tag, or to make sure of what it is.
#[derive(Debug)]
pub struct Round {
    ballot: Ballot,
    owners: Majorities,
    change: Change,
    /// Who promised, and in which incarnation.
    promised: BTreeMap<usize, u64>,
    latest: (Ballot, Option<TagState>),
    /// What is to be taken, once that is decided.
    decided: Option<Option<TagState>>,
    /// The change was not made; but what it was refused for must be agreed upon first.
    refusal: Option<Refusal>,
    taken: BTreeSet<usize>,
    failed: BTreeSet<usize>,
}

impl Round {
    /// An attempt among these owners.
    pub fn new(ballot: Ballot, owners: Majorities, change: Change) -> Self {
        Self {
            ballot,
            owners,
            change,
            promised: BTreeMap::new(),
            latest: (Ballot::default(), None),
            decided: None,
            refusal: None,
            taken: BTreeSet::new(),
            failed: BTreeSet::new(),
        }
    }

    /// The attempt's name.
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// Who promised, and in which incarnation.
    pub fn promised(&self) -> impl Iterator<Item = (usize, u64)> {
        self.promised
            .iter()
            .map(|(owner, in_life)| (*owner, *in_life))
    }

    /// An owner promised; `register` is what it holds.
    pub fn heard_promise(&mut self, owner: usize, incarnation: u64, register: &Register) -> Step {
        if let Some(state) = &self.decided {
            if register.accepted > self.latest.0 {
                // What was decided on did not know of it.
                return Step::Again(self.ballot);
            }
            self.promised.insert(owner, incarnation);
            return Step::Accept(state.clone());
        }
        self.promised.insert(owner, incarnation);
        if register.accepted > self.latest.0 {
            self.latest = (register.accepted, register.state.clone());
        }
        if !self.owners.are(|it| self.promised.contains_key(&it)) {
            return Step::Wait;
        }
        let state = match self.change.apply(self.latest.1.as_ref()) {
            Ok(state) => state,
            Err(refusal) => {
                self.refusal = Some(refusal);
                self.latest.1.clone()
            }
        };
        self.decided = Some(state.clone());
        Step::Accept(state)
    }

    /// What the tag is to be, if that is decided and a change.
    pub fn attempted(&self) -> Option<&TagState> {
        let decided = self.decided.as_ref()?.as_ref()?;
        (self.latest.1.as_ref() != Some(decided)).then_some(decided)
    }

    /// An owner took the state.
    pub fn heard_accept(&mut self, owner: usize) -> Step {
        self.taken.insert(owner);
        match (&self.decided, self.refusal) {
            _ if !self.owners.are(|it| self.taken.contains(&it)) => Step::Wait,
            (_, Some(refusal)) => Step::Refused(refusal),
            (Some(state), None) => Step::Done(state.clone()),
            (None, None) => Step::Wait,
        }
    }

    /// An owner heard of a later attempt.
    pub fn outbid(&mut self, by: Outbid) -> Step {
        Step::Again(by.0.max(self.ballot))
    }

    /// An owner does not answer, be it to the first or to the second question, or lost its disk in
    /// between.
    pub fn failed(&mut self, owner: usize) -> Step {
        self.failed.insert(owner);
        if self.owners.are(|it| !self.failed.contains(&it)) {
            Step::Wait
        } else {
            Step::Unreachable
        }
    }
}
