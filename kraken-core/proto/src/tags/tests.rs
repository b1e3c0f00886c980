//! Random schedules: messages that are lost, late and repeated, attempts that are given up half-way,
//! owners that lose their disks and come back. What was acknowledged must hold.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::record::{Change, Condition, Record, Refusal, TagState, Version};
use super::register::{Ballot, Register};
use super::rejoin::{Lives, needed};
use super::round::{Look, Round, Step, quorum};
use crate::blob::digest::Digest;
use crate::rng::Rng;

#[derive(Debug, Default)]
struct Owner {
    register: Register,
    incarnation: u64,
    lives: Lives,
    /// Who told it what they hold, since it lost its disk; nothing while it votes.
    catching_up: Option<Vec<usize>>,
}

#[derive(Debug, Clone)]
enum Message {
    Prepare(Ballot),
    Promise(u64, Register),
    /// With the lives of all that promised.
    Accept(Ballot, u64, Option<TagState>, Vec<(String, u64)>),
    Taken,
    Outbid(Ballot),
    Look,
    Held(Register),
    /// Between owners.
    HandOver(u64),
    Handed(u64, Register),
}

/// From whom to whom: owners are numbers, attempts are numbers from 1000 on.
#[derive(Debug, Clone)]
struct Envelope {
    from: usize,
    to: usize,
    message: Message,
}

#[derive(Debug)]
enum Attempt {
    Look(Look),
    Round(Box<Round>, Vec<usize>),
}

/// What one client does until it knows what became of it.
#[derive(Debug)]
struct Op {
    number: usize,
    attempt: Attempt,
    change: Change,
    began: usize,
}

#[derive(Debug)]
struct Done {
    began: usize,
    ended: usize,
    change: Change,
    result: Result<Option<TagState>, Refusal>,
}

struct World {
    rng: Rng,
    step: usize,
    owners: Vec<Owner>,
    net: Vec<Envelope>,
    clients: Vec<Option<Op>>,
    next: usize,
    round: u64,
    wiped: usize,
    done: Vec<Done>,
}

impl World {
    fn new(seed: u64, owners: usize) -> Self {
        let owners = (0..owners).map(|at| Owner {
            incarnation: at as u64,
            ..Owner::default()
        });
        Self {
            rng: Rng::seeded(seed),
            step: 0,
            owners: owners.collect(),
            net: Vec::new(),
            clients: (0..4).map(|_| None).collect(),
            next: 1000,
            round: 1,
            wiped: 0,
            done: Vec::new(),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.net.push(Envelope { from, to, message });
    }

    fn begin(&mut self, client: usize, change: Change, began: usize, above: u64) {
        self.next += 1;
        let (number, owners) = (self.next, self.owners.len());
        let attempt = if change == Change::Read && above == 0 {
            (0..owners).for_each(|to| self.send(number, to, Message::Look));
            Attempt::Look(Look::new(owners))
        } else {
            self.round = self.round.max(above) + 1;
            // Two clients may well choose the same number.
            let round = self.round - self.rng.below(2) as u64;
            let ballot = Ballot {
                round,
                proposer: number as u64,
            };
            (0..owners).for_each(|to| self.send(number, to, Message::Prepare(ballot)));
            Attempt::Round(
                Box::new(Round::new(ballot, owners, change.clone())),
                Vec::new(),
            )
        };
        self.clients[client] = Some(Op {
            number,
            attempt,
            change,
            began,
        });
    }

    fn any_change(&mut self) -> Change {
        if self.rng.below(3) == 0 {
            return Change::Read;
        }
        let known = self.done.last().and_then(|it| it.result.clone().ok());
        let version = known.flatten().map_or(Version::ZERO, |it| it.now.version);
        let name = self.rng.next_u64().to_be_bytes();
        Change::Set {
            digest: (self.rng.below(5) > 0).then(|| Digest::of(&name)),
            condition: match self.rng.below(5) {
                0 => Condition::Version(version),
                1 => Condition::Absent,
                2 => Condition::At(version),
                _ => Condition::Any,
            },
            is_immutable: false,
            attempted: Vec::new(),
            // Clocks that are wrong.
            millis: self.rng.below(50) as u64,
            cluster: "c".into(),
        }
    }

    fn act(&mut self) {
        self.step += 1;
        match self.rng.below(40) {
            0 | 1 => {
                let client = self.rng.below(self.clients.len());
                match self.clients[client].take() {
                    None => {
                        let change = self.any_change();
                        self.begin(client, change, self.step, 0);
                    }
                    // It gives up this attempt and begins another one.
                    Some(op) if self.rng.below(6) == 0 => {
                        self.begin(client, op.change, op.began, self.round);
                    }
                    goes_on => self.clients[client] = goes_on,
                }
            }
            2 if self.rng.below(self.owners.len()) == 0 => self.wipe(),
            3 => self.catch_up(),
            4 if !self.net.is_empty() => {
                let at = self.rng.below(self.net.len());
                self.net.swap_remove(at);
            }
            5 if !self.net.is_empty() => {
                let at = self.rng.below(self.net.len());
                self.net.push(self.net[at].clone());
            }
            _ if !self.net.is_empty() => {
                let at = self.rng.below(self.net.len());
                let envelope = self.net.swap_remove(at);
                self.deliver(envelope);
            }
            _ => {}
        }
    }

    /// Delivers all that is under way.
    fn settle(&mut self) {
        self.catch_up();
        while !self.net.is_empty() {
            self.step += 1;
            let at = self.rng.below(self.net.len());
            let envelope = self.net.swap_remove(at);
            self.deliver(envelope);
        }
    }

    /// One owner at a time of three, two of five: more than that nothing can survive.
    fn wipe(&mut self) {
        let lost = self
            .owners
            .iter()
            .filter(|it| it.catching_up.is_some())
            .count();
        if lost + 1 >= quorum(self.owners.len()) {
            return;
        }
        let at = self.rng.below(self.owners.len());
        if self.owners[at].catching_up.is_none() {
            self.wiped += 1;
            self.owners[at] = Owner {
                register: Register::default(),
                lives: Lives::default(),
                incarnation: 100 + self.wiped as u64,
                catching_up: Some(Vec::new()),
            };
        }
    }

    fn catch_up(&mut self) {
        for at in 0..self.owners.len() {
            if self.owners[at].catching_up.is_some() {
                let incarnation = self.owners[at].incarnation;
                let others = (0..self.owners.len()).filter(|it| *it != at);
                others.for_each(|to| self.send(at, to, Message::HandOver(incarnation)));
            }
        }
    }

    fn deliver(&mut self, envelope: Envelope) {
        let Envelope { from, to, message } = envelope;
        if to < 1000 {
            self.at_owner(from, to, message);
        } else if let Some(client) = self
            .clients
            .iter()
            .position(|it| it.as_ref().is_some_and(|op| op.number == to))
        {
            self.at_client(client, from, message);
        }
    }

    fn at_owner(&mut self, from: usize, to: usize, message: Message) {
        let members = self.owners.len();
        let owner = &mut self.owners[to];
        if let Message::Handed(incarnation, register) = &message {
            if let Some(heard) = owner.catching_up.as_mut()
                && *incarnation == owner.incarnation
                && !heard.contains(&from)
            {
                heard.push(from);
                owner.register.learn(register);
                if heard.len() >= needed(members, members) {
                    owner.catching_up = None;
                }
            }
            return;
        }
        if owner.catching_up.is_some() {
            return;
        }
        let answer = match message {
            Message::Prepare(ballot) => match owner.register.prepare(ballot) {
                Ok(()) => Message::Promise(owner.incarnation, owner.register.clone()),
                Err(by) => Message::Outbid(by.0),
            },
            Message::Accept(ballot, incarnation, state, promised)
                if incarnation == owner.incarnation
                    && owner
                        .lives
                        .allow(promised.iter().map(|(it, life)| (&**it, *life))) =>
            {
                match owner.register.accept(ballot, state) {
                    Ok(()) => Message::Taken,
                    Err(by) => Message::Outbid(by.0),
                }
            }
            Message::Look => Message::Held(owner.register.clone()),
            Message::HandOver(incarnation) => {
                owner.lives.began(&from.to_string(), incarnation);
                Message::Handed(incarnation, owner.register.hand_over())
            }
            _ => return,
        };
        self.send(to, from, answer);
    }

    fn at_client(&mut self, client: usize, from: usize, message: Message) {
        let Some(mut op) = self.clients[client].take() else {
            return;
        };
        let step = match (&mut op.attempt, message) {
            (Attempt::Look(look), Message::Held(register)) => look.heard(from, &register),
            (Attempt::Round(round, _), Message::Promise(incarnation, register)) => {
                round.heard_promise(from, incarnation, &register)
            }
            (Attempt::Round(round, _), Message::Taken) => round.heard_accept(from),
            (Attempt::Round(round, _), Message::Outbid(by)) => {
                round.outbid(super::register::Outbid(by))
            }
            _ => Step::Wait,
        };
        let (number, began) = (op.number, op.began);
        match step {
            Step::Accept(state) => {
                if let Attempt::Round(round, asked) = &mut op.attempt {
                    let ballot = round.ballot();
                    let all: Vec<_> = round
                        .promised()
                        .map(|(it, life)| (it.to_string(), life))
                        .collect();
                    let fresh: Vec<_> = round
                        .promised()
                        .filter(|(it, _)| !asked.contains(it))
                        .collect();
                    for (owner, incarnation) in fresh {
                        asked.push(owner);
                        let message =
                            Message::Accept(ballot, incarnation, state.clone(), all.clone());
                        self.net.push(Envelope {
                            from: number,
                            to: owner,
                            message,
                        });
                    }
                }
                self.clients[client] = Some(op);
            }
            Step::Done(state) => self.finish(op, Ok(state)),
            Step::Refused(refusal) => self.finish(op, Err(refusal)),
            Step::Again(ballot) => self.begin(client, op.change, began, ballot.round.max(1)),
            Step::Wait | Step::Unreachable => self.clients[client] = Some(op),
        }
    }

    fn finish(&mut self, op: Op, result: Result<Option<TagState>, Refusal>) {
        self.done.push(Done {
            began: op.began,
            ended: self.step,
            change: op.change,
            result,
        });
    }

    /// Nothing that was acknowledged is forgotten, and nobody sees time go back.
    fn check(&self) {
        let mut by_version = BTreeMap::new();
        let version =
            |state: &Option<TagState>| state.as_ref().map_or(Version::ZERO, |it| it.now.version);
        for done in &self.done {
            let Ok(state) = &done.result else { continue };
            for record in state.iter().flat_map(TagState::records) {
                let known: &mut Record = by_version
                    .entry(record.version)
                    .or_insert_with(|| record.clone());
                assert_eq!(known, record, "two states of one version");
            }
            if let Change::Set {
                digest, condition, ..
            } = &done.change
            {
                let now = state.as_ref().and_then(|it| it.now.digest);
                assert_eq!(now, *digest);
                // Whoever removes what is not there is content.
                if let (Condition::Version(wanted), Some(state), Some(_)) =
                    (condition, state, digest)
                {
                    let before = state.before.front().map(|it| it.version);
                    assert_eq!(before, Some(*wanted));
                }
            }
        }
        for first in &self.done {
            for second in self.done.iter().filter(|it| it.began > first.ended) {
                let seen = |done: &Done| match &done.result {
                    Ok(state) => Some(version(state)),
                    Err(Refusal::Changed(version)) => Some(*version),
                    Err(_) => None,
                };
                if let (Some(one), Some(other)) = (seen(first), seen(second)) {
                    assert!(one <= other, "{first:?} then {second:?}");
                }
                if let (Ok(Some(state)), Err(Refusal::Unknown)) = (&first.result, &second.result) {
                    // Then somebody has removed it in between, or later.
                    let removed = by_version
                        .range(state.now.version..)
                        .any(|(_, it)| it.digest.is_none());
                    let begun = self.clients.iter().flatten();
                    let removes =
                        |change: &Change| matches!(change, Change::Set { digest: None, .. });
                    assert!(removed || begun.into_iter().any(|it| removes(&it.change)));
                }
            }
        }
    }
}

/// Runs, mends everything, and reads in the end.
fn run(seed: u64, owners: usize, steps: usize) -> usize {
    let mut world = World::new(seed, owners);
    (0..steps).for_each(|_| world.act());
    let acknowledged = world.done.len();
    // What is under way may end; all that lost their disks catch up; then one reads alone.
    world.clients.iter_mut().for_each(|it| *it = None);
    world.settle();
    world.step += 1;
    world.begin(0, Change::Read, world.step, 0);
    for _ in 0..10 {
        world.settle();
        if let Some(op) = world.clients[0].take() {
            let above = world.round;
            world.begin(0, op.change, op.began, above);
        }
    }
    assert!(world.clients[0].is_none(), "the last read never ends");
    world.check();
    acknowledged
}

#[test]
fn what_was_acknowledged_holds_whatever_happens() {
    let acknowledged: usize = (0..300).map(|seed| run(seed, 3, 3000)).sum();
    assert!(acknowledged > 4000, "{acknowledged}");
    let acknowledged: usize = (0..60).map(|seed| run(seed, 5, 12_000)).sum();
    assert!(acknowledged > 400, "{acknowledged}");
}

proptest! {
    #[test]
    fn what_was_acknowledged_holds(seed in any::<u64>(), owners in 1_usize..6) {
        run(seed, owners, 1500);
    }
}

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
    let mut look = Look::new(3);
    assert_eq!(look.heard(0, &holder), Step::Wait);
    assert!(matches!(look.heard(1, &back), Step::Again(_)));
    // Once it has voted for it, it counts.
    let later = Ballot {
        round: 6,
        proposer: 2,
    };
    back.accept(later, state.clone()).unwrap();
    holder.accept(later, state.clone()).unwrap();
    let mut look = Look::new(3);
    look.heard(0, &holder);
    assert_eq!(look.heard(1, &back), Step::Done(state));
}
