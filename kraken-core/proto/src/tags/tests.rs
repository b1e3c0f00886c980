//! Random schedules: messages that are lost, late and repeated, attempts that are given up half-way,
//! owners that lose their disks and come back. What was acknowledged must hold.

mod records;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::list::{ListId, Lists, Members, Move};
use super::record::{Change, Condition, Record, Refusal, TagState, Version};
use super::register::{Ballot, Register};
use super::rejoin::Lives;
use super::round::{Look, Majorities, Round, Step, quorum};
use crate::blob::digest::Digest;
use crate::rng::Rng;

#[derive(Debug)]
struct Owner {
    register: Register,
    incarnation: u64,
    lives: Lives,
    /// Who told it what they hold, since it lost its disk; nothing while it votes.
    catching_up: Option<Vec<usize>>,
    lists: Lists,
    /// Its configuration.
    listed: Members,
}

#[derive(Debug, Clone)]
enum Message {
    Prepare(Ballot, Vec<ListId>),
    Promise(u64, Register),
    /// With the lives of all that promised.
    Accept(
        Ballot,
        u64,
        Option<TagState>,
        Vec<(String, u64)>,
        Vec<ListId>,
    ),
    Taken,
    Outbid(Ballot),
    Look(Vec<ListId>),
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
    /// The owner that attempts it, and the lists that it knew then.
    by: usize,
    lists: Lists,
    attempt: Attempt,
    change: Change,
    began: usize,
    /// It copies: once it is done its owner says so.
    copies: bool,
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
    /// The configuration that the operator brings to one owner after the other.
    listed: Members,
    lists_change: bool,
    settled: usize,
    step: usize,
    owners: Vec<Owner>,
    net: Vec<Envelope>,
    clients: Vec<Option<Op>>,
    next: usize,
    round: u64,
    wiped: usize,
    done: Vec<Done>,
}

fn members(of: impl IntoIterator<Item = usize>) -> Members {
    of.into_iter()
        .map(|it| (it.to_string(), String::new()))
        .collect()
}

fn member(name: &str) -> usize {
    name.parse().unwrap()
}

impl World {
    fn new(seed: u64, owners: usize, spare: usize) -> Self {
        let listed = members(0..owners);
        let all = (0..owners + spare).map(|at| Owner {
            register: Register::default(),
            incarnation: at as u64,
            lives: Lives::default(),
            catching_up: (at >= owners).then(Vec::new),
            lists: Lists::first(listed.clone()),
            listed: listed.clone(),
        });
        Self {
            rng: Rng::seeded(seed),
            lists_change: spare > 0,
            settled: 0,
            step: 0,
            owners: all.collect(),
            listed,
            net: Vec::new(),
            clients: (0..5).map(|_| None).collect(),
            next: 1000,
            round: 1,
            wiped: 0,
            done: Vec::new(),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.net.push(Envelope { from, to, message });
    }

    /// Any that votes asks on behalf of a client.
    fn any_voter(&mut self) -> usize {
        loop {
            let at = self.rng.below(self.owners.len());
            if self.owners[at].catching_up.is_none() {
                return at;
            }
        }
    }

    /// In the end: everybody has the last configuration, and the steps towards it are made.
    fn any_voter_that_keeps(&mut self) -> usize {
        for _ in 0..400 {
            let listed = self.listed.clone();
            for owner in &mut self.owners {
                owner.listed.clone_from(&listed);
                if owner.catching_up.is_none() {
                    let _ = owner.lists.configure(listed.clone());
                }
            }
            self.follow();
            self.settle();
        }
        let keeps = |it: &usize| {
            let owner = &self.owners[*it];
            owner.lists.keeps(&it.to_string())
                && owner.lists.next.is_none()
                && owner.catching_up.is_none()
        };
        let voter = (0..self.owners.len()).find(keeps);
        voter.unwrap_or_else(|| {
            let owners = self.owners.iter();
            let all: Vec<_> = owners.map(|it| (&it.catching_up, &it.lists)).collect();
            panic!(
                "the list {listed:?} does not stand in the end: {all:#?}",
                listed = self.listed
            )
        })
    }

    fn begin(&mut self, client: usize, change: Change, began: usize, above: u64) {
        let by = self.any_voter();
        self.begin_by(by, client, change, (began, above), false);
    }

    fn begin_by(
        &mut self,
        by: usize,
        client: usize,
        change: Change,
        (began, above): (usize, u64),
        copies: bool,
    ) {
        self.next += 1;
        let number = self.next;
        let lists = self.owners[by].lists.clone();
        let groups = lists
            .all()
            .map(|it| it.members.keys().map(|it| member(it)).collect());
        let owners = Majorities::of_each(groups.collect());
        let all: Vec<_> = lists.members().keys().map(|it| member(it)).collect();
        let attempt = if change == Change::Read && above == 0 && !copies {
            for to in all {
                self.send(number, to, Message::Look(lists.asked()));
            }
            Attempt::Look(Look::new(owners))
        } else {
            self.round = self.round.max(above) + 1;
            // Two clients may well choose the same number.
            let round = self.round - self.rng.below(2) as u64;
            let ballot = Ballot {
                round,
                proposer: number as u64,
            };
            for to in all {
                self.send(number, to, Message::Prepare(ballot, lists.asked()));
            }
            Attempt::Round(
                Box::new(Round::new(ballot, owners, change.clone())),
                Vec::new(),
            )
        };
        self.clients[client] = Some(Op {
            number,
            by,
            lists,
            attempt,
            change,
            began,
            copies,
        });
    }

    /// The operator thinks of another list, once the last one stands, or brings the last to an owner.
    fn configure(&mut self) {
        let stands = |it: &Owner| {
            let votes = it.catching_up.is_none();
            votes && it.lists.next.is_none() && it.lists.settled.members == self.listed
        };
        let listed: Vec<_> = self.listed.keys().map(|it| member(it)).collect();
        if listed.iter().all(|it| stands(&self.owners[*it])) && self.rng.below(3) == 0 {
            let count = 1 + self.rng.below(4);
            let mut all: Vec<_> = (0..self.owners.len()).collect();
            while all.len() > count {
                let at = self.rng.below(all.len());
                all.swap_remove(at);
            }
            self.listed = members(all);
            return;
        }
        let at = self.rng.below(self.owners.len());
        let listed = self.listed.clone();
        let owner = &mut self.owners[at];
        owner.listed.clone_from(&listed);
        if owner.catching_up.is_none() {
            // It starts anew; what it cannot follow it leaves as it is.
            let _ = owner.lists.configure(listed);
        }
    }

    /// One owner makes the next step towards another list, by what some of the others say.
    fn follow(&mut self) {
        let at = self.any_voter();
        let mut others = BTreeMap::new();
        for other in (0..self.owners.len()).filter(|it| *it != at) {
            if self.owners[other].catching_up.is_none() && self.rng.below(4) > 0 {
                others.insert(other.to_string(), self.owners[other].lists.clone());
            }
        }
        let lists = self.owners[at].lists.clone();
        match lists.decide(&at.to_string(), &others, 9) {
            Move::Wait => {}
            Move::Become(next) => {
                self.settled += usize::from(next.next.is_none());
                self.owners[at].lists = next;
            }
            Move::Copy => {
                let first = lists.latest().members.keys().next().cloned();
                if first.is_some_and(|it| member(&it) == at) {
                    let client = self.clients.len() - 1;
                    let number = self.round;
                    self.begin_by(at, client, Change::Read, (self.step, number), true);
                } else {
                    self.owners[at].lists = lists.copied();
                }
            }
        }
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
                let client = self.rng.below(self.clients.len() - 1);
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
            6 if self.lists_change => self.follow(),
            7 if self.lists_change && self.rng.below(8) == 0 => self.configure(),
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
        let at = self.rng.below(self.owners.len());
        let owners = &self.owners;
        let is_lost = |it: &String| owners[member(it)].catching_up.is_some() || member(it) == at;
        let survives = |it: &Members| it.keys().filter(|it| is_lost(it)).count() < quorum(it.len());
        let all_survive = owners
            .iter()
            .flat_map(|it| it.lists.all())
            .all(|it| survives(&it.members));
        if owners[at].catching_up.is_some() || !all_survive {
            return;
        }
        self.wiped += 1;
        let listed = owners[at].listed.clone();
        self.owners[at] = Owner {
            register: Register::default(),
            lives: Lives::default(),
            incarnation: 100 + self.wiped as u64,
            catching_up: Some(Vec::new()),
            lists: Lists::first(listed.clone()),
            listed,
        };
    }

    fn catch_up(&mut self) {
        for at in 0..self.owners.len() {
            self.come_back(at);
            if self.owners[at].catching_up.is_some() {
                let incarnation = self.owners[at].incarnation;
                let others = (0..self.owners.len()).filter(|it| *it != at);
                others.for_each(|to| self.send(at, to, Message::HandOver(incarnation)));
            }
        }
    }

    /// Votes, if what those hold that it has heard from is all.
    fn come_back(&mut self, at: usize) {
        let Some(heard) = self.owners[at].catching_up.clone() else {
            return;
        };
        // Those may have lost their disks since.
        let heard = heard
            .iter()
            .filter(|it| self.owners[**it].catching_up.is_none());
        let told: BTreeMap<_, _> = heard
            .map(|it| (it.to_string(), self.owners[*it].lists.clone()))
            .collect();
        let Some(lists) = Lists::to_adopt(&told, &self.owners[at].listed) else {
            return;
        };
        if lists.suffices(&at.to_string(), &told, 9) {
            self.owners[at].lists = lists;
            self.owners[at].catching_up = None;
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
        let owner = &mut self.owners[to];
        if let Message::Handed(incarnation, register) = &message {
            if let Some(heard) = owner.catching_up.as_mut()
                && *incarnation == owner.incarnation
                && !heard.contains(&from)
            {
                heard.push(from);
                owner.register.learn(register);
                self.come_back(to);
            }
            return;
        }
        if owner.catching_up.is_some() {
            return;
        }
        let answer = match message {
            Message::Prepare(_, asked) | Message::Look(asked) | Message::Accept(.., asked)
                if !owner.lists.allow(&asked) =>
            {
                return;
            }
            Message::Prepare(ballot, _) => match owner.register.prepare(ballot) {
                Ok(()) => Message::Promise(owner.incarnation, owner.register.clone()),
                Err(by) => Message::Outbid(by.0),
            },
            Message::Accept(ballot, incarnation, state, promised, _)
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
            Message::Look(_) => Message::Held(owner.register.clone()),
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
                        let message = Message::Accept(
                            ballot,
                            incarnation,
                            state.clone(),
                            all.clone(),
                            op.lists.asked(),
                        );
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
            Step::Again(ballot) => {
                let above = ballot.round.max(1);
                self.begin_by(op.by, client, op.change, (began, above), op.copies);
            }
            Step::Wait | Step::Unreachable => self.clients[client] = Some(op),
        }
    }

    fn finish(&mut self, op: Op, result: Result<Option<TagState>, Refusal>) {
        let owner = &mut self.owners[op.by];
        if op.copies && owner.lists == op.lists {
            owner.lists.has_copied = true;
        }
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

/// Runs, mends everything, and reads in the end; how much was acknowledged, and how often an owner found
/// that a list stands.
fn run(seed: u64, (owners, spare): (usize, usize), steps: usize) -> (usize, usize) {
    let mut world = World::new(seed, owners, spare);
    (0..steps).for_each(|_| world.act());
    let acknowledged = world.done.len();
    // What is under way may end; all that lost their disks catch up; then one reads alone.
    world.clients.iter_mut().for_each(|it| *it = None);
    world.settle();
    world.step += 1;
    let reader = world.any_voter_that_keeps();
    let began = (world.step, 0);
    world.begin_by(reader, 0, Change::Read, began, false);
    for _ in 0..10 {
        world.settle();
        if let Some(op) = world.clients[0].take() {
            let above = (op.began, world.round);
            world.begin_by(reader, 0, op.change, above, false);
        }
    }
    assert!(world.clients[0].is_none(), "the last read never ends");
    world.check();
    (acknowledged, world.settled)
}

#[test]
fn what_was_acknowledged_holds_whatever_happens() {
    let acknowledged: usize = (0..300).map(|seed| run(seed, (3, 0), 3000).0).sum();
    assert!(acknowledged > 4000, "{acknowledged}");
    let acknowledged: usize = (0..60).map(|seed| run(seed, (5, 0), 12_000).0).sum();
    assert!(acknowledged > 400, "{acknowledged}");
}

#[test]
fn what_was_acknowledged_holds_while_owners_are_added_and_taken_away() {
    let (mut acknowledged, mut settled) = (0, 0);
    for seed in 0..400 {
        let run = run(seed, (3, 2), 8000);
        acknowledged += run.0;
        settled += run.1;
    }
    assert!(acknowledged > 4000, "{acknowledged}");
    assert!(settled > 1000, "{settled}");
}

proptest! {
    #[test]
    fn what_was_acknowledged_holds(seed in any::<u64>(), owners in 1_usize..6, spare in 0_usize..3) {
        run(seed, (owners, spare), 1500);
    }
}
