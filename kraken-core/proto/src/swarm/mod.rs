//! One blob on one host.
//!
//! A missing piece is in exactly one of three states: *open* (asked of nobody), *asked* (of one
//! peer, in the end game of two), or *storing* (arrived, being verified and written). Only
//! [`Swarm::stored`] makes it present, and it alone moves everything that depends on it.

mod ask;
mod offers;
mod open;
mod parts;
pub(crate) mod peers;
mod seed;
mod serve;
pub(crate) mod stats;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::blob::bitfield::Bitfield;
use crate::peer::{PeerId, PeerRole};
use crate::picker::inflight::Inflight;
use crate::picker::rarest::Rarest;
use crate::picker::window::Window;
use crate::rng::Rng;
use crate::scheduler::action::{Action, Event};
use crate::scheduler::config::Config;
use crate::scheduler::input::{BlobSpec, ConnId};
use crate::time::Timestamp;
use crate::wire::message::Message;
use offers::Offers;
use open::Unproven;
use parts::Parts;
use peers::{Neighbour, take};
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

/// As TCP smooths its round trips (RFC 6298).
fn smooth(before: Duration, sample: Duration) -> Duration {
    if before.is_zero() {
        sample
    } else {
        (before * 7 + sample) / 8
    }
}

/// One blob on one host.
#[derive(Debug)]
pub(crate) struct Swarm {
    spec: BlobSpec,
    have: Bitfield,
    rarest: Rarest,
    inflight: Inflight,
    window: Window,
    /// What is fetched beside what readers want, when only parts of the blob are.
    parts: Option<Parts>,
    /// The pieces that cannot be proved yet, while the metainfo is open.
    unproven: Unproven,
    /// Pieces that are being verified and written, and who sent them: the sender may be gone
    /// before its piece turns out to be good or bad.
    storing: BTreeMap<u32, (PeerId, PeerRole)>,
    peers: BTreeMap<ConnId, Neighbour>,
    /// Pieces that the neighbours have not heard of yet, and when to tell.
    news: Vec<u32>,
    news_at: Option<Timestamp>,
    /// What is offered to the neighbours, on an origin that has the blob or an agent that goes.
    offers: Option<Offers>,
    /// When to look for silent neighbours next, while anything is owed.
    watch_at: Option<Timestamp>,
    /// Since when no agent has been sending.
    hungry_since: Option<Timestamp>,
    /// What a request takes from asking to arrival: the median over the neighbours, so that a few
    /// that are slow do not change what counts as slow.
    service: Duration,
    /// How many handouts have come for it.
    handouts: u32,
    stats: SwarmStats,
    lenient_until: Option<Timestamp>,
    /// Another agent has everything; there was nothing to say to each other.
    has_met_whole: bool,
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
            parts: None,
            unproven: Unproven::none(),
            storing: BTreeMap::new(),
            peers: BTreeMap::new(),
            news: Vec::new(),
            news_at: None,
            offers: None,
            watch_at: None,
            hungry_since: None,
            service: Duration::ZERO,
            handouts: 0,
            stats: SwarmStats::default(),
            lenient_until: None,
            has_met_whole: false,
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

    pub(crate) fn handouts(&self) -> u32 {
        self.handouts
    }

    /// A handout has come for it.
    pub(crate) fn count_handout(&mut self) {
        self.handouts = self.handouts.saturating_add(1);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.have.is_full()
    }

    /// Neighbours that fetch all of the blob, or have it, or those that fetch parts.
    pub(crate) fn degree_of(&self, role: PeerRole, is_partial: bool) -> usize {
        let peers = self.peers.values().filter(|peer| peer.role == role);
        peers.filter(|peer| peer.is_partial == is_partial).count()
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
        let message = self.greeting();
        cx.out.push_back(Action::Send { conn, message });
    }

    fn greeting(&self) -> Message {
        Message::Subscribe {
            digest: self.spec.digest,
            piece_length: self.spec.piece_length,
            have: self.have.clone(),
            is_partial: self.parts.is_some(),
        }
    }

    /// A neighbour said what it has, and whether it fetches only parts.
    pub(crate) fn subscribed(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        (have, is_partial): (Bitfield, bool),
    ) -> Result<(), Violation> {
        self.begin_offers(cx.config);
        let peer = self.peers.get_mut(&conn).ok_or(Violation)?;
        if have.len() != self.have.len() {
            return Err(Violation);
        }
        // Perhaps said again after two connections became one; news in between may have crossed it.
        peer.subscribed = true;
        peer.is_partial = is_partial;
        if !peer.is_agent() {
            self.met_origin(cx.now, cx.config);
        }
        have.iter()
            .for_each(|piece| self.gains(cx.now, conn, piece));
        self.part_if_useless(cx, conn);
        self.fill(cx, conn);
        self.offer(cx);
        Ok(())
    }

    /// A neighbour has a piece.
    fn gains(&mut self, now: Timestamp, conn: ConnId, piece: u32) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        if peer.have.insert(piece) && peer.is_agent() {
            self.rarest.more(piece);
            let offers = self.offers.as_mut();
            if let Some(since) = offers.and_then(|it| it.more(piece, conn)) {
                peer.takes = smooth(peer.takes, now.since(since));
            }
        }
    }

    /// A neighbour has more pieces.
    pub(crate) fn has_more(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        pieces: &[u32],
    ) -> Result<(), Violation> {
        // News may still be on its way from a peer that we have just parted from.
        let Some(peer) = self.peers.get(&conn) else {
            return Ok(());
        };
        if pieces.iter().any(|piece| *piece >= self.have.len()) {
            return Err(Violation);
        }
        if !peer.subscribed {
            // From before we parted and met again; its new greeting will name these pieces too.
            return Ok(());
        }
        pieces
            .iter()
            .for_each(|piece| self.gains(cx.now, conn, *piece));
        self.part_if_useless(cx, conn);
        self.fill(cx, conn);
        self.offer(cx);
        Ok(())
    }

    /// The neighbour is gone: what it was asked for is open again.
    pub(crate) fn part(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        let Some(peer) = self.peers.remove(&conn) else {
            return;
        };
        // Nobody takes what was still to be sent.
        let digest = self.spec.digest;
        cx.out
            .extend(peer.uploads.iter().map(|piece| Action::CancelPiece {
                conn,
                digest,
                piece: *piece,
            }));
        if peer.is_agent() {
            peer.have.iter().for_each(|piece| self.rarest.fewer(piece));
        }
        if let Some(offers) = self.offers.as_mut().filter(|_| peer.is_agent()) {
            peer.have.iter().for_each(|piece| offers.fewer(piece));
            offers.part(conn);
        }
        self.unproven.part(conn);
        let pieces = self.inflight.drop_conn(conn);
        pieces.into_iter().for_each(|piece| self.reopen(piece));
        self.fill_all(cx);
        self.offer(cx);
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
        let cancelled = take(&mut peer.cancelled, piece);
        if let Some(request) = asked {
            let sample = cx.now.since(request.since);
            peer.service = smooth(peer.service, sample);
            if self.service.is_zero() {
                self.service = sample;
            }
        }
        let wanted = asked.is_some() || cancelled;
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
        self.refill(cx, conn);
        self.fill_when_starving(cx);
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
                is_ahead: self.parts.is_some() && !self.window.contains(piece),
            };
            cx.out.push_back(Action::Event(event));
        }
        self.note_news(cx, piece);
        if self.is_complete() {
            self.completed(cx);
        } else if self.inflight.is_empty() || self.in_endgame(cx.config) {
            self.fill_all(cx);
        } else if first {
            self.fill(cx, conn);
        }
    }

    fn note_news(&mut self, cx: &Context<'_>, piece: u32) {
        self.news.push(piece);
        let delay = self.news_delay(cx.config);
        self.news_at.get_or_insert(cx.now + delay);
    }

    /// The last piece is there.
    fn completed(&mut self, cx: &mut Context<'_>) {
        self.parts = None;
        cx.out.push_back(Action::Event(Event::BlobDone {
            digest: self.spec.digest,
        }));
        self.tell_news(cx);
        for conn in self.conns().collect::<Vec<_>>() {
            self.part_if_useless(cx, conn);
        }
    }

    /// How long news is gathered. Where pieces take long, because they are large or the network is
    /// slow, nothing is lost by waiting as much longer. Whoever has hardly anything is of no use
    /// until the others know what it has; and where only parts are fetched, others wait for the same.
    fn news_delay(&self, config: &Config) -> Duration {
        if self.have.count() <= config.newcomer_pieces || self.parts.is_some() {
            Duration::ZERO
        } else {
            config
                .have_delay
                .max(self.service / 4)
                .min(config.have_delay * 8)
        }
    }

    /// A piece of the neighbour has verified; says whether it is the first.
    fn prove(&mut self, conn: ConnId) -> bool {
        let peer = self.peers.get_mut(&conn);
        peer.is_some_and(|peer| !std::mem::replace(&mut peer.proven, true))
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
        let cancelled = take(&mut peer.cancelled, piece);
        // What is offered is here, and what is asked for is not.
        if let Some(offers) = &mut self.offers
            && self.have.has(piece)
            && !cancelled
        {
            offers.declined(cx.now, piece, conn, cx.config);
            self.offer(cx);
            return;
        }

        if !cancelled && peer.have.remove(piece) && peer.is_agent() {
            self.rarest.fewer(piece);
            if let Some(offers) = &mut self.offers {
                offers.fewer(piece);
            }
        }
        let asked = self.inflight.remove(piece, conn).is_some();
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

    fn reopen(&mut self, piece: u32) {
        let missing = piece < self.have.len() && !self.have.has(piece);
        let provable = !self.unproven.contains(piece);
        if missing
            && provable
            && self.wants(piece)
            && !self.storing.contains_key(&piece)
            && !self.inflight.is_held(piece)
        {
            self.rarest.open(piece);
        }
    }

    fn cancel_others(&mut self, cx: &mut Context<'_>, piece: u32) {
        for conn in self.inflight.drop_piece(piece) {
            if let Some(peer) = self.peers.get_mut(&conn)
                && !peer.cancelled.contains(&piece)
            {
                peer.cancelled.push(piece);
            }
            let message = Message::Cancel {
                digest: self.spec.digest,
                piece,
            };
            cx.out.push_back(Action::Send { conn, message });
        }
    }

    /// Two who have everything have nothing to say to each other.
    fn part_if_useless(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        let useless =
            self.is_complete() && self.peers.get(&conn).is_some_and(Neighbour::is_complete);
        if useless {
            let is_agent = self.peers.get(&conn).is_some_and(Neighbour::is_agent);
            self.has_met_whole |= is_agent;
            if let Some(offers) = &mut self.offers {
                offers.rest(cx.now);
            }
            let message = Message::Unsubscribe {
                digest: self.spec.digest,
            };
            cx.out.push_back(Action::Send { conn, message });
            self.part(cx, conn);
        }
    }
}
