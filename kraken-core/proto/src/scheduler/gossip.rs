//! Peers from peers: how a host finds a swarm when no tracker answers.
//!
//! It asks its neighbours who else is there, and when it has none, it calls on peers that it met
//! before, for whatever blob. Whoever is too busy to be a neighbour still says who else there is.

use std::collections::VecDeque;

use super::Scheduler;
use crate::blob::digest::Digest;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::rng::Rng;
use crate::scheduler::action::Action;
use crate::scheduler::input::ConnId;
use crate::time::Timestamp;
use crate::wire::message::Message;

/// Peers that were met, the latest last.
#[derive(Debug, Default)]
pub(crate) struct Known {
    peers: VecDeque<PeerInfo>,
}

/// Who was met earliest is forgotten first. Enough for a good many to be still there when all
/// trackers are gone; some 20 KiB.
const MAX_KNOWN: usize = 128;

/// How many are asked at a time, of each role.
const ASKED_AT_ONCE: usize = 4;

impl Known {
    pub(crate) fn learn(&mut self, peer: PeerInfo) {
        self.peers.retain(|it| it.id != peer.id);
        self.peers.push_back(peer);
        if self.peers.len() > MAX_KNOWN {
            self.peers.pop_front();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PeerInfo> {
        self.peers.iter()
    }

    /// A few peers of a role, by chance.
    fn some(&self, role: PeerRole, rng: &mut Rng) -> Vec<PeerInfo> {
        let mut some: Vec<_> = self.iter().filter(|it| it.role == role).collect();
        rng.shuffle(&mut some);
        some.into_iter().take(ASKED_AT_ONCE).cloned().collect()
    }
}

impl Scheduler {
    /// No tracker answers for a blob: its neighbours may know who else is there; without any,
    /// peers met before may take part, or know who does.
    pub(super) fn ask_around(&mut self, now: Timestamp, digest: Digest) {
        let Some(swarm) = self
            .swarms
            .get(&digest)
            .filter(|it| !it.is_complete() && !it.is_idle())
        else {
            return;
        };
        if swarm.degree(PeerRole::Agent) >= self.config.target_degree {
            return;
        }
        let mut conns: Vec<_> = swarm.conns().collect();
        self.rng.shuffle(&mut conns);
        for conn in conns.iter().copied().take(ASKED_AT_ONCE) {
            self.ask_peers(conn, digest);
        }
        if conns.len() < ASKED_AT_ONCE {
            for role in [PeerRole::Agent, PeerRole::Origin] {
                for peer in self.known.some(role, &mut self.rng) {
                    self.approach(now, digest, &peer);
                }
            }
        }
    }

    pub(super) fn ask_peers(&mut self, conn: ConnId, digest: Digest) {
        let message = Message::AskPeers { digest };
        self.actions.push_back(Action::Send { conn, message });
    }

    /// A peer wants to know who takes part in a blob's swarm.
    pub(super) fn tell_peers(&mut self, conn: ConnId, digest: Digest) {
        let swarm = self.swarms.get(&digest);
        let conns = swarm.into_iter().flat_map(|swarm| swarm.conns());
        let infos = conns
            .filter(|it| *it != conn)
            .filter_map(|it| self.conns.get(it)?.info.as_ref())
            .filter(|info| info.role == PeerRole::Agent);
        let mut peers: Vec<_> = infos.cloned().collect();
        self.rng.shuffle(&mut peers);
        peers.truncate(Message::MAX_PEERS);
        let message = Message::Peers { digest, peers };
        self.actions.push_back(Action::Send { conn, message });
    }

    /// A peer said who takes part. Only somebody who looks for peers has asked.
    pub(super) fn told_peers(&mut self, now: Timestamp, digest: Digest, peers: &[PeerInfo]) {
        if self.announces.is_failing(digest) {
            self.meet(now, digest, peers);
        }
    }

    /// A peer said hello: how it is reached is worth remembering.
    pub(super) fn met(&mut self, conn: ConnId, info: PeerInfo) {
        self.known.learn(info.clone());
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.info = Some(info);
        }
    }

    /// A peer turned us away: it may know others.
    pub(super) fn ask_whoever_is_full(&mut self, conn: ConnId, digest: Digest, peer: PeerId) {
        let known = self.conns.of_peer(peer) == Some(conn);
        if known && self.announces.is_failing(digest) {
            self.ask_peers(conn, digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u32, role: PeerRole) -> PeerInfo {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        PeerInfo {
            id: PeerId::from_bytes(id),
            addr: ([10, 0, 0, 1], 7600).into(),
            role,
            zone: None,
        }
    }

    #[test]
    fn the_latest_are_kept_and_nobody_twice() {
        let mut known = Known::default();
        for n in 0..MAX_KNOWN as u32 + 5 {
            known.learn(peer(n, PeerRole::Agent));
        }
        known.learn(peer(7, PeerRole::Agent));
        let met: Vec<_> = known.iter().cloned().collect();
        assert_eq!(met.len(), MAX_KNOWN);
        assert_eq!(met[0], peer(5, PeerRole::Agent));
        assert_eq!(met[MAX_KNOWN - 1], peer(7, PeerRole::Agent));
    }

    #[test]
    fn some_are_of_the_role_that_was_asked_for() {
        let mut known = Known::default();
        (0..20).for_each(|n| known.learn(peer(n, PeerRole::Agent)));
        known.learn(peer(99, PeerRole::Origin));
        let mut rng = Rng::seeded(1);
        assert_eq!(
            known.some(PeerRole::Origin, &mut rng),
            [peer(99, PeerRole::Origin)]
        );
        assert_eq!(known.some(PeerRole::Agent, &mut rng).len(), ASKED_AT_ONCE);
    }
}
