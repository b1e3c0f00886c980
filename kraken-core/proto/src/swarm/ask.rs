//! The receiving side of a swarm: which piece is asked of whom.

use std::time::Duration;

use super::peers::Neighbour;
use super::{Context, Swarm, Violation};
use crate::peer::PeerRole;
use crate::scheduler::action::Action;
use crate::scheduler::config::Config;
use crate::scheduler::input::ConnId;
use crate::time::Timestamp;
use crate::wire::message::Message;

/// How many peers a piece is asked of in the end game.
pub(super) const COPIES: usize = 2;

/// A request that takes this many times as long as usual is a slow one.
const SLOW: u32 = 3;

impl Swarm {
    pub(super) fn fill_all(&mut self, cx: &mut Context<'_>) {
        if self.is_complete() {
            return;
        }
        for conn in self.conns().collect::<Vec<_>>() {
            self.fill(cx, conn);
        }
    }

    /// Asks a neighbour for pieces until its pipeline is full.
    pub(super) fn fill(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        self.note_hunger(cx.now);
        while let Some(piece) = self.choose(cx, conn) {
            self.ask(cx, conn, piece);
        }
    }

    /// A piece came from `conn`, so that there is room for another request. With more neighbours
    /// than requests it goes to one by chance, or some would never be asked.
    pub(super) fn refill(&mut self, cx: &mut Context<'_>, conn: ConnId) {
        if self.peers.len() <= cx.config.inflight_most {
            self.fill(cx, conn);
            return;
        }
        let mut conns: Vec<_> = self.conns().collect();
        let first = cx.rng.below(conns.len());
        conns.rotate_left(first);
        for conn in conns {
            if self.brisk(cx.now) >= cx.config.inflight_most {
                break;
            }
            self.fill(cx, conn);
        }
    }

    /// Asks the origins when no agent is sending.
    pub(super) fn fill_when_starving(&mut self, cx: &mut Context<'_>) {
        self.note_hunger(cx.now);
        if self.hungry_since.is_some() && !self.is_complete() {
            let origins = self.peers.iter().filter(|(_, peer)| !peer.is_agent());
            let origins: Vec<_> = origins.map(|(conn, _)| *conn).collect();
            origins.into_iter().for_each(|conn| self.fill(cx, conn));
        }
    }

    /// An origin, or an agent that goes, offers a piece that nobody near it has.
    pub(crate) fn offered(
        &mut self,
        cx: &mut Context<'_>,
        conn: ConnId,
        piece: u32,
    ) -> Result<(), Violation> {
        if piece >= self.have.len() {
            return Err(Violation);
        }
        let Some(peer) = self.peers.get(&conn).filter(|peer| peer.subscribed) else {
            return Ok(());
        };
        // One more than it was asked for by name: a refusal would say that the piece is coming.
        let probation = cx.config.pipeline_unproven + 1;
        let able =
            peer.have.has(piece) && !peer.stalled && !self.on_probation(probation, conn, peer);
        let room = self.inflight.asked_of(conn) < cx.config.max_uploads_per_peer;
        if able && room && self.rarest.is_open(piece) && !self.inflight.has(piece, conn) {
            self.ask(cx, conn, piece);
        } else if !self.keep_offer(cx.config, conn, piece) {
            let digest = self.spec.digest;
            let message = Message::Refuse { digest, piece };
            cx.out.push_back(Action::Send { conn, message });
        }
        Ok(())
    }

    fn ask(&mut self, cx: &mut Context<'_>, conn: ConnId, piece: u32) {
        let Some(role) = self.peers.get(&conn).map(|peer| peer.role) else {
            return;
        };
        self.rarest.close(piece);
        self.inflight.add(cx.now, piece, conn, role);
        self.watch_at.get_or_insert(cx.now + cx.config.watch);
        let digest = self.spec.digest;
        let message = Message::Request { digest, piece };
        cx.out.push_back(Action::Send { conn, message });
    }

    fn choose(&self, cx: &mut Context<'_>, conn: ConnId) -> Option<u32> {
        let peer = self.peers.get(&conn)?;
        if !peer.subscribed || peer.stalled || self.is_complete() {
            return None;
        }
        let brisk = self.brisk(cx.now);
        let full = brisk >= cx.config.inflight_most;
        if full || self.is_busy(cx, brisk, conn, peer) || self.is_too_slow(brisk, peer) {
            return None;
        }
        let eligible = |piece: u32| peer.have.has(piece) && !self.inflight.has(piece, conn);
        let pick = if self.rarest.has_none_of(&peer.have) {
            None
        } else {
            match peer.role {
                PeerRole::Agent => self.choose_of_agent(cx, &eligible),
                PeerRole::Origin => self.choose_of_origin(cx, &eligible),
            }
        };
        pick.or_else(|| self.choose_double(cx, &eligible))
    }

    /// Whether the neighbour's pipeline is full.
    fn is_busy(&self, cx: &Context<'_>, brisk: usize, conn: ConnId, peer: &Neighbour) -> bool {
        let asked = match peer.role {
            // The second origin is there to fall back on, unless there is nobody else to draw from.
            PeerRole::Origin if self.agents_are_sending() => {
                self.inflight.asked_of_role(PeerRole::Origin)
            }
            _ => self.inflight.asked_of(conn),
        };
        asked >= self.pipeline(cx.config, brisk, peer)
            || self.on_probation(cx.config.pipeline_unproven, conn, peer)
    }

    /// How many requests one neighbour gets: few, because a piece is passed on only when it is
    /// whole and each that waits makes the others wait; but a host with few neighbours gives each
    /// more, because senders serve in the order of asking, and whoever has asked for less than the
    /// others gets less. A slow neighbour gets no more: what waits for it waits long.
    fn pipeline(&self, config: &Config, brisk: usize, peer: &Neighbour) -> usize {
        let own = match peer.role {
            PeerRole::Agent => config.pipeline_agent,
            PeerRole::Origin => config.pipeline_origin,
        };
        if brisk < config.inflight && peer.service <= self.service * SLOW {
            // Who takes unusually long does not count as a neighbour either.
            let slow = self.inflight.len() - brisk;
            let quick = self.peers.len().saturating_sub(slow).max(1);
            own.max(config.inflight.div_ceil(quick))
        } else {
            own
        }
    }

    /// How many requests are on their way and do not take unusually long. Those that do, over thin
    /// paths or of slow hosts, must not keep the others from being asked.
    fn brisk(&self, now: Timestamp) -> usize {
        let usual = if self.service.is_zero() {
            Duration::MAX
        } else {
            self.service * SLOW
        };
        self.inflight.made_after(now - usual)
    }

    /// Whether the neighbour would still be sending when the others could have sent all the rest:
    /// over a thin path the last piece is late for the whole blob.
    fn is_too_slow(&self, brisk: usize, peer: &Neighbour) -> bool {
        let missing = self.missing();
        let rest = u32::try_from(brisk)
            .ok()
            .and_then(|others| self.service.saturating_mul(missing).checked_div(others));
        // When no others are at it, better late than never.
        rest.is_some_and(|rest| peer.service > rest.max(self.service * 2))
    }

    /// Whether no more may be asked of the neighbour before a piece of its has verified.
    fn on_probation(&self, bound: usize, conn: ConnId, peer: &Neighbour) -> bool {
        let checking = || {
            let senders = self.storing.values();
            senders.filter(|(id, _)| *id == peer.id).count()
        };
        !peer.proven && self.inflight.asked_of(conn) + checking() >= bound
    }

    /// Of an agent: what the readers want next, then what is rare.
    fn choose_of_agent(&self, cx: &mut Context<'_>, eligible: &dyn Fn(u32) -> bool) -> Option<u32> {
        if self.parts.is_some() {
            return self.choose_part(cx, eligible);
        }
        let mut ahead = self.window.ahead(cx.config.read_ahead);
        ahead
            .find(|piece| self.rarest.is_open(*piece) && eligible(*piece))
            .or_else(|| self.rarest.pick(1.., cx.rng, eligible))
    }

    /// Of an origin: what a reader has waited for too long, and anything when no agent is sending,
    /// first what no agent nearby has. The rest comes by its offers.
    fn choose_of_origin(
        &self,
        cx: &mut Context<'_>,
        eligible: &dyn Fn(u32) -> bool,
    ) -> Option<u32> {
        if self.parts.is_some() {
            return self.choose_part_of_origin(cx, eligible);
        }
        let mut urgent = self.window.urgent(cx.now, cx.config.patience);
        urgent
            .find(|piece| self.rarest.is_open(*piece) && eligible(*piece))
            .or_else(|| {
                let starving = self.is_starving(cx.now, cx.config);
                starving.then(|| self.rarest.pick(.., cx.rng, eligible))?
            })
    }

    fn choose_double(&self, cx: &Context<'_>, eligible: &dyn Fn(u32) -> bool) -> Option<u32> {
        if !self.in_endgame(cx.config) {
            return None;
        }
        let age = self.doubling_age(cx.config);
        self.inflight.duplicate(cx.now - age, COPIES, eligible)
    }

    /// How long a request must have waited before it is doubled in the end game.
    pub(super) fn doubling_age(&self, config: &Config) -> Duration {
        config.endgame_age.max(self.service * 2)
    }

    pub(super) fn agents_are_sending(&self) -> bool {
        self.inflight.asked_of_role(PeerRole::Agent) > 0
    }

    /// Keeps in mind since when no agent has been sending.
    pub(super) fn note_hunger(&mut self, now: Timestamp) {
        if self.agents_are_sending() || self.awaits_more() {
            self.hungry_since = None;
        } else {
            self.hungry_since.get_or_insert(now);
        }
    }

    /// When an origin may be asked for whatever it has: at once without agents around, and after a
    /// while with some, because its offers may reach them and them us.
    pub(super) fn starves_at(&self, config: &Config) -> Option<Timestamp> {
        let since = self.hungry_since?;
        let company = self.peers.values().any(|it| it.is_agent() && it.subscribed);
        Some(if company {
            since + config.offer_wait
        } else {
            since
        })
    }

    /// Whether nobody around has anything for us, and that for a while: other peers may.
    pub(crate) fn is_needy(&self, now: Timestamp, config: &Config) -> bool {
        let hungry = |since: Timestamp| now.since(since) >= config.offer_wait;
        !self.is_complete()
            && !self.is_idle()
            && self.inflight.is_empty()
            && self.hungry_since.is_some_and(hungry)
    }

    pub(super) fn is_starving(&self, now: Timestamp, config: &Config) -> bool {
        self.starves_at(config).is_some_and(|at| at <= now)
    }

    pub(super) fn in_endgame(&self, config: &Config) -> bool {
        let missing = self.missing();
        missing > 0 && missing <= config.endgame_pieces && self.rarest.open_count() == 0
    }
}
