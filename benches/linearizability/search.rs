//! The search for an order of all operations of a tag (Wing and Gong, 1993, with the memory of Lowe, 2017).
//!
//! A configuration is the state that the tag is in and which operations have been placed so far. An operation
//! can be placed next when none that is left had ended before it began. Those that change nothing and fit the
//! state are placed as soon as they can be: that never takes a way away. What remains to be tried is which
//! change makes the next state, and where those removals belong that found nothing to remove.

use std::collections::{BTreeMap, HashSet};

use kraken_core::Digest;

use super::{Answered, Asked, Condition, Kind, Operation, Refusal, Timeline, Violation};

/// Configurations that are looked at before it is given up.
const MOST_STEPS: usize = 200_000;

/// What the search came to.
#[derive(Debug, Default)]
pub(super) struct Searched {
    pub(super) violation: Option<Violation>,
    pub(super) steps: usize,
    pub(super) is_undecided: bool,
}

/// How far it is: at which state, whether behind it in states that nobody saw, and what has been placed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Configuration {
    at: usize,
    is_hidden: bool,
    placed: Vec<u64>,
    /// All answered operations before this one are placed.
    first: usize,
}

impl Configuration {
    fn has(&self, operation: usize) -> bool {
        self.placed[operation / 64] >> (operation % 64) & 1 == 1
    }

    fn place(&mut self, operation: usize) {
        self.placed[operation / 64] |= 1 << (operation % 64);
    }

    fn with(&self, operation: usize) -> Self {
        let mut next = self.clone();
        next.place(operation);
        next
    }
}

/// Searches an order for operations that are sorted by the time at which they began.
pub(super) fn search(operations: &[Operation], timeline: &Timeline) -> Searched {
    let search = Search::new(operations, timeline);
    let mut open = vec![Configuration {
        at: 0,
        is_hidden: false,
        placed: vec![0; operations.len().div_ceil(64)],
        first: 0,
    }];
    let mut known = HashSet::new();
    let mut farthest: Option<Configuration> = None;
    while let Some(mut now) = open.pop() {
        if search.settle(&mut now) {
            return Searched {
                steps: known.len(),
                ..Searched::default()
            };
        }
        if farthest.as_ref().is_none_or(|it| it.first <= now.first) {
            farthest = Some(now.clone());
        }
        if known.contains(&now) {
            continue;
        }
        if known.len() >= MOST_STEPS {
            return Searched {
                steps: known.len(),
                is_undecided: true,
                violation: None,
            };
        }
        // The last one is looked at first.
        open.extend(search.next(&now).into_iter().rev());
        known.insert(now);
    }
    Searched {
        violation: farthest.map(|it| search.why(&it)),
        steps: known.len(),
        is_undecided: false,
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    timeline: &'a Timeline,
    /// Changes without an answer, by what they would make of the tag.
    unanswered: BTreeMap<Option<Digest>, Vec<usize>>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation], timeline: &'a Timeline) -> Self {
        let mut unanswered = BTreeMap::<_, Vec<usize>>::new();
        for (number, operation) in operations.iter().enumerate() {
            if let (Answered::Unknown, Asked::Set { digest, .. }) =
                (&operation.answered, operation.asked)
            {
                unanswered.entry(digest).or_default().push(number);
            }
        }
        Self {
            operations,
            timeline,
            unanswered,
        }
    }

    /// Places all that fits and changes nothing; whether everything is placed.
    fn settle(&self, now: &mut Configuration) -> bool {
        loop {
            while now.first < self.operations.len() && !self.is_left(now, now.first) {
                now.first += 1;
            }
            if now.first == self.operations.len() {
                return true;
            }
            let (ready, _) = self.ready(now);
            let fitting = ready.into_iter().filter(|it| self.only_looks(now, *it));
            let fitting: Vec<_> = fitting.collect();
            if fitting.is_empty() {
                return false;
            }
            for operation in fitting {
                now.place(operation);
            }
        }
    }

    fn is_left(&self, now: &Configuration, operation: usize) -> bool {
        self.operations[operation].answered != Answered::Unknown && !now.has(operation)
    }

    /// The answered operations that can be next, and when the first of them ends.
    fn ready(&self, now: &Configuration) -> (Vec<usize>, u64) {
        let (mut ready, mut until) = (Vec::new(), u64::MAX);
        for number in now.first..self.operations.len() {
            let operation = &self.operations[number];
            if operation.began > until {
                break;
            }
            if self.is_left(now, number) {
                until = until.min(operation.ended);
                ready.push(number);
            }
        }
        ready.retain(|it| self.operations[*it].began <= until);
        (ready, until)
    }

    /// Whether it fits the state, and can make no other.
    fn only_looks(&self, now: &Configuration, number: usize) -> bool {
        let (state, is_hidden) = (self.timeline.states[now.at], now.is_hidden);
        let operation = &self.operations[number];
        let is_at = |version: u64| !is_hidden && state.version == version;
        match (operation.asked, &operation.answered) {
            (_, Answered::Told(states)) => states.first().is_some_and(|it| is_at(it.version)),
            (_, Answered::Done(version)) => version.is_some_and(is_at),
            (Asked::Set { digest, .. }, Answered::Refused(why)) => match why {
                Refusal::Changed(version) if is_hidden => {
                    self.timeline.place_of(*version) == Err(now.at + 1)
                }
                Refusal::Changed(version) => is_at(*version) && state.digest != digest,
                Refusal::Exists => is_hidden || (state.digest.is_some() && state.digest != digest),
                Refusal::Absent => is_hidden || state.digest.is_none(),
            },
            _ => false,
        }
    }

    /// What can come of it, the likeliest first.
    fn next(&self, now: &Configuration) -> Vec<Configuration> {
        let (ready, until) = self.ready(now);
        let mut next: Vec<_> = self.makers(now, &ready, until);
        // What it was to be it was already, and its client was told no version.
        let state = self.timeline.states[now.at];
        let found_so = ready.iter().filter(|number| {
            let operation = &self.operations[**number];
            let wanted = operation.set().map(|it| it.0);
            operation.is_silent() && (now.is_hidden || wanted == Some(state.digest))
        });
        next.extend(found_so.map(|number| now.with(*number)));
        if !now.is_hidden && self.timeline.gaps.get(now.at + 1) == Some(&true) {
            next.push(Configuration {
                is_hidden: true,
                ..now.clone()
            });
        }
        next
    }

    /// Those that may make the next state.
    fn makers(&self, now: &Configuration, ready: &[usize], until: u64) -> Vec<Configuration> {
        let Some(state) = self.timeline.states.get(now.at + 1) else {
            return Vec::new();
        };
        let before = self.timeline.states[now.at];
        let fits = |number: &usize| {
            let operation = &self.operations[*number];
            // A put is told the latest version with its digest, which may be that of another one since.
            let is_it = operation.version().is_none_or(|it| it >= state.version);
            let holds = operation.set().is_some_and(|(digest, condition)| {
                digest == state.digest
                    && (now.is_hidden || digest != before.digest)
                    && self.timeline.may_hold(condition, now.at, now.is_hidden)
            });
            is_it && holds
        };
        let mut makers: Vec<_> = ready.iter().copied().filter(fits).collect();
        makers.sort_by_key(|it| {
            let operation = &self.operations[*it];
            let is_exact = operation.version() == Some(state.version);
            (!is_exact, operation.is_silent(), operation.ended)
        });
        let unanswered = self.unanswered.get(&state.digest).into_iter().flatten();
        let unanswered = unanswered
            .copied()
            .filter(|it| !now.has(*it) && self.operations[*it].began <= until);
        let (bare, bound): (Vec<_>, Vec<_>) = unanswered.filter(fits).partition(|it| {
            self.operations[*it]
                .set()
                .is_some_and(|it| it.1 == Condition::Any)
        });
        // One that asks for nothing and may be later as well is as good as the other.
        makers.extend(bound.into_iter().chain(bare.into_iter().take(1)));
        let made = |number: usize| {
            let mut next = now.with(number);
            (next.at, next.is_hidden) = (now.at + 1, false);
            next
        };
        makers.into_iter().map(made).collect()
    }

    fn why(&self, now: &Configuration) -> Violation {
        let (ready, _) = self.ready(now);
        let stuck = ready.iter().min_by_key(|it| self.operations[**it].ended);
        let what = format!(
            "nothing explains {:?}: the tag was at {:?}, {:?} came next",
            stuck.map(|it| &self.operations[*it]),
            self.timeline.states[now.at],
            self.timeline.states.get(now.at + 1),
        );
        Violation::new(Kind::NoOrder, what)
    }
}
