use kraken_core::proto::rng::Rng;

use super::*;

fn of(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn state(version: u64, name: &str) -> State {
    let digest = (!name.is_empty()).then(|| of(name));
    State { version, digest }
}

fn operation((began, ended): (u64, u64), asked: Asked, answered: Answered) -> Operation {
    let client = 0;
    Operation {
        client,
        began,
        ended,
        asked,
        answered,
    }
}

fn read(at: (u64, u64), version: u64, name: &str) -> Operation {
    operation(at, Asked::Read, Answered::Told(vec![state(version, name)]))
}

fn history(at: (u64, u64), states: &[(u64, &str)]) -> Operation {
    let states = states.iter().map(|(version, name)| state(*version, name));
    operation(at, Asked::History, Answered::Told(states.collect()))
}

/// A put, or a removal without a name.
fn set(at: (u64, u64), name: &str, condition: Condition, answered: Answered) -> Operation {
    let digest = state(0, name).digest;
    operation(at, Asked::Set { digest, condition }, answered)
}

fn put(at: (u64, u64), name: &str, version: u64) -> Operation {
    set(at, name, Condition::Any, Answered::Done(Some(version)))
}

/// What the rules find, and whether the search alone finds that something is wrong.
fn found(operations: &[Operation]) -> (Vec<Kind>, bool) {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|it| (it.began, it.ended));
    let (timeline, _) = Timeline::of(&operations);
    let searched = search::search(&operations, &timeline);
    let mut kinds: Vec<_> = check(&operations)
        .violations
        .iter()
        .map(|it| it.kind)
        .collect();
    kinds.sort();
    kinds.dedup();
    (kinds, searched.violation.is_some())
}

const NOTHING: (Vec<Kind>, bool) = (Vec::new(), false);

#[test]
fn what_happens_one_after_the_other_is_right() {
    let operations = [
        read((0, 1), 0, ""),
        put((2, 3), "a", 10),
        set(
            (4, 5),
            "b",
            Condition::Absent,
            Answered::Refused(Refusal::Exists),
        ),
        set(
            (6, 7),
            "b",
            Condition::Version(10),
            Answered::Done(Some(20)),
        ),
        set(
            (8, 9),
            "c",
            Condition::Version(10),
            Answered::Refused(Refusal::Changed(20)),
        ),
        put((10, 11), "b", 20),
        set((12, 13), "", Condition::Any, Answered::Done(None)),
        set(
            (14, 15),
            "",
            Condition::Any,
            Answered::Refused(Refusal::Absent),
        ),
        set(
            (16, 17),
            "d",
            Condition::Version(20),
            Answered::Refused(Refusal::Absent),
        ),
        history((18, 19), &[(30, ""), (20, "b"), (10, "a")]),
        set((20, 21), "a", Condition::Absent, Answered::Done(Some(40))),
        read((22, 23), 40, "a"),
    ];
    assert_eq!(found(&operations), NOTHING);
}

#[test]
fn a_stale_read_is_found() {
    let mut operations = vec![
        put((0, 1), "a", 10),
        put((2, 3), "b", 20),
        read((4, 5), 10, "a"),
    ];
    assert_eq!(found(&operations), (vec![Kind::WentBack], true));
    // While the put runs either is right.
    operations[2] = read((2, 5), 10, "a");
    assert_eq!(found(&operations), NOTHING);
}

#[test]
fn a_version_that_goes_back_between_two_readers_is_found() {
    let unknown = set((0, 1), "b", Condition::Any, Answered::Unknown);
    let operations = [
        put((0, 1), "a", 10),
        unknown,
        read((2, 3), 20, "b"),
        read((4, 5), 10, "a"),
    ];
    assert_eq!(found(&operations), (vec![Kind::WentBack], true));
    // A refusal says as much as a read.
    let refused = Answered::Refused(Refusal::Changed(10));
    let operations = [
        put((0, 1), "a", 10),
        put((2, 3), "b", 20),
        set((4, 5), "c", Condition::Version(7), refused),
    ];
    assert_eq!(found(&operations), (vec![Kind::WentBack], true));
}

#[test]
fn an_acknowledged_put_that_is_lost_is_found() {
    let mut operations = vec![
        put((0, 1), "a", 10),
        put((2, 3), "b", 20),
        put((4, 5), "c", 30),
        history((6, 7), &[(30, "c"), (10, "a")]),
    ];
    assert!(found(&operations).0.contains(&Kind::Lost));
    operations.truncate(2);
    operations.push(read((8, 9), 0, ""));
    assert_eq!(found(&operations), (vec![Kind::WentBack], true));
    // The tag is empty once more, at a later version, and nobody removed it.
    operations.pop();
    operations.push(read((8, 9), 30, ""));
    assert_eq!(found(&operations), (vec![Kind::Unwritten], true));
}

#[test]
fn two_puts_of_which_only_one_can_have_found_nothing_are_found() {
    let absent =
        |at, name, version| set(at, name, Condition::Absent, Answered::Done(Some(version)));
    let mut operations = vec![absent((0, 5), "a", 10), absent((1, 6), "b", 20)];
    assert_eq!(found(&operations), (vec![Kind::Condition], true));
    // A removal in between, whose maker does not know that it was made, is an excuse.
    operations.push(set((2, 3), "", Condition::Any, Answered::Unknown));
    assert_eq!(found(&operations), NOTHING);
    operations.push(history((7, 8), &[(20, "b"), (10, "a")]));
    assert_eq!(found(&operations), (vec![Kind::Condition], true));
}

#[test]
fn a_put_with_a_condition_that_overwrote_something_else_is_found() {
    let operations = [
        put((0, 1), "a", 10),
        put((2, 9), "b", 20),
        set(
            (3, 8),
            "c",
            Condition::Version(10),
            Answered::Done(Some(30)),
        ),
    ];
    assert_eq!(found(&operations), (vec![Kind::Condition], true));
    // The other order is right.
    let operations = [
        put((0, 1), "a", 10),
        put((2, 9), "b", 30),
        set(
            (3, 8),
            "c",
            Condition::Version(10),
            Answered::Done(Some(20)),
        ),
    ];
    assert_eq!(found(&operations), NOTHING);
}

#[test]
fn a_condition_that_held_is_no_reason_to_refuse() {
    let refused = Answered::Refused;
    let operations = [
        put((0, 1), "a", 10),
        set(
            (2, 3),
            "b",
            Condition::Version(10),
            refused(Refusal::Changed(10)),
        ),
    ];
    assert_eq!(found(&operations).0, [Kind::Condition]);
    let operations = [set(
        (2, 3),
        "b",
        Condition::Absent,
        refused(Refusal::Exists),
    )];
    assert_eq!(found(&operations), (vec![Kind::NoOrder], true));
    let operations = [
        put((0, 1), "a", 10),
        set((2, 3), "", Condition::Any, refused(Refusal::Absent)),
        read((4, 5), 10, "a"),
    ];
    assert_eq!(found(&operations), (vec![Kind::NoOrder], true));
}

#[test]
fn a_value_that_nobody_wrote_or_not_yet_is_found() {
    let operations = [put((0, 1), "a", 10), read((2, 3), 20, "b")];
    assert_eq!(found(&operations), (vec![Kind::Unwritten], true));
    let operations = [read((0, 1), 10, "a"), put((2, 3), "a", 10)];
    assert!(found(&operations).0.contains(&Kind::Unwritten));
    let refused = Answered::Refused(Refusal::Changed(10));
    let operations = [
        put((0, 1), "a", 10),
        set((2, 3), "b", Condition::Version(9), refused),
        read((4, 5), 20, "b"),
    ];
    assert_eq!(found(&operations), (vec![Kind::Unwritten], true));
}

#[test]
fn a_put_that_was_made_twice_is_found() {
    let unknown = set((0, 1), "a", Condition::Any, Answered::Unknown);
    let operations = [
        unknown.clone(),
        put((2, 3), "b", 20),
        history((4, 5), &[(20, "b"), (10, "a")]),
        read((6, 7), 30, "a"),
    ];
    assert_eq!(found(&operations), (vec![Kind::MadeTwice], true));
    // Once, and late, is what was promised.
    let operations = [unknown, put((2, 3), "b", 20), read((6, 7), 30, "a")];
    assert_eq!(found(&operations), NOTHING);
}

#[test]
fn two_digests_of_one_version_are_found() {
    let operations = [put((0, 9), "a", 10), put((1, 8), "b", 10)];
    assert!(found(&operations).0.contains(&Kind::TwoDigests));
}

#[test]
fn a_removal_that_left_the_tag_is_found_by_the_search() {
    let removed = |at| set(at, "", Condition::Any, Answered::Done(None));
    let mut operations = vec![put((0, 1), "a", 10), removed((2, 3)), read((4, 5), 10, "a")];
    assert_eq!(found(&operations), (vec![Kind::NoOrder], true));
    // Two removals at once and one that found nothing, but one state only.
    operations = vec![
        put((0, 1), "a", 10),
        removed((2, 9)),
        removed((3, 8)),
        history((10, 11), &[(20, ""), (10, "a")]),
    ];
    assert_eq!(found(&operations), NOTHING);
    // Of two removals the one that ran long must be the second.
    operations = vec![
        put((0, 1), "a", 10),
        removed((2, 30)),
        removed((3, 4)),
        put((5, 6), "b", 30),
        history((31, 32), &[(40, ""), (30, "b"), (20, ""), (10, "a")]),
    ];
    assert_eq!(found(&operations), NOTHING);
}

#[test]
fn a_put_may_be_told_the_version_of_a_later_one_of_the_same_digest() {
    let mut operations = vec![
        put((0, 9), "a", 30),
        read((2, 3), 10, "a"),
        put((4, 5), "b", 20),
        put((5, 8), "a", 30),
        history((10, 11), &[(30, "a"), (20, "b"), (10, "a")]),
    ];
    assert_eq!(found(&operations), NOTHING);
    // One put is one state, however it goes on.
    operations.remove(3);
    assert_eq!(found(&operations), (vec![Kind::MadeTwice], true));
}

/// A register that is right, and clients of which some get no answer.
struct Model {
    rng: Rng,
    states: Vec<State>,
    digests: usize,
}

impl Model {
    fn now(&self) -> State {
        self.states[self.states.len() - 1]
    }

    fn ask(&mut self) -> Asked {
        let now = self.now();
        let condition = match self.rng.below(6) {
            0 => Condition::Absent,
            1 => Condition::Version(now.version),
            2 if now.version > 1 => Condition::Version(self.states[self.states.len() - 2].version),
            _ => Condition::Any,
        };
        self.digests += 1;
        let fresh = Some(of(&self.digests.to_string()));
        match self.rng.below(10) {
            0..3 => Asked::Read,
            3 => Asked::History,
            4 => Asked::Set {
                digest: None,
                condition,
            },
            5 => Asked::Set {
                digest: now.digest.or(fresh),
                condition,
            },
            _ => Asked::Set {
                digest: fresh,
                condition,
            },
        }
    }

    fn answer(&mut self, asked: Asked) -> Answered {
        let now = self.now();
        let (digest, condition) = match asked {
            Asked::Read => return Answered::Told(vec![now]),
            Asked::History => {
                let set = self.states.iter().rev().filter(|it| it.version > 0);
                let set: Vec<_> = set.take(HISTORY).copied().collect();
                let is_new = set.is_empty();
                return Answered::Told(if is_new { vec![State::NEVER] } else { set });
            }
            Asked::Set { digest, condition } => (digest, condition),
        };
        let refused = match condition {
            _ if digest == now.digest => None,
            Condition::Version(_) if now.digest.is_none() => Some(Refusal::Absent),
            Condition::Version(wanted) if wanted != now.version => {
                Some(Refusal::Changed(now.version))
            }
            Condition::Absent if now.digest.is_some() => Some(Refusal::Exists),
            _ => None,
        };
        if let Some(refused) = refused {
            return Answered::Refused(refused);
        }
        if digest != now.digest {
            let version = now.version + 1 + self.rng.below(3) as u64;
            self.states.push(State { version, digest });
        }
        Answered::Done(digest.map(|_| self.now().version))
    }

    /// What clients saw: each operation takes effect between its ends, one without an answer maybe later.
    fn run(seed: u64, count: usize) -> Vec<Operation> {
        let mut model = Self {
            rng: Rng::seeded(seed),
            states: vec![State::NEVER],
            digests: 0,
        };
        let mut running: Vec<(Operation, u64, bool)> = Vec::new();
        let mut seen = Vec::new();
        for now in 0..count as u64 * 3 {
            for _ in 0..running.len() {
                let (mut operation, effect, is_lost) = running.remove(0);
                if effect <= now && operation.answered == Answered::Unknown {
                    let answered = model.answer(operation.asked);
                    if is_lost {
                        seen.push(operation);
                        continue;
                    }
                    operation.answered = answered;
                }
                if operation.ended <= now && operation.answered != Answered::Unknown {
                    operation.ended = now;
                    seen.push(operation);
                } else {
                    running.push((operation, effect, is_lost));
                }
            }
            if running.len() < 8 && model.rng.below(3) == 0 {
                let asked = model.ask();
                let is_lost = model.rng.below(12) == 0;
                let wait = if is_lost { 60 } else { 10 };
                let effect = now + 1 + model.rng.below(wait) as u64;
                let ended = effect + 1 + model.rng.below(10) as u64;
                let mut operation = operation((now, ended), asked, Answered::Unknown);
                operation.client = model.rng.below(8);
                if is_lost {
                    operation.ended = now + 1;
                }
                running.push((operation, effect, is_lost));
            }
        }
        // Those that nothing came of yet are never made.
        seen.extend(running.into_iter().map(|it| it.0));
        seen.retain(|it| it.answered != Answered::Unknown || it.set().is_some());
        seen
    }
}

#[test]
fn a_right_register_is_never_found_wrong() {
    for seed in 0..200 {
        let operations = Model::run(seed, 200);
        let checked = check(&operations);
        assert!(
            checked.violations.is_empty(),
            "seed {seed}: {:?}",
            checked.violations
        );
        assert!(
            !checked.is_undecided && checked.states > 10,
            "seed {seed}: {checked:?}"
        );
    }
}

#[test]
fn a_read_of_what_was_before_is_always_found_by_the_search_too() {
    for seed in 0..100 {
        let mut operations = Model::run(seed, 200);
        operations.sort_by_key(|it| (it.began, it.ended));
        let states = Timeline::of(&operations).0.states;
        let end = operations.iter().map(|it| it.ended).max().unwrap();
        let now = operations
            .iter()
            .filter_map(Operation::version)
            .max()
            .unwrap();
        let before = states[states.len() - 3];
        assert!(before.version < now);
        let told = Answered::Told(vec![before]);
        operations.push(operation((end + 1, end + 2), Asked::Read, told));
        let (kinds, is_found) = found(&operations);
        assert!(
            kinds.contains(&Kind::WentBack) && is_found,
            "seed {seed}: {kinds:?}"
        );
    }
}
