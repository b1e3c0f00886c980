//! How the owners of a tag are asked until most of them agree: by rounds of two questions each, and for most reads by
//! a look at what they have.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use kraken_proto::tags::list::ListId;
use kraken_proto::tags::record::{Change, Refusal, TagState};
use kraken_proto::tags::register::Ballot;
use kraken_proto::tags::round::{Look, Round, Step};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument as _;

use super::members::{Owning, View};
use super::owner::{Owner, Promise, Said, voting};
use super::ring::Inner;
use super::store::{Attempt, TagStore};
use super::{TagError, chance};
use crate::link::RegisterName;

/// How long a change is attempted anew while others attempt the same, or owners come and go; the last
/// attempt may take some seconds more.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a read.
const PATIENCE_READ: Duration = Duration::from_secs(3);
/// The longest wait between two attempts at first; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(4);
const PAUSE_MAX: Duration = Duration::from_millis(500);

pub(super) type Reply = oneshot::Sender<Result<Option<TagState>, TagError>>;

/// How an attempt ended.
enum End {
    Done(Option<TagState>),
    Refused(Refusal),
    Again(Ballot),
    Unreachable(String),
}

impl Inner {
    pub(super) async fn attempt(
        &self,
        name: RegisterName,
        (change, look): (Change, bool),
        reply: Reply,
    ) {
        let owning = self.view().owning(name.repo().as_str());
        if let [Owner::Here(store)] = owning.owners.as_slice() {
            let _ = reply.send(alone(store, &name, change).await);
            return;
        }
        let is_read = change == Change::Read;
        let mut change = change;
        let until = Instant::now() + if is_read { PATIENCE_READ } else { PATIENCE };
        let mut pause = PAUSE;
        let mut reply = Some(reply);
        let mut look = look;
        loop {
            let end = if look {
                look_at(&self.view(), &name).await
            } else {
                self.round(&name, &mut change, &mut reply).await
            };
            let result = match end {
                End::Done(state) => Ok(state),
                End::Refused(refusal) => {
                    if let Some(reply) = reply {
                        let _ = reply.send(Err(refusal.into()));
                    }
                    return;
                }
                End::Again(ballot) => {
                    self.round.fetch_max(ballot.round, Ordering::Relaxed);
                    if look {
                        // The owners differ: a round makes them agree, and nobody is in its way yet.
                        look = false;
                        continue;
                    }
                    Err(TagError::Unavailable(
                        "others change it all the time".into(),
                    ))
                }
                End::Unreachable(reason) => Err(TagError::Unavailable(reason)),
            };
            let is_final = !matches!(result, Err(TagError::Unavailable(_)));
            if is_final || Instant::now() + pause > until {
                if let Some(reply) = reply {
                    let _ = reply.send(result);
                }
                return;
            }
            sleep(pause.mul_f64((chance() % 1000) as f64 / 1000.0)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One round. The answer is sent as soon as it is known; then the other owners are still told.
    async fn round(
        &self,
        name: &RegisterName,
        change: &mut Change,
        reply: &mut Option<Reply>,
    ) -> End {
        let ballot = Ballot {
            round: self.round.fetch_add(1, Ordering::Relaxed) + 1,
            proposer: self.proposer,
        };
        // Each attempt goes by the list as it is then.
        let view = self.view();
        let owning = view.owning(name.repo().as_str());
        let mut round = Round::new(ballot, owning.majorities.clone(), change.clone());
        let mut asking = Asking::prepare(name, ballot, &view, &owning);
        let mut end = None;
        while let Some((at, heard)) = asking.asked.next().await {
            match asking.heard(&mut round, at, heard) {
                Step::Wait => {}
                Step::Accept(state) => {
                    // Once, when it is decided; later promises come to the same state.
                    if let Some(state) = round.attempted().filter(|_| asking.told.is_empty()) {
                        change.attempted(&state.now);
                    }
                    asking.accept(&round, state.as_ref());
                }
                // The first that is known holds, whatever the rest say.
                Step::Done(state) => {
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(Ok(state.clone()));
                    }
                    end.get_or_insert(End::Done(state));
                }
                Step::Refused(refusal) => {
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(Err(refusal.into()));
                    }
                    end.get_or_insert(End::Refused(refusal));
                }
                Step::Again(ballot) if end.is_none() => return End::Again(ballot),
                Step::Unreachable if end.is_none() => return asking.unreachable(),
                Step::Again(_) | Step::Unreachable => {}
            }
        }
        end.unwrap_or_else(|| asking.unreachable())
    }
}

/// What an owner was asked, and answered.
enum Heard {
    Promise(Said<Promise>),
    Accept(Said<()>),
}

/// The questions of a round.
struct Asking<'a> {
    name: &'a RegisterName,
    ballot: Ballot,
    lists: Vec<ListId>,
    owning: &'a Owning,
    asked: FuturesUnordered<BoxFuture<'a, (usize, Heard)>>,
    /// Those that were told what to accept.
    told: BTreeSet<usize>,
    /// Why owners did not answer.
    reasons: Vec<String>,
}

impl<'a> Asking<'a> {
    /// Asks all owners for a promise.
    fn prepare(name: &'a RegisterName, ballot: Ballot, view: &View, owning: &'a Owning) -> Self {
        let lists = view.asked();
        let ask = |(at, owner): (usize, &'a Owner)| {
            let lists = lists.clone();
            async move { (at, Heard::Promise(owner.prepare(name, ballot, lists).await)) }.boxed()
        };
        let asked = owning.owners.iter().enumerate().map(ask).collect();
        Self {
            name,
            ballot,
            lists,
            owning,
            asked,
            told: BTreeSet::new(),
            reasons: Vec::new(),
        }
    }

    /// What follows from an answer.
    fn heard(&mut self, round: &mut Round, at: usize, heard: Heard) -> Step {
        match heard {
            Heard::Promise(Ok(Ok(it))) => round.heard_promise(at, it.incarnation, &it.register),
            Heard::Accept(Ok(Ok(()))) => round.heard_accept(at),
            Heard::Promise(Ok(Err(by))) | Heard::Accept(Ok(Err(by))) => round.outbid(by),
            Heard::Promise(Err(reason)) | Heard::Accept(Err(reason)) => {
                self.reasons.push(reason);
                round.failed(at)
            }
        }
    }

    /// Asks those that have promised, and were not asked before, to accept `state`.
    fn accept(&mut self, round: &Round, state: Option<&TagState>) {
        let (name, names) = (self.name, &self.owning.names);
        let promised = round.promised().map(|(at, life)| (names[at].clone(), life));
        let promised: Vec<_> = promised.collect();
        for (at, incarnation) in round.promised() {
            if !self.told.insert(at) {
                continue;
            }
            let attempt = Attempt {
                ballot: self.ballot,
                incarnation,
                promised: promised.clone(),
                lists: self.lists.clone(),
            };
            let (owner, state) = (&self.owning.owners[at], state.cloned());
            let asked =
                async move { (at, Heard::Accept(owner.accept(name, attempt, state).await)) };
            self.asked.push(asked.boxed());
        }
    }

    fn unreachable(&self) -> End {
        End::Unreachable(self.reasons.join("; "))
    }
}

/// Reads or changes a tag as its only owner.
async fn alone(
    store: &TagStore,
    name: &RegisterName,
    change: Change,
) -> Result<Option<TagState>, TagError> {
    let store = voting(store).map_err(TagError::Unavailable)?;
    if change == Change::Read {
        return Ok(store.held(name).await?.state);
    }
    store.change_alone(name, change).await?.map_err(Into::into)
}

async fn look_at(view: &View, name: &RegisterName) -> End {
    let (lists, owning) = (view.asked(), view.owning(name.repo().as_str()));
    let mut look = Look::new(owning.majorities);
    let mut reasons = Vec::new();
    let asked = owning
        .owners
        .iter()
        .cloned()
        .enumerate()
        .map(|(at, owner)| {
            let (name, lists) = (name.clone(), lists.clone());
            async move { (at, owner.look(&name, &lists).await) }
        });
    let mut asked: FuturesUnordered<_> = asked.collect();
    while let Some((at, held)) = asked.next().await {
        let step = match held {
            Ok(register) => look.heard(at, &register),
            Err(reason) => {
                reasons.push(reason);
                look.failed(at)
            }
        };
        match step {
            Step::Done(state) => {
                hear_out(asked);
                return End::Done(state);
            }
            Step::Again(ballot) => {
                hear_out(asked);
                return End::Again(ballot);
            }
            Step::Unreachable => break,
            _ => {}
        }
    }
    End::Unreachable(reasons.join("; "))
}

/// How long those are heard that are not waited for: longer than one that is well takes, and so short that one
/// that hangs does not hold a connection for each of many reads.
const LINGER: Duration = Duration::from_millis(250);

/// Lets the others end. To break their requests off would close connections, and the next question would have
/// to shake hands first.
fn hear_out(others: FuturesUnordered<impl Future<Output: Send> + Send + 'static>) {
    if !others.is_empty() {
        let rest = others.for_each(|_| std::future::ready(()));
        tokio::spawn(timeout(LINGER, rest).in_current_span());
    }
}
