//! What is kept of a tag, and what an owner makes of an attempt.

use proptest::prelude::*;

use crate::blob::digest::Digest;
use crate::tags::record::{Change, Condition, Record, Refusal, TagState, Version};
use crate::tags::register::{Ballot, Register};
use crate::tags::rejoin::Lives;
use crate::tags::round::{Look, Majorities, Step};

fn put(
    state: Option<&TagState>,
    name: &[u8],
    condition: Condition,
) -> Result<Option<TagState>, Refusal> {
    let change = Change::Set {
        digest: Some(Digest::of(name)),
        condition,
        is_immutable: false,
        attempted: Vec::new(),
        millis: 5,
        cluster: "east".into(),
    };
    change.apply(state)
}

#[test]
fn conditions_hold_and_what_is_there_already_changes_nothing() {
    let first = put(None, b"a", Condition::Absent).unwrap();
    let version = first.as_ref().unwrap().now.version;
    assert_eq!(version.millis(), 5);
    let state = first.as_ref();
    assert_eq!(put(state, b"a", Condition::Any), Ok(first.clone()));
    assert_eq!(put(state, b"b", Condition::Absent), Err(Refusal::Exists));
    let old = Condition::Version(Version::new(3));
    assert_eq!(put(state, b"b", old), Err(Refusal::Changed(version)));
    assert_eq!(put(None, b"b", old), Err(Refusal::Unknown));
    let at = |version| put(None, b"a", Condition::At(version));
    assert_eq!(at(Version::ZERO), Ok(first.clone()));
    assert_eq!(at(version), Err(Refusal::Changed(Version::ZERO)));
    let second = put(state, b"b", Condition::Version(version))
        .unwrap()
        .unwrap();
    assert!(
        second.now.version > version,
        "although the clock stood still"
    );
    assert_eq!(second.before, [first.unwrap().now]);
}

fn forever(name: Option<&[u8]>, condition: Condition) -> Change {
    Change::Set {
        digest: name.map(Digest::of),
        condition,
        is_immutable: true,
        attempted: Vec::new(),
        millis: 7,
        cluster: "east".into(),
    }
}

#[test]
fn an_immutable_tag_changes_under_no_condition_and_can_be_removed() {
    let state = put(None, b"a", Condition::Any).unwrap();
    let version = state.as_ref().unwrap().now.version;
    for condition in [
        Condition::Any,
        Condition::At(version),
        Condition::Version(version),
        Condition::Absent,
    ] {
        let changed = forever(Some(b"b"), condition).apply(state.as_ref());
        assert_eq!(changed, Err(Refusal::Immutable), "{condition:?}");
    }
    let same = forever(Some(b"a"), Condition::Any).apply(state.as_ref());
    assert_eq!(same, Ok(state.clone()));
    let gone = forever(None, Condition::Any).apply(state.as_ref()).unwrap();
    // What was asked for before it was removed does not bring it back.
    let late = forever(Some(b"a"), Condition::At(Version::ZERO)).apply(gone.as_ref());
    assert!(matches!(late, Err(Refusal::Changed(_))), "{late:?}");
}

#[test]
fn a_change_that_was_made_and_overtaken_is_not_made_again() {
    let state = put(None, b"a", Condition::Any).unwrap();
    let mine = put(state.as_ref(), b"b", Condition::Any).unwrap();
    let theirs = put(mine.as_ref(), b"c", Condition::Any).unwrap();
    let mut change = Change::Set {
        digest: Some(Digest::of(b"b")),
        condition: Condition::Any,
        is_immutable: false,
        attempted: Vec::new(),
        millis: 9,
        cluster: "east".into(),
    };
    let again = change.apply(theirs.as_ref()).unwrap().unwrap();
    assert_eq!(again.now.digest, Some(Digest::of(b"b")));
    change.attempted(&mine.unwrap().now);
    assert_eq!(change.apply(theirs.as_ref()), Ok(theirs));
}

fn record(millis: u64, cluster: &str, name: Option<&str>) -> Record {
    Record {
        version: Version::ZERO.next(millis, cluster),
        cluster: cluster.into(),
        digest: name.map(|name| Digest::of(name.as_bytes())),
    }
}

proptest! {
    #[test]
    fn clusters_that_tell_each_other_come_to_the_same(
        here in proptest::collection::vec((0_u64..40, any::<bool>()), 1..9),
        there in proptest::collection::vec((0_u64..40, any::<bool>()), 1..9),
    ) {
        let state = |cluster: &str, changes: &[(u64, bool)]| {
            let mut state = None;
            for (number, (millis, is_set)) in changes.iter().enumerate() {
                let change = Change::Set {
                    digest: is_set.then(|| Digest::of(format!("{cluster}{number}").as_bytes())),
                    condition: Condition::Any,
                    is_immutable: false,
                    attempted: Vec::new(),
                    millis: *millis,
                    cluster: cluster.into(),
                };
                state = change.apply(state.as_ref()).unwrap();
            }
            state
        };
        let (here, there) = (state("east", &here), state("west", &there));
        if let (Some(here), Some(there)) = (here, there) {
            let merged = here.merged(&there);
            prop_assert_eq!(&merged, &there.merged(&here));
            prop_assert_eq!(&merged, &merged.merged(&here));
            prop_assert_eq!(&merged, &there.merged(&merged));
            prop_assert!(merged.is_sound());
            prop_assert_eq!(merged.id() == here.id(), merged == here);
            prop_assert_eq!(merged.id(), there.merged(&here).id());
            prop_assert_eq!(merged.now.version, here.now.version.max(there.now.version));
        }
    }
}

#[test]
fn what_another_cluster_has_made_of_a_tag_is_taken_unless_it_is_older_or_must_not_change() {
    let merge = |state: &TagState, is_immutable| Change::Merge {
        state: state.clone(),
        is_immutable,
    };
    let old = TagState::first(record(5, "west", Some("old")));
    let new = TagState::first(record(9, "east", Some("new")));
    let gone = TagState::first(record(12, "west", None));
    let both = merge(&new, false).apply(Some(&old)).unwrap().unwrap();
    assert_eq!((&both.now, &both.before[0]), (&new.now, &old.now));
    assert_eq!(
        merge(&old, false).apply(Some(&both)),
        Ok(Some(both.clone()))
    );
    assert_eq!(merge(&new, true).apply(Some(&old)), Err(Refusal::Immutable));
    assert_eq!(merge(&new, true).apply(None), Ok(Some(new.clone())));
    let removed = merge(&gone, true).apply(Some(&both)).unwrap().unwrap();
    assert_eq!(removed.now, gone.now);
    // It was removed there and set anew, and this hears of both at once.
    let anew = gone.merged(&TagState::first(record(15, "west", Some("anew"))));
    let heard = merge(&anew, true).apply(Some(&both)).unwrap().unwrap();
    assert_eq!(heard.now, anew.now);
    // An older one that comes late changes nothing, be the tag immutable or not.
    assert_eq!(
        merge(&old, true).apply(Some(&removed)),
        Ok(Some(removed.clone()))
    );
}

#[test]
fn a_change_of_which_the_history_tells_no_more_is_not_made_twice() {
    let mine = put(None, b"mine", Condition::Any).unwrap();
    let mut change = Change::Set {
        digest: Some(Digest::of(b"mine")),
        condition: Condition::Any,
        is_immutable: false,
        attempted: Vec::new(),
        millis: 5,
        cluster: "east".into(),
    };
    change.attempted(&mine.as_ref().unwrap().now);
    let mut state = mine;
    for number in 0..=TagState::HISTORY {
        let known = change.apply(state.as_ref());
        assert_eq!(known, Ok(state.clone()), "after {number} others");
        state = put(
            state.as_ref(),
            &[u8::try_from(number).unwrap()],
            Condition::Any,
        )
        .unwrap();
    }
    assert_eq!(change.apply(state.as_ref()), Err(Refusal::Overtaken));
}

#[test]
fn the_history_is_bounded() {
    let mut state: Option<TagState> = None;
    for number in 0..30_u8 {
        state = put(state.as_ref(), &[number], Condition::Any).unwrap();
    }
    let state = state.unwrap();
    assert!(state.is_sound());
    let digests: Vec<_> = state.records().filter_map(|it| it.digest).collect();
    let expected: Vec<_> = (19..30_u8).rev().map(|it| Digest::of(&[it])).collect();
    assert_eq!(digests, expected);
    let versions: Vec<_> = state.records().map(|it| it.version).collect();
    assert!(versions.is_sorted_by(|one, other| one > other));
    let mut wrong = state.clone();
    wrong.before.push_back(state.now.clone());
    assert!(!wrong.is_sound());
    let mut turned = state.clone();
    turned.before.make_contiguous().reverse();
    assert!(!turned.is_sound());
    wrong = state;
    wrong.now.cluster = "c".repeat(256);
    assert!(!wrong.is_sound());
}

#[test]
fn promises_of_a_life_that_is_over_count_for_nothing() {
    let mut lives = Lives::default();
    assert!(lives.allow([("a", 1), ("b", 2)]));
    lives.began("a", 7);
    assert!(lives.allow([("a", 7), ("b", 2)]));
    assert!(
        lives.allow([("a", 9)]),
        "a later life that others have helped"
    );
    assert!(!lives.allow([("a", 1), ("b", 2)]));
}

#[test]
fn what_an_owner_was_only_told_is_no_vote() {
    let state = put(None, b"a", Condition::Any).unwrap();
    let ballot = Ballot {
        round: 4,
        proposer: 1,
    };
    let mut holder = Register::default();
    holder.accept(ballot, state.clone()).unwrap();
    let mut back = Register::default();
    back.learn(&holder.hand_over());
    assert_eq!(
        holder.accept(ballot, None).unwrap_err().0.round,
        5,
        "what was under way is outbid"
    );
    let mut look = Look::new(Majorities::of(3));
    assert_eq!(look.heard(0, &holder), Step::Wait);
    assert!(matches!(look.heard(1, &back), Step::Again(_)));
    // Once it has voted for it, it counts.
    let later = Ballot {
        round: 6,
        proposer: 2,
    };
    back.accept(later, state.clone()).unwrap();
    holder.accept(later, state.clone()).unwrap();
    let mut look = Look::new(Majorities::of(3));
    look.heard(0, &holder);
    assert_eq!(look.heard(1, &back), Step::Done(state));
}
