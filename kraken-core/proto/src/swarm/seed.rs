//! How an origin, or an agent that goes soon, chooses what it brings into a swarm: see
//! [`super::offers`].

use super::offers::Offers;
use super::peers::Neighbour;
use super::{Context, Swarm};
use crate::peer::PeerRole;
use crate::scheduler::action::Action;
use crate::scheduler::config::Config;
use crate::scheduler::input::ConnId;
use crate::wire::message::Message;

/// Bytes of a blob that an origin brings in whatever its length.
const GENEROUS: u64 = 64 << 20;

/// Further copies are for crowds: so many agents share one.
const AGENTS_PER_COPY: usize = 4;

impl Swarm {
    /// An origin that has the blob, or is taking it in, chooses what it sends.
    pub(super) fn begin_offers(&mut self, config: &Config) {
        if self.offers.is_none() && config.offers > 0 {
            let mut offers = Offers::new(self.have.len());
            for (conn, peer) in self.peers.iter().filter(|(_, peer)| peer.is_agent()) {
                for piece in peer.have.iter() {
                    offers.more(piece, *conn);
                }
            }
            self.offers = Some(offers);
        }
    }

    /// This host goes soon: what no other agent around has is offered, as an origin does it.
    pub(crate) fn hand_over(&mut self, cx: &mut Context<'_>) {
        self.begin_offers(cx.config);
        self.offer(cx);
    }

    /// How many pieces are here that no other agent around has, while one is there that lacks them.
    pub(crate) fn rare(&self) -> usize {
        if self.has_met_whole || !self.peers.values().any(Neighbour::takes_offers) {
            return 0;
        }
        let agents = || self.peers.values().filter(|peer| peer.is_agent());
        let is_rare = |piece: &u32| !agents().any(|peer| peer.have.has(*piece));
        self.have.iter().filter(is_rare).count()
    }

    /// Offers scarce pieces to the neighbours, as far as there is room.
    pub(super) fn offer(&mut self, cx: &mut Context<'_>) {
        while let Some((piece, conn)) = self.next_offer(cx) {
            if let Some(offers) = &mut self.offers {
                offers.offered(cx.now, piece, conn, cx.config);
            }
            self.watch_at.get_or_insert(cx.now + cx.config.watch);
            let digest = self.spec.digest;
            let message = Message::Offer { digest, piece };
            cx.out.push_back(Action::Send { conn, message });
        }
    }

    fn next_offer(&self, cx: &mut Context<'_>) -> Option<(u32, ConnId)> {
        let offers = self.offers.as_ref()?;
        if offers.open() >= cx.config.offers || offers.rests(cx.now) {
            return None;
        }
        let free = self.free_takers(offers, cx.config);
        let takes = |conn: ConnId, peer: &Neighbour, piece: u32| {
            !peer.have.has(piece) && !offers.is_claimed(piece, conn)
        };
        let wanted = |piece: u32| {
            self.have.has(piece) && free.iter().any(|(conn, peer)| takes(*conn, peer, piece))
        };
        let piece = offers.scarce(self.copies(cx.config), cx.rng, wanted)?;
        let able = free.iter().filter(|(conn, peer)| takes(*conn, peer, piece));
        let able: Vec<_> = able.map(|(conn, peer)| (peer.takes, *conn)).collect();
        // The quicker of two: a piece that only a slow host has is late for everybody.
        let draws = [0, 1].map(|_| cx.rng.below(able.len()));
        let (_, conn) = draws.iter().filter_map(|it| able.get(*it)).min()?;
        Some((piece, *conn))
    }

    /// The agents that can be offered a piece. One that has had no piece from here yet takes one at
    /// a time, the others share the room.
    fn free_takers(&self, offers: &Offers, config: &Config) -> Vec<(ConnId, &Neighbour)> {
        let takers = self.peers.iter().filter(|(_, peer)| peer.takes_offers());
        let share = (config.offers / takers.clone().count().max(1)).max(1);
        let most = |peer: &Neighbour| if peer.served > 0 { share } else { 1 };
        takers
            .filter(|(conn, peer)| offers.open_for(**conn) < most(peer))
            .map(|(conn, peer)| (*conn, peer))
            .collect()
    }

    /// How many copies of each piece an origin brings in. One is enough to spare the origin, and
    /// several make a small blob spread sooner in a crowd, at little cost.
    fn copies(&self, config: &Config) -> u16 {
        let affordable = GENEROUS / self.spec.length.max(1);
        let affordable = u16::try_from(affordable).unwrap_or(u16::MAX);
        let shared = self.degree(PeerRole::Agent) / AGENTS_PER_COPY;
        let shared = u16::try_from(shared).unwrap_or(u16::MAX);
        affordable.min(shared).clamp(1, config.offer_copies.max(1))
    }
}

impl Neighbour {
    fn takes_offers(&self) -> bool {
        self.is_agent() && self.subscribed && !self.is_partial && !self.have.is_full()
    }
}
