//! One host: routes what happens to the swarm, the connection or the announce that it concerns.
//!
//! Drive it like this: call [`Scheduler::handle`] for each [`Input`] and
//! [`Scheduler::handle_timeout`] when the time of [`Scheduler::poll_timeout`] has come, and after
//! each of these drain [`Scheduler::poll_action`] and do what it says. Time never goes back.

pub mod action;
mod announces;
pub mod config;
mod conns;
mod gossip;
mod handouts;
pub mod input;
mod messages;
mod penalties;
mod seek;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use crate::blob::bitfield::Bitfield;
use crate::blob::digest::Digest;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::rng::Rng;
use crate::swarm::stats::SwarmStats;
use crate::swarm::{Context, Swarm};
use crate::time::Timestamp;
use crate::wire::message::{Contact, Message};
use action::{Action, CloseReason, Event};
use announces::Announces;
use config::Config;
use conns::{Conns, Verdict};
use gossip::Known;
use input::{BlobSpec, ConnId, Extent, Input, ReaderId};
use messages::Greeting;
use penalties::Penalties;
use seek::Seeks;
use timers::Timers;

/// One host's part in all its swarms.
#[derive(Debug)]
pub struct Scheduler {
    local: PeerInfo,
    config: Config,
    rng: Rng,
    conns: Conns,
    swarms: BTreeMap<Digest, Swarm>,
    announces: Announces,
    penalties: Penalties,
    timers: Timers,
    /// Greetings for blobs that the store is being asked about.
    lookups: BTreeMap<Digest, BTreeMap<ConnId, Greeting>>,
    /// Who turned us away for which blob, and until when not to ask again.
    shy: BTreeMap<(Digest, PeerId), Timestamp>,
    /// Blobs that were left a moment ago, and until when pieces of them may still be on their way.
    left: BTreeMap<Digest, Timestamp>,
    /// Peers that were met, now or in an earlier life.
    known: Known,
    /// Metainfo that is looked for among peers.
    seeks: Seeks,
    /// When to look for idle connections next.
    sweep_at: Timestamp,
    actions: VecDeque<Action>,
    stopping: bool,
}

/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// Greetings of one connection for blobs that the store is asked about: more are turned away.
const MAX_LOOKUPS: usize = 4096;

impl Scheduler {
    /// A host that knows nobody. Origins do not announce: their tracker knows them.
    pub fn new(now: Timestamp, local: PeerInfo, config: Config, seed: u64) -> Self {
        Self {
            conns: Conns::new(local.id),
            local,
            config,
            rng: Rng::seeded(seed),
            swarms: BTreeMap::new(),
            announces: Announces::default(),
            penalties: Penalties::default(),
            timers: Timers::default(),
            lookups: BTreeMap::new(),
            shy: BTreeMap::new(),
            left: BTreeMap::new(),
            known: Known::default(),
            seeks: Seeks::default(),
            sweep_at: now + SWEEP,
            actions: VecDeque::new(),
            stopping: false,
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Open { spec, have } => self.open(now, spec, have),
            Input::Provable { digest, pieces } => {
                self.with_swarm(now, digest, |swarm, cx| swarm.provable(cx, pieces));
            }
            Input::PieceIngested { digest, piece } => {
                self.with_swarm(now, digest, |swarm, cx| swarm.ingested(cx, piece));
            }
            Input::Forget { digest } => self.forget(now, digest),
            Input::Want {
                digest,
                reader,
                pieces,
            } => {
                self.with_swarm(now, digest, |swarm, cx| swarm.want(cx, reader, pieces));
            }
            Input::Read {
                digest,
                reader,
                bytes,
            } => self.read(now, digest, reader, bytes),
            Input::Fetch { digest, extent } => self.fetch(now, digest, extent),
            Input::ConnUp {
                conn,
                peer,
                dialled,
            } => self.conn_up(now, conn, peer, dialled),
            Input::ConnDown { conn } => self.conn_down(now, conn),
            Input::DialFailed { peer } => self.dial_failed(now, peer),
            Input::Message { conn, message } => self.message(now, conn, message),
            Input::Violation { conn } => self.punish(now, conn, CloseReason::Protocol),
            Input::PieceStored {
                digest,
                piece,
                conn,
            } => self.stored(now, digest, piece, conn),
            Input::PieceRejected {
                digest,
                piece,
                conn,
            } => self.rejected(now, digest, piece, conn),
            Input::PieceLost { digest, piece } => {
                self.with_swarm(now, digest, |swarm, cx| swarm.lost(cx, piece));
            }
            Input::PieceSent {
                digest,
                piece,
                conn,
                sent,
            } => {
                self.with_swarm(now, digest, |swarm, cx| swarm.sent(cx, conn, piece, sent));
            }
            Input::Announced { digests, reply } => self.announced(now, &digests, &reply),
            Input::AnnounceFailed { digests } => {
                let config = &self.config;
                self.announces.failed(now, &digests, config, &mut self.rng);
                for digest in digests {
                    self.ask_around(now, digest);
                    self.seek_on(now, digest);
                }
            }
            Input::Seek { namespace, digest } => self.seek(now, namespace, digest),
            Input::Known { peers } => peers.into_iter().for_each(|peer| self.known.learn(peer)),
            Input::Found { digest, spec } => self.found(now, digest, spec),
            Input::Unsought { digest } => self.seeks.forget(digest),
            Input::Leave => self.leave(now),
            Input::Shutdown => self.shutdown(),
        }
        self.announce_due(now);
    }

    /// The time of [`Scheduler::poll_timeout`] has come; calling it early does no harm.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        for digest in self.timers.take_due(now, usize::MAX) {
            let silent = self.with_swarm(now, digest, |swarm, cx| swarm.tick(cx));
            for conn in silent.unwrap_or_default() {
                self.close(now, conn, CloseReason::Silent);
            }
            let swarm = self.swarms.get(&digest);
            if swarm.is_some_and(|swarm| swarm.is_needy(now, &self.config)) {
                self.announces.hurry(now, digest);
            }
        }
        self.seek_timeout(now);
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP;
            for conn in self.conns.idle(now - self.config.conn_idle) {
                self.close(now, conn, CloseReason::Idle);
            }
        }
        self.announce_due(now);
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Scheduler::handle_timeout`]. `now` is the time of the last call.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        if self.stopping {
            return None;
        }
        let announce = self.announces.next_due(now);
        self.timers
            .next()
            .into_iter()
            .chain(announce)
            .chain(self.seeks.next())
            .chain([self.sweep_at])
            .min()
    }

    /// The pieces of a blob that are here, when it is in a swarm.
    pub fn have(&self, digest: Digest) -> Option<&Bitfield> {
        self.swarms.get(&digest).map(Swarm::have)
    }

    /// Peers that were met, the latest last. Kept over a restart and given back by
    /// [`Input::Known`], they lead into a swarm when no tracker answers.
    pub fn known_peers(&self) -> impl Iterator<Item = &PeerInfo> {
        self.known.iter()
    }

    /// Where a blob's bytes came from, when it is in a swarm.
    pub fn stats(&self, digest: Digest) -> Option<SwarmStats> {
        self.swarms.get(&digest).map(Swarm::stats)
    }

    /// How many neighbours a blob's swarm has here, agents and origins, when it is in one.
    pub fn neighbours(&self, digest: Digest) -> Option<usize> {
        Some(self.swarms.get(&digest)?.conns().count())
    }

    /// How many pieces are here that no other agent around has and some lack: with this host they
    /// would go.
    pub fn rare_pieces(&self) -> usize {
        self.swarms.values().map(Swarm::rare).sum()
    }

    /// The blobs in a swarm.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        self.swarms.keys().copied()
    }

    fn open(&mut self, now: Timestamp, spec: BlobSpec, have: Bitfield) {
        let digest = spec.digest;
        if self.stopping || self.swarms.contains_key(&digest) {
            return;
        }
        let left = self.left.remove(&digest).filter(|until| *until > now);
        let is_whole = have.is_full();
        let swarm = Swarm::new(spec, have).lenient_until(left);
        self.swarms.insert(digest, swarm);
        match self.local.role {
            PeerRole::Agent if is_whole => self.announces.gather(now, digest, &self.config),
            PeerRole::Agent => self.announces.now(now, digest, &self.config),
            PeerRole::Origin => {}
        }
    }

    fn forget(&mut self, now: Timestamp, digest: Digest) {
        self.seeks.forget(digest);
        let Some(swarm) = self.swarms.remove(&digest) else {
            return;
        };
        for conn in swarm.conns() {
            self.conns.used(now, conn, digest, false);
            self.actions.push_back(Action::Send {
                conn,
                message: Message::Unsubscribe { digest },
            });
        }
        self.left.retain(|_, until| *until > now);
        self.left.insert(digest, now + self.config.drop_after);
        self.timers.set(digest, None);
        self.announces.leave(swarm.spec().namespace.clone(), digest);
    }

    fn stored(&mut self, now: Timestamp, digest: Digest, piece: u32, conn: ConnId) {
        let complete = self.with_swarm(now, digest, |swarm, cx| {
            let before = swarm.is_complete();
            swarm.stored(cx, piece, conn);
            !before && swarm.is_complete()
        });
        if complete == Some(true) && self.local.role == PeerRole::Agent {
            self.announces.now(now, digest, &self.config);
        }
    }

    fn read(&mut self, now: Timestamp, digest: Digest, reader: ReaderId, bytes: Range<u64>) {
        let is_lonely = self.with_swarm(now, digest, |swarm, cx| {
            swarm.read(cx, reader, bytes);
            swarm.is_lonely()
        });
        if is_lonely == Some(true) {
            self.announces.at_once(now, digest);
            // While no tracker answers, peers are asked now and not only after the next announce has failed.
            if self.announces.is_failing(digest) {
                self.ask_around(now, digest);
            }
        }
    }

    fn fetch(&mut self, now: Timestamp, digest: Digest, extent: Extent) {
        self.with_swarm(now, digest, |swarm, cx| swarm.fetch(cx, extent));
        if extent == Extent::Whole {
            self.announces.hurry(now, digest);
        }
    }

    fn conn_up(&mut self, now: Timestamp, conn: ConnId, peer: PeerId, dialled: bool) {
        let refusal = if self.stopping {
            Some(CloseReason::Shutdown)
        } else if self.penalties.is_banned(now, peer) {
            Some(CloseReason::Banned)
        } else if !dialled && self.conns.len() >= self.config.max_conns {
            Some(CloseReason::Full)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.conns.dial_ended(peer);
            self.actions.push_back(Action::Close { conn, reason });
            return;
        }
        self.penalties.heal(peer);
        match self.conns.up(now, conn, peer, dialled) {
            Verdict::Duplicate => {
                let reason = CloseReason::Duplicate;
                self.actions.push_back(Action::Close { conn, reason });
            }
            Verdict::Keep { instead } => {
                let message = Message::Hello {
                    role: self.local.role,
                    contact: Some(Contact {
                        addr: self.local.addr,
                        zone: self.local.zone.clone(),
                    }),
                };
                self.actions.push_back(Action::Send { conn, message });
                if let Some(old) = instead {
                    self.close(now, old, CloseReason::Duplicate);
                }
            }
        }
    }

    fn conn_down(&mut self, now: Timestamp, conn: ConnId) {
        let Some(gone) = self.conns.down(conn) else {
            return;
        };
        for digest in gone.swarms {
            self.with_swarm(now, digest, |swarm, cx| swarm.part(cx, conn));
            self.announces.hurry(now, digest);
        }
        self.lookups.values_mut().for_each(|waiting| {
            waiting.remove(&conn);
        });
        self.seek_without(now, conn);
    }

    fn dial_failed(&mut self, now: Timestamp, peer: PeerId) {
        let (first, longest) = (self.config.retry, self.config.retry_max);
        self.penalties.add(now, peer, first, longest, false);
        for digest in self.conns.dial_ended(peer) {
            self.announces.hurry(now, digest);
            self.seek_undialled(now, digest, peer);
        }
    }

    /// Closes a connection, and forgets it at once: the answer `ConnDown` finds nothing to do.
    fn close(&mut self, now: Timestamp, conn: ConnId, reason: CloseReason) {
        if self.conns.get(conn).is_some() {
            self.actions.push_back(Action::Close { conn, reason });
            self.conn_down(now, conn);
        }
    }

    /// A liar does not escape by hanging up before its piece is verified. It is sent away first, so
    /// that the piece is not asked of it again.
    fn rejected(&mut self, now: Timestamp, digest: Digest, piece: u32, conn: ConnId) {
        let sender = || self.swarms.get(&digest)?.sender(piece);
        let liar = self.conns.get(conn).map(|conn| conn.peer).or_else(sender);
        if let Some(liar) = liar.filter(|liar| !self.penalties.is_banned(now, *liar)) {
            self.ban(now, liar, CloseReason::WrongBytes);
        }
        self.with_swarm(now, digest, |swarm, cx| swarm.rejected(cx, piece));
    }

    fn punish(&mut self, now: Timestamp, conn: ConnId, reason: CloseReason) {
        if let Some(peer) = self.conns.get(conn).map(|conn| conn.peer) {
            self.ban(now, peer, reason);
        }
    }

    fn ban(&mut self, now: Timestamp, peer: PeerId, reason: CloseReason) {
        self.penalties
            .add(now, peer, self.config.ban, self.config.ban_max, true);
        self.actions
            .push_back(Action::Event(Event::PeerBanned { peer, reason }));
        if let Some(conn) = self.conns.of_peer(peer) {
            self.close(now, conn, reason);
        }
    }

    fn leave(&mut self, now: Timestamp) {
        // As many at a time as an origin.
        self.config.offers = self.config.offers.max(Config::origin().offers);
        for digest in self.blobs().collect::<Vec<_>>() {
            self.with_swarm(now, digest, Swarm::hand_over);
        }
        for (digest, swarm) in self.swarms.iter().filter(|(_, it)| it.is_complete()) {
            let namespace = swarm.spec().namespace.clone();
            self.announces.leave(namespace, *digest);
        }
    }

    fn shutdown(&mut self) {
        self.stopping = true;
        for conn in self.conns.ids() {
            let reason = CloseReason::Shutdown;
            self.actions.push_back(Action::Close { conn, reason });
            self.conns.down(conn);
        }
        for (digest, swarm) in std::mem::take(&mut self.swarms) {
            self.announces.leave(swarm.spec().namespace.clone(), digest);
        }
        for (namespace, digest) in self.seeks.take() {
            self.announces.leave(namespace, digest);
        }
    }

    /// Lets a swarm act, and keeps its timer and the connections' users in step with it.
    fn with_swarm<T>(
        &mut self,
        now: Timestamp,
        digest: Digest,
        act: impl FnOnce(&mut Swarm, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let swarm = self.swarms.get_mut(&digest)?;
        let (config, rng, out) = (&self.config, &mut self.rng, &mut self.actions);
        let first_new = out.len();
        let result = act(
            swarm,
            &mut Context {
                now,
                config,
                rng,
                out,
            },
        );
        self.timers.set(digest, swarm.next_tick(now, &self.config));
        let parted = self
            .actions
            .range(first_new..)
            .filter_map(|action| match action {
                Action::Send {
                    conn,
                    message: Message::Unsubscribe { digest },
                } => Some((*conn, *digest)),
                _ => None,
            });
        for (conn, digest) in parted.collect::<Vec<_>>() {
            self.conns.used(now, conn, digest, false);
        }
        Some(result)
    }
}
