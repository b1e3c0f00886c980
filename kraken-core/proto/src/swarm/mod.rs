//! One blob on one host.
//!
//! A missing piece is in exactly one of three states: *open* (asked of nobody), *asked* (of one
//! peer, in the end game of two), or *storing* (arrived, being verified and written). Only
//! [`Swarm::stored`] makes it present, and it alone moves everything that depends on it.

pub(crate) mod peers;
mod serve;
pub(crate) mod stats;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::blob::bitfield::Bitfield;
use crate::peer::{PeerId, PeerRole};
use crate::picker::inflight::Inflight;
use crate::picker::rarest::Rarest;
use crate::picker::window::{ReaderId, Window};
use crate::rng::Rng;
use crate::scheduler::action::{Action, Event};
use crate::scheduler::config::Config;
use crate::scheduler::input::{BlobSpec, ConnId};
use crate::time::Timestamp;
use crate::wire::message::Message;
use peers::Neighbour;
use stats::SwarmStats;

/// The peer did what the protocol forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Violation;

/// What every step of a swarm may use.
pub(crate) struct Context<'a> {
    pub(crate) now: Timestamp,
    pub(crate) config: &'a Config,
    pub(crate) rng: &'a mut Rng,
    pub(crate) out: &'a mut VecDeque<Action>,
}

/// One blob on one host.
#[derive(Debug)]
pub(crate) struct Swarm {
    spec: BlobSpec,
    have: Bitfield,
    rarest: Rarest,
    inflight: Inflight,
    window: Window,
    /// Pieces that are being verified and written, and who sent them: the sender may be gone
    /// before its piece turns out to be good or bad.
    storing: BTreeMap<u32, (PeerId, PeerRole)>,
    peers: BTreeMap<ConnId, Neighbour>,
    /// Pieces that the neighbours have not heard of yet, and when to tell.
    news: Vec<u32>,
    news_at: Option<Timestamp>,
    stats: SwarmStats,
    lenient_until: Option<Timestamp>,
}

impl Swarm {
    /// Takes part with these pieces.
    pub(crate) fn new(spec: BlobSpec, have: Bitfield) -> Self {
        Self {
            rarest: Rarest::new(&have),
            spec,
            have,
            inflight: Inflight::default(),
            window: Window::default(),
            storing: BTreeMap::new(),
            peers: BTreeMap::new(),
            news: Vec::new(),
            news_at: None,
            stats: SwarmStats::default(),
            lenient_until: None,
        }
    }

    /// The blob was left a moment ago: until then, pieces may come that were asked for before.
    pub(crate) fn lenient_until(mut self, until: Option<Timestamp>) -> Self {
        self.lenient_until = until;
        self
    }

    pub(crate) fn spec(&self) -> &BlobSpec {
        &self.spec
    }

    pub(crate) fn have(&self) -> &Bitfield {
        &self.have
    }

    pub(crate) fn stats(&self) -> SwarmStats {
        self.stats
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.have.is_full()
    }

    /// Neighbours of a role.
    pub(crate) fn degree(&self, role: PeerRole) -> usize {
        self.peers.values().filter(|peer| peer.role == role).count()
    }

    pub(crate) fn has_peer(&self, conn: ConnId) -> bool {
        self.peers.contains_key(&conn)
    }

    pub(crate) fn conns(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.peers.keys().copied()
    }

    /// Begins to talk to a peer about this blob: says what is here.
    pub(crate) fn greet(&mut self, cx: &mut Context<'_>, conn: ConnId, id: PeerId, role: PeerRole) {
        if self.has_peer(conn) {
            return;
        }
        self.peers
            .insert(conn, Neighbour::new(id, role, self.have.len()));
        let message = Message::Subscribe {
            digest: self.spec.digest,
            piece_length: self.spec.piece_length,
            have: self.have.clone(),
        };
        cx.out.push_back(Action::Send { conn, message });
    }

    /// A neighbour said what it has.
    pub(crate) fn subscribed(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        have: Bitfield,
    ) -> Result<(), Violation> {
        let peer = self.peers.get_mut(&conn).ok_or(Violation)?;
        if have.len() != self.have.len() {
            return Err(Violation);
        }
        if peer.subscribed {
            // Said again after two connections became one; news in between may have crossed it.
            let agent = peer.is_agent();
            let new: Vec<_> = have
                .iter()
                .filter(|piece| peer.have.insert(*piece))
                .collect();
            new.into_iter()
                .filter(|_| agent)
                .for_each(|piece| self.rarest.more(piece));
            return Ok(());
        }
        peer.subscribed = true;
        if peer.is_agent() {
            have.iter().for_each(|piece| self.rarest.more(piece));
        }
        peer.have = have;
        self.part_if_useless(cx, conn);
        self.fill(cx, conn);
        Ok(())
    }

    /// A neighbour has more pieces.
    pub(crate) fn has_more(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        pieces: &[u32],
    ) -> Result<(), Violation> {
        // News may still be on its way from a peer that we have just parted from.
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        if pieces.iter().any(|piece| *piece >= self.have.len()) {
            return Err(Violation);
        }
        if !peer.subscribed {
            // From before we parted and met again; its new greeting will name these pieces too.
            return Ok(());
        }
        for piece in pieces {
            if peer.have.insert(*piece) && peer.is_agent() {
                self.rarest.more(*piece);
            }
        }
        self.part_if_useless(cx, conn);
        self.fill(cx, conn);
        Ok(())
    }

    /// The neighbour is gone: what it was asked for is open again.
    pub(crate) fn part(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        let Some(peer) = self.peers.remove(&conn) else {
            return;
        };
        if peer.is_agent() {
            peer.have.iter().for_each(|piece| self.rarest.fewer(piece));
        }
        let pieces = self.inflight.drop_conn(conn);
        pieces.into_iter().for_each(|piece| self.reopen(piece));
        self.fill_all(cx);
    }

    /// A reader moved.
    pub(crate) fn want(&mut self, cx: &mut Context<'_>, reader: ReaderId, pieces: Range<u32>) {
        let end = pieces.end.min(self.have.len());
        let missing = (pieces.start..end)
            .find(|piece| !self.have.has(*piece))
            .unwrap_or(end);
        self.window.set(cx.now, reader, missing..end);
        self.fill_all(cx);
    }

    /// A piece arrived: has it verified and written when it was asked for and is still missing.
    pub(crate) fn arrived(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        piece: u32,
        len: u32,
    ) -> Result<(), Violation> {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        peer.last_piece = cx.now;
        peer.stalled = false;
        let asked = self.inflight.remove(piece, conn);
        let cancelled = peer.cancelled.remove(&piece);
        let wanted = asked || cancelled;
        if !wanted && self.lenient_until.is_some_and(|until| cx.now < until) {
            return Ok(());
        }
        if !wanted || u64::from(len) != self.spec.piece_size(piece) {
            return Err(Violation);
        }
        if !self.have.has(piece) && !self.storing.contains_key(&piece) {
            self.storing.insert(piece, (peer.id, peer.role));
            self.rarest.close(piece);
            self.cancel_others(cx, piece);
            cx.out.push_back(Action::Store {
                conn,
                digest: self.spec.digest,
                piece,
            });
        }
        self.fill(cx, conn);
        Ok(())
    }

    /// The piece is verified and written.
    pub(crate) fn stored(&mut self, cx: &mut Context<'_>, piece: u32, conn: ConnId) {
        let sender = self.storing.remove(&piece);
        if !self.have.insert(piece) {
            return;
        }
        // The blob may have been left and joined again since the piece arrived.
        self.rarest.close(piece);
        self.cancel_others(cx, piece);
        let bytes = self.spec.piece_size(piece);
        let first = self.prove(conn);
        let neighbour = || self.peers.get(&conn).map(|peer| (peer.id, peer.role));
        if let Some((from, role)) = sender.or_else(neighbour) {
            self.stats.received(role, bytes);
            let event = Event::PieceDone {
                digest: self.spec.digest,
                piece,
                bytes,
                from,
                role,
            };
            cx.out.push_back(Action::Event(event));
        }
        self.news.push(piece);
        self.news_at.get_or_insert(cx.now + cx.config.have_delay);
        if self.is_complete() {
            cx.out.push_back(Action::Event(Event::BlobDone {
                digest: self.spec.digest,
            }));
            self.tell_news(cx);
            self.conns()
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|conn| self.part_if_useless(cx, conn));
        } else if self.inflight.pieces() == 0 || self.in_endgame(cx.config) {
            self.fill_all(cx);
        } else if first {
            self.fill(cx, conn);
        }
    }

    /// A piece of the neighbour has verified; says whether it is the first.
    fn prove(&mut self, conn: ConnId) -> bool {
        let peer = self.peers.get_mut(&conn);
        peer.is_some_and(|peer| !std::mem::replace(&mut peer.proven, true))
    }

    /// Whether no more may be asked of the neighbour before a piece of its has verified.
    fn on_probation(&self, config: &Config, conn: ConnId, peer: &Neighbour) -> bool {
        let checking = || {
            self.storing
                .values()
                .filter(|(id, _)| *id == peer.id)
                .count()
        };
        let bound = config.pipeline_unproven;
        !peer.proven && self.inflight.asked_of(conn) + checking() >= bound
    }

    /// Who sent a piece that is being verified.
    pub(crate) fn sender(&self, piece: u32) -> Option<PeerId> {
        self.storing.get(&piece).map(|(peer, _)| *peer)
    }

    /// The piece did not verify: it is missing as before.
    pub(crate) fn rejected(&mut self, cx: &mut Context<'_>, piece: u32) {
        self.stats.rejected_pieces += 1;
        self.lost(cx, piece);
    }

    /// The piece was not written: it is missing as before.
    pub(crate) fn lost(&mut self, cx: &mut Context<'_>, piece: u32) {
        self.storing.remove(&piece);
        self.reopen(piece);
        self.fill_all(cx);
    }

    /// The neighbour will not serve a piece that it was asked for.
    pub(crate) fn refused(&mut self, cx: &mut Context<'_>, conn: ConnId, piece: u32) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        // The answer to a cancel says nothing about what the peer has.
        let cancelled = peer.cancelled.remove(&piece);
        if !cancelled && peer.have.remove(piece) && peer.is_agent() {
            self.rarest.fewer(piece);
        }
        let asked = self.inflight.remove(piece, conn);
        // A peer that owes nothing can send no piece to show that it is back: this is its answer.
        let back = peer.stalled && self.inflight.asked_of(conn) == 0;
        peer.stalled &= !back;
        if asked {
            self.reopen(piece);
        }
        if asked || back {
            self.fill_all(cx);
        }
    }

    /// Does what is due, and names the neighbours that have been silent for too long.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) -> Vec<ConnId> {
        if self.news_at.is_some_and(|at| at <= cx.now) {
            self.tell_news(cx);
        }
        let mut silent = Vec::new();
        for conn in self.conns().collect::<Vec<_>>() {
            match self.silence(cx.now, conn) {
                Some(span) if span >= cx.config.drop_after => silent.push(conn),
                Some(span) if span >= cx.config.stall_after => self.stall(cx, conn),
                _ => {}
            }
        }
        self.fill_all(cx);
        silent
    }

    /// When `tick` is due next.
    pub(crate) fn next_tick(&self, now: Timestamp, config: &Config) -> Option<Timestamp> {
        let silence = self.peers.iter().filter_map(|(conn, peer)| {
            let since = self.owing_since(*conn)?;
            Some(
                since
                    + if peer.stalled {
                        config.drop_after
                    } else {
                        config.stall_after
                    },
            )
        });
        let patience = (!self.is_complete()).then(|| self.window.next_urgent(now, config.patience));
        let doubling = self.in_endgame(config).then(|| {
            let at = self.inflight.oldest_single(COPIES)? + config.endgame_age;
            (at > now).then_some(at)
        });
        silence
            .chain(self.news_at)
            .chain(patience.flatten())
            .chain(doubling.flatten())
            .min()
    }

    fn reopen(&mut self, piece: u32) {
        let missing = piece < self.have.len() && !self.have.has(piece);
        if missing && !self.storing.contains_key(&piece) && !self.inflight.is_held(piece) {
            self.rarest.open(piece);
        }
    }

    fn cancel_others(&mut self, cx: &mut Context<'_>, piece: u32) {
        for conn in self.inflight.holders(piece) {
            self.inflight.remove(piece, conn);
            if let Some(peer) = self.peers.get_mut(&conn) {
                peer.cancelled.insert(piece);
            }
            let message = Message::Cancel {
                digest: self.spec.digest,
                piece,
            };
            cx.out.push_back(Action::Send { conn, message });
        }
    }

    /// Since when the neighbour owes a piece without having sent any.
    fn owing_since(&self, conn: ConnId) -> Option<Timestamp> {
        let oldest = self.inflight.oldest_of(conn)?;
        self.peers
            .get(&conn)
            .map(|peer| oldest.max(peer.last_piece))
    }

    fn silence(&self, now: Timestamp, conn: ConnId) -> Option<std::time::Duration> {
        self.owing_since(conn).map(|since| now.since(since))
    }

    fn stall(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        let Some(peer) = self.peers.get_mut(&conn).filter(|peer| !peer.stalled) else {
            return;
        };
        peer.stalled = true;
        let event = Event::PeerStalled {
            digest: self.spec.digest,
            peer: peer.id,
        };
        cx.out.push_back(Action::Event(event));
        let late = self.inflight.mark_late(conn);
        late.into_iter().for_each(|piece| self.reopen(piece));
    }

    /// Two who have everything have nothing to say to each other.
    fn part_if_useless(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        let useless =
            self.is_complete() && self.peers.get(&conn).is_some_and(Neighbour::is_complete);
        if useless {
            let message = Message::Unsubscribe {
                digest: self.spec.digest,
            };
            cx.out.push_back(Action::Send { conn, message });
            self.part(cx, conn);
        }
    }

    fn tell_news(&mut self, cx: &mut Context<'_>) {
        self.news_at = None;
        let news = std::mem::take(&mut self.news);
        let digest = self.spec.digest;
        for (conn, peer) in self.peers.iter().filter(|(_, peer)| !peer.is_complete()) {
            let unknown = news.iter().copied().filter(|piece| !peer.have.has(*piece));
            let unknown: Vec<_> = unknown.collect();
            for pieces in unknown.chunks(Message::MAX_HAVES) {
                let message = Message::Have {
                    digest,
                    pieces: pieces.to_vec(),
                };
                cx.out.push_back(Action::Send {
                    conn: *conn,
                    message,
                });
            }
        }
    }

    fn fill_all(&mut self, cx: &mut Context<'_>) {
        if self.is_complete() {
            return;
        }
        for conn in self.conns().collect::<Vec<_>>() {
            self.fill(cx, conn);
        }
    }

    /// Asks a neighbour for pieces until its pipeline is full.
    fn fill(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        while let Some(piece) = self.choose(cx, conn) {
            self.rarest.close(piece);
            self.inflight.add(cx.now, piece, conn);
            let message = Message::Request {
                digest: self.spec.digest,
                piece,
            };
            cx.out.push_back(Action::Send { conn, message });
        }
    }

    fn choose(&self, cx: &mut Context<'_>, conn: ConnId) -> Option<u32> {
        let peer = self.peers.get(&conn)?;
        let full = match peer.role {
            PeerRole::Agent => self.inflight.asked_of(conn) >= cx.config.pipeline_agent,
            // The second origin is there to fall back on, unless there is nobody else to draw from.
            PeerRole::Origin if self.agents_are_sending() => {
                self.asked_of_origins() >= cx.config.pipeline_origin
            }
            PeerRole::Origin => self.inflight.asked_of(conn) >= cx.config.pipeline_origin,
        };
        let full = full || self.on_probation(cx.config, conn, peer);
        if self.is_complete() || !peer.subscribed || peer.stalled || full {
            return None;
        }
        let eligible = |piece: u32| peer.have.has(piece) && !self.inflight.has(piece, conn);
        let pick = match peer.role {
            PeerRole::Agent => self.choose_of_agent(cx, &eligible),
            PeerRole::Origin => self.choose_of_origin(cx, &eligible),
        };
        pick.or_else(|| self.choose_double(cx, &eligible))
    }

    /// Of an agent: what the readers want next, then what is rare.
    fn choose_of_agent(&self, cx: &mut Context<'_>, eligible: &dyn Fn(u32) -> bool) -> Option<u32> {
        let mut ahead = self.window.ahead(cx.config.read_ahead);
        ahead
            .find(|piece| self.rarest.is_open(*piece) && eligible(*piece))
            .or_else(|| self.rarest.pick(.., cx.rng, eligible))
    }

    /// Of an origin: what a reader has waited for too long, then what no agent nearby has, and
    /// anything at all only when no agent is sending.
    fn choose_of_origin(
        &self,
        cx: &mut Context<'_>,
        eligible: &dyn Fn(u32) -> bool,
    ) -> Option<u32> {
        let mut urgent = self.window.urgent(cx.now, cx.config.patience);
        urgent
            .find(|piece| self.rarest.is_open(*piece) && eligible(*piece))
            .or_else(|| self.rarest.pick(..=0, cx.rng, eligible))
            .or_else(|| {
                let starving = !self.agents_are_sending();
                starving
                    .then(|| self.rarest.pick(1.., cx.rng, eligible))
                    .flatten()
            })
    }

    fn choose_double(&self, cx: &Context<'_>, eligible: &dyn Fn(u32) -> bool) -> Option<u32> {
        if !self.in_endgame(cx.config) {
            return None;
        }
        self.inflight
            .duplicate(cx.now - cx.config.endgame_age, COPIES, eligible)
    }

    fn asked_of_origins(&self) -> usize {
        let origins = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.is_agent() && !peer.stalled);
        origins.map(|(conn, _)| self.inflight.asked_of(*conn)).sum()
    }

    fn agents_are_sending(&self) -> bool {
        let sends = |(conn, peer): (&ConnId, &Neighbour)| {
            peer.is_agent() && !peer.stalled && self.inflight.asked_of(*conn) > 0
        };
        self.peers.iter().any(sends)
    }

    fn in_endgame(&self, config: &Config) -> bool {
        let missing = self.have.len() - self.have.count();
        missing > 0 && missing <= config.endgame_pieces && self.rarest.open_count() == 0
    }
}

/// How many peers a piece is asked of in the end game.
const COPIES: usize = 2;
