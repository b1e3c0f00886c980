//! Violations that can be told by their names, in time that grows little faster than the operations.

use std::collections::BTreeMap;

use super::{Answered, Asked, Condition, Kind, Operation, State, Timeline, Violation, told};

/// All that these operations, by the time at which they began, break.
pub(super) fn broken(operations: &[Operation], timeline: &Timeline) -> Vec<Violation> {
    let mut found = went_back(operations);
    found.extend(lost(operations, timeline));
    found.extend(unwritten(operations, timeline));
    found.extend(conditions(operations, timeline));
    found
}

/// No version after a later one that was known before the request.
fn went_back(operations: &[Operation]) -> Vec<Violation> {
    let known = |it: &&Operation| it.version().is_some();
    let mut by_end: Vec<_> = operations.iter().filter(known).collect();
    by_end.sort_by_key(|it| it.ended);
    let mut ended = by_end.into_iter().peekable();
    let mut latest: Option<&Operation> = None;
    let mut found = Vec::new();
    for operation in operations.iter().filter(known) {
        while let Some(before) = ended.next_if(|it| it.ended < operation.began) {
            if latest.is_none_or(|it| it.version() < before.version()) {
                latest = Some(before);
            }
        }
        if let Some(latest) = latest.filter(|it| it.version() > operation.version()) {
            let what = format!("{operation:?} came after {latest:?}");
            found.push(Violation::new(Kind::WentBack, what));
        }
    }
    found
}

/// What a history spans is in it.
fn lost(operations: &[Operation], timeline: &Timeline) -> Vec<Violation> {
    let mut found = Vec::new();
    for operation in operations.iter().filter(|it| it.asked == Asked::History) {
        let named = told(operation);
        let (Some(last), Some(first)) = (named.first(), named.last()) else {
            continue;
        };
        let states = timeline.states.iter();
        let spanned = states.filter(|it| (first.version..=last.version).contains(&it.version));
        for state in spanned.filter(|it| !named.contains(it)) {
            let what = format!("{state:?} is not in {operation:?}");
            found.push(Violation::new(Kind::Lost, what));
        }
        if !named.is_sorted_by(|later, earlier| later.version > earlier.version) {
            let what = format!("the order is wrong in {operation:?}");
            found.push(Violation::new(Kind::WentBack, what));
        }
    }
    found
}

/// Every state was asked for, before it was seen, and as often.
fn unwritten(operations: &[Operation], timeline: &Timeline) -> Vec<Violation> {
    let mut seen = BTreeMap::<u64, &Operation>::new();
    for operation in operations {
        for state in told(operation) {
            let first = seen.entry(state.version).or_insert(operation);
            if operation.ended < first.ended {
                *first = operation;
            }
        }
    }
    let mut states = BTreeMap::<_, Vec<State>>::new();
    for state in &timeline.states[1..] {
        states.entry(state.digest).or_default().push(*state);
    }
    let mut found = Vec::new();
    for (digest, states) in states {
        let sets = operations
            .iter()
            .filter(|it| it.set().is_some_and(|it| it.0 == digest));
        let began: Vec<_> = sets.map(|it| it.began).collect();
        let seen = seen.get(&states[0].version);
        let asked = began
            .first()
            .is_some_and(|began| seen.is_none_or(|seen| *began <= seen.ended));
        if !asked {
            let what = format!("nobody had set it to {digest:?}: {seen:?}");
            found.push(Violation::new(Kind::Unwritten, what));
        } else if states.len() > began.len() {
            let what = format!("{states:?} by {} changes", began.len());
            found.push(Violation::new(Kind::MadeTwice, what));
        }
    }
    found
}

/// Every state has a change that may have made it where it is.
fn conditions(operations: &[Operation], timeline: &Timeline) -> Vec<Violation> {
    let mut found = Vec::new();
    for (at, pair) in timeline.states.windows(2).enumerate() {
        let [before, state] = pair else { continue };
        let fits = |operation: &&Operation| {
            let made = operation
                .set()
                .is_some_and(|(digest, _)| digest == state.digest);
            made && operation.version().is_none_or(|it| it >= state.version)
        };
        let makers: Vec<_> = operations.iter().filter(fits).collect();
        let holds = |it: &&Operation| {
            let condition = it.set().map_or(Condition::Any, |it| it.1);
            timeline.may_hold(condition, at, false)
                || (timeline.gaps[at + 1] && timeline.may_hold(condition, at, true))
        };
        if !makers.is_empty() && !makers.iter().any(holds) {
            let what = format!("{state:?} came after {before:?} by one of {makers:?}");
            found.push(Violation::new(Kind::Condition, what));
        }
    }
    for operation in operations {
        // A condition that holds is no reason to refuse.
        if let (
            Asked::Set {
                condition: Condition::Version(wanted),
                ..
            },
            Answered::Refused(why),
        ) = (operation.asked, &operation.answered)
            && *why == super::Refusal::Changed(wanted)
        {
            let what = format!("{operation:?} was refused though it holds");
            found.push(Violation::new(Kind::Condition, what));
        }
    }
    found
}
