//! Whether what clients saw of one tag can have happened in one order, each operation at one moment between
//! its request and its answer: linearizability (Herlihy and Wing, 1990).
//!
//! [`check`] first looks for violations that can be named (`rules`), and when there are none searches for that
//! order (`search`). Both know from the versions in which order the states were; what they do not know is
//! which operation made a state whose maker was told no version, what became of those without an answer, and
//! states that nobody saw.

mod rules;
mod search;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use kraken_core::Digest;
use serde::{Deserialize, Serialize};

/// States of a tag that its history has at most: the present one and ten before it.
pub const HISTORY: usize = 11;

/// One state of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its version, 0 of a tag that was never set.
    pub version: u64,
    /// What the tag points to; nothing when it does not exist.
    pub digest: Option<Digest>,
}

impl State {
    /// A tag that was never set.
    pub const NEVER: Self = Self {
        version: 0,
        digest: None,
    };
}

/// What must hold for a tag to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    Any,
    /// It exists, at this version (`If-Match`).
    Version(u64),
    /// It does not exist (`If-None-Match: *`).
    Absent,
}

/// What a client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// What the tag is.
    Read,
    /// What it is and was.
    History,
    /// That it point to a digest, or is removed without one.
    Set {
        /// What it is to point to.
        digest: Option<Digest>,
        /// What must hold.
        condition: Condition,
    },
}

/// Why a change was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The tag is at this version.
    Changed(u64),
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
}

/// What a client was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answered {
    /// States, the latest first: one to a read.
    Told(Vec<State>),
    /// The tag is as it was to be, at this version where that was said.
    Done(Option<u64>),
    /// Nothing was changed.
    Refused(Refusal),
    /// Nobody knows: it was made, or not, or will be later.
    Unknown,
}

/// One operation as its client saw it; times in microseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// Just before it asked.
    pub began: u64,
    /// Just after it had the answer.
    pub ended: u64,
    /// What it asked.
    pub asked: Asked,
    /// What it was answered.
    pub answered: Answered,
}

impl Operation {
    /// A version that the tag was at while it ran.
    fn version(&self) -> Option<u64> {
        match &self.answered {
            Answered::Told(states) => states.first().map(|it| it.version),
            Answered::Done(version) => *version,
            Answered::Refused(Refusal::Changed(version)) => Some(*version),
            Answered::Refused(_) | Answered::Unknown => None,
        }
    }

    /// What it may have made of the tag, if it was a change that was not refused.
    fn set(&self) -> Option<(Option<Digest>, Condition)> {
        match (self.asked, &self.answered) {
            (_, Answered::Refused(_)) => None,
            (Asked::Set { digest, condition }, _) => Some((digest, condition)),
            _ => None,
        }
    }

    /// Whether it may have made a state of which its client knows no version.
    fn is_silent(&self) -> bool {
        self.set().is_some() && self.version().is_none()
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One version was told with two digests.
    TwoDigests,
    /// A version was seen after a later one had been told, or acknowledged.
    WentBack,
    /// A history leaves out a state that was seen or acknowledged.
    Lost,
    /// A state that nobody asked for, or before anybody did.
    Unwritten,
    /// A digest was set more often than it was asked for.
    MadeTwice,
    /// A state that can only come from changes whose condition did not hold.
    Condition,
    /// No order of all operations explains what was answered.
    NoOrder,
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// What it is.
    pub kind: Kind,
    /// What was seen.
    pub what: String,
}

impl Violation {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { kind, what }
    }
}

/// What came of looking at the operations of one tag.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// States that were seen.
    pub states: usize,
    /// Places where states may have been that nobody saw: what a condition met there is not known.
    pub gaps: usize,
    /// Steps of the search.
    pub steps: usize,
    /// The search was given up: it neither found an order nor that there is none.
    pub is_undecided: bool,
}

/// Checks all operations of one tag, in any order. The last reads among them say what is left in the end.
pub fn check(operations: &[Operation]) -> Checked {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|it| (it.began, it.ended));
    let (timeline, violations) = Timeline::of(&operations);
    let mut checked = Checked {
        violations,
        states: timeline.states.len(),
        gaps: timeline.gaps.iter().rev().skip(1).filter(|it| **it).count(),
        ..Checked::default()
    };
    checked
        .violations
        .extend(rules::broken(&operations, &timeline));
    if checked.violations.is_empty() {
        let searched = search::search(&operations, &timeline);
        checked.violations.extend(searched.violation);
        (checked.steps, checked.is_undecided) = (searched.steps, searched.is_undecided);
    }
    checked
}

/// All states that were seen of a tag, in the order of their versions; the first is that of a tag never set.
#[derive(Debug)]
struct Timeline {
    states: Vec<State>,
    /// Whether there may have been others that nobody saw between this one and that before it; one more than
    /// states, for those after the last.
    gaps: Vec<bool>,
}

impl Timeline {
    /// The timeline, and each version that was told with two digests. By the time at which they began.
    fn of(operations: &[Operation]) -> (Self, Vec<Violation>) {
        let mut seen = BTreeMap::from([(0, None)]);
        let mut joined = BTreeSet::new();
        let mut violations = Vec::new();
        for operation in operations {
            let whole = told(operation);
            for state in &whole {
                let known = *seen.entry(state.version).or_insert(state.digest);
                if known != state.digest {
                    let what = format!("{state:?} was {known:?} before: {operation:?}");
                    violations.push(Violation::new(Kind::TwoDigests, what));
                }
            }
            if operation.asked == Asked::History {
                let pairs = whole.windows(2).map(|it| (it[1].version, it[0].version));
                joined.extend(pairs);
            }
        }
        let states: Vec<_> = seen
            .into_iter()
            .map(|(version, digest)| State { version, digest })
            .collect();
        let mut timeline = Self {
            gaps: vec![false; states.len() + 1],
            states,
        };
        timeline.find_gaps(operations, &joined);
        violations.extend(timeline.find_named(operations, &joined));
        (timeline, violations)
    }

    /// Where changes that are nowhere to be seen may have come.
    fn find_gaps(&mut self, operations: &[Operation], joined: &BTreeSet<(u64, u64)>) {
        // As often as it was set, less as often as it was seen.
        let mut left = BTreeMap::<_, isize>::new();
        for (digest, _) in operations.iter().filter_map(Operation::set) {
            *left.entry(digest).or_default() += 1;
        }
        for state in &self.states[1..] {
            *left.entry(state.digest).or_default() -= 1;
        }
        let is_unseen =
            |it: &&Operation| it.is_silent() && it.set().is_some_and(|it| left[&it.0] > 0);
        let unseen = operations.iter().filter(is_unseen);
        let Some(from) = unseen.map(|it| it.began).min() else {
            return;
        };
        for (at, pair) in self.states.windows(2).enumerate() {
            let (before, version) = (pair[0].version, pair[1].version);
            let later = operations.iter().filter(|it| it.version() >= Some(version));
            let seen_at = later.map(|it| it.ended).min().unwrap_or(u64::MAX);
            self.gaps[at + 1] = !joined.contains(&(before, version)) && from <= seen_at;
        }
        self.gaps[self.states.len()] = true;
    }

    /// The same where a refusal names a version that nobody saw; and each that no history has.
    fn find_named(
        &mut self,
        operations: &[Operation],
        joined: &BTreeSet<(u64, u64)>,
    ) -> Vec<Violation> {
        let mut violations = Vec::new();
        for operation in operations {
            let Answered::Refused(Refusal::Changed(version)) = operation.answered else {
                continue;
            };
            let Err(at) = self.place_of(version) else {
                continue;
            };
            let before = self.states[at - 1].version;
            let after = self.states.get(at).map(|it| it.version);
            if after.is_some_and(|after| joined.contains(&(before, after))) {
                let what = format!("histories do not have what {operation:?} names");
                violations.push(Violation::new(Kind::Lost, what));
            }
            self.gaps[at] = true;
        }
        violations
    }

    /// Whether a condition held at this state, or may have behind it at one of those that nobody saw.
    fn may_hold(&self, condition: Condition, at: usize, is_hidden: bool) -> bool {
        match condition {
            Condition::Any => true,
            Condition::Absent => is_hidden || self.states[at].digest.is_none(),
            Condition::Version(version) if is_hidden => self.place_of(version) == Err(at + 1),
            Condition::Version(version) => {
                self.states[at].version == version && self.states[at].digest.is_some()
            }
        }
    }

    fn place_of(&self, version: u64) -> Result<usize, usize> {
        self.states.binary_search_by_key(&version, |it| it.version)
    }
}

/// The states that an answer names. A history that is not full goes back to the beginning.
fn told(operation: &Operation) -> Vec<State> {
    match (&operation.asked, &operation.answered) {
        (Asked::History, Answered::Told(states)) => {
            let mut states = states.clone();
            let is_whole = states.len() < HISTORY && states.last().is_none_or(|it| it.version > 0);
            states.extend(is_whole.then_some(State::NEVER));
            states
        }
        (_, Answered::Told(states)) => states.clone(),
        (Asked::Set { digest, .. }, Answered::Done(Some(version))) => {
            let (version, digest) = (*version, *digest);
            vec![State { version, digest }]
        }
        _ => Vec::new(),
    }
}
