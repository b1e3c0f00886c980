//! The connections of one host: at most one per peer, carrying every blob.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::blob::digest::Digest;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::scheduler::input::ConnId;
use crate::time::Timestamp;

/// The connections that stand and the dials that are under way.
#[derive(Debug)]
pub(crate) struct Conns {
    local: PeerId,
    by_id: BTreeMap<ConnId, Conn>,
    by_peer: BTreeMap<PeerId, ConnId>,
    dials: BTreeMap<PeerId, Dial>,
}

/// Dials cross only when both begin before either is done, and a handshake takes at most this long.
const CROSSING: Duration = Duration::from_secs(8);

/// A dial under way.
#[derive(Debug)]
struct Dial {
    role: PeerRole,
    wanted: BTreeSet<Digest>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) peer: PeerId,
    dialled: bool,
    up_at: Timestamp,
    /// Known once the peer has said hello.
    pub(crate) role: Option<PeerRole>,
    /// How others reach the peer, when it has said so.
    pub(crate) info: Option<PeerInfo>,
    /// The blobs to greet the peer with once it has said hello.
    pub(crate) wanted: BTreeSet<Digest>,
    /// The swarms that use it.
    pub(crate) swarms: BTreeSet<Digest>,
    /// Since when no swarm uses it.
    idle_since: Timestamp,
}

/// What becomes of a new connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stays, instead of an older one to the same peer if there was any.
    Keep {
        /// The connection that it replaces.
        instead: Option<ConnId>,
    },
    /// The older one to the same peer stays.
    Duplicate,
}

impl Conns {
    pub(crate) fn new(local: PeerId) -> Self {
        let (by_id, by_peer, dials) = Default::default();
        Self {
            local,
            by_id,
            by_peer,
            dials,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len() + self.dials.len()
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Conn> {
        self.by_id.get(&conn)
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.by_id.get_mut(&conn)
    }

    pub(crate) fn of_peer(&self, peer: PeerId) -> Option<ConnId> {
        self.by_peer.get(&peer).copied()
    }

    pub(crate) fn ids(&self) -> Vec<ConnId> {
        self.by_id.keys().copied().collect()
    }

    /// The peers that have said how they are reached.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &PeerInfo> {
        self.by_id.values().filter_map(|conn| conn.info.as_ref())
    }

    /// How many dials are under way for a blob.
    pub(crate) fn coming(&self, digest: Digest) -> usize {
        self.dials
            .values()
            .filter(|dial| dial.wanted.contains(&digest))
            .count()
    }

    /// How many dials to peers of a role are under way for a blob.
    pub(crate) fn coming_of(&self, digest: Digest, role: PeerRole) -> usize {
        let meant = |dial: &&Dial| dial.role == role && dial.wanted.contains(&digest);
        self.dials.values().filter(meant).count()
    }

    /// Wants the peer for a blob; says whether a dial must begin.
    pub(crate) fn want(&mut self, peer: &PeerInfo, digest: Digest) -> bool {
        let new = !self.dials.contains_key(&peer.id);
        let dial = Dial {
            role: peer.role,
            wanted: BTreeSet::new(),
        };
        self.dials
            .entry(peer.id)
            .or_insert(dial)
            .wanted
            .insert(digest);
        new
    }

    /// A dial ended: the blobs that wanted the peer.
    pub(crate) fn dial_ended(&mut self, peer: PeerId) -> BTreeSet<Digest> {
        self.dials
            .remove(&peer)
            .map(|dial| dial.wanted)
            .unwrap_or_default()
    }

    /// A connection stands. When both sides dialled at once, both keep the one that the smaller
    /// id dialled. Otherwise the newer one stays: a peer that calls anew has lost the old one.
    pub(crate) fn up(
        &mut self,
        now: Timestamp,
        id: ConnId,
        peer: PeerId,
        dialled: bool,
    ) -> Verdict {
        let mut wanted = self.dial_ended(peer);
        let before = self.of_peer(peer);
        if let Some(old) = before.and_then(|old| self.by_id.get_mut(&old)) {
            let preferred = dialled == (self.local < peer);
            let crossing = now.since(old.up_at) < CROSSING;
            if old.dialled != dialled && !preferred && crossing {
                old.wanted.extend(wanted);
                return Verdict::Duplicate;
            }
            wanted.extend(old.wanted.iter().chain(&old.swarms));
        }
        let swarms = BTreeSet::new();
        let conn = Conn {
            peer,
            dialled,
            up_at: now,
            role: None,
            info: None,
            wanted,
            swarms,
            idle_since: now,
        };
        self.by_id.insert(id, conn);
        self.by_peer.insert(peer, id);
        Verdict::Keep { instead: before }
    }

    /// A connection is gone.
    pub(crate) fn down(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.by_id.remove(&id)?;
        if self.of_peer(conn.peer) == Some(id) {
            self.by_peer.remove(&conn.peer);
        }
        Some(conn)
    }

    /// A swarm uses the connection, or no longer does.
    pub(crate) fn used(&mut self, now: Timestamp, id: ConnId, digest: Digest, used: bool) {
        let Some(conn) = self.by_id.get_mut(&id) else {
            return;
        };
        if used {
            conn.swarms.insert(digest);
        } else {
            conn.swarms.remove(&digest);
            conn.idle_since = now;
        }
    }

    /// The connections that nothing has used since `since`.
    pub(crate) fn idle(&self, since: Timestamp) -> Vec<ConnId> {
        let idle = |conn: &Conn| conn.swarms.is_empty() && conn.idle_since <= since;
        self.by_id
            .iter()
            .filter(|(_, conn)| idle(conn))
            .map(|(id, _)| *id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: PeerId = PeerId::from_bytes([1; 32]);
    const LARGE: PeerId = PeerId::from_bytes([9; 32]);
    const NOW: Timestamp = Timestamp::ZERO;

    /// Both sides see both connections, in either order, and keep the same one.
    #[test]
    fn crossing_dials_leave_the_same_connection_on_both_sides() {
        let (by_small, by_large) = (ConnId(1), ConnId(2));
        for order in [[by_small, by_large], [by_large, by_small]] {
            for (local, other) in [(SMALL, LARGE), (LARGE, SMALL)] {
                let mut conns = Conns::new(local);
                for id in order {
                    let dialled = (id == by_small) == (local == SMALL);
                    if let Verdict::Keep { instead: Some(old) } = conns.up(NOW, id, other, dialled)
                    {
                        conns.down(old);
                    }
                }
                assert_eq!(conns.of_peer(other), Some(by_small));
                assert_eq!(conns.ids(), [by_small]);
            }
        }
    }

    #[test]
    fn a_restarted_peer_replaces_its_old_connection_and_keeps_the_swarms() {
        let mut conns = Conns::new(LARGE);
        let digest = Digest::of(b"");
        conns.up(NOW, ConnId(1), SMALL, false);
        conns.used(NOW, ConnId(1), digest, true);
        assert_eq!(
            conns.up(NOW, ConnId(2), SMALL, false),
            Verdict::Keep {
                instead: Some(ConnId(1))
            }
        );
        assert!(conns.get(ConnId(2)).unwrap().wanted.contains(&digest));
        conns.down(ConnId(1));
        assert_eq!(conns.of_peer(SMALL), Some(ConnId(2)));
    }

    #[test]
    fn a_peer_that_restarted_may_call_whoever_dialled_it_before() {
        let mut conns = Conns::new(SMALL);
        conns.up(NOW, ConnId(1), LARGE, true);
        let soon = NOW + CROSSING / 2;
        assert_eq!(conns.up(soon, ConnId(2), LARGE, false), Verdict::Duplicate);
        let later = NOW + CROSSING;
        let instead = Some(ConnId(1));
        assert_eq!(
            conns.up(later, ConnId(3), LARGE, false),
            Verdict::Keep { instead }
        );
    }

    #[test]
    fn one_dial_serves_many_blobs() {
        let mut conns = Conns::new(SMALL);
        let peer = PeerInfo {
            id: LARGE,
            addr: "127.0.0.1:1".parse().unwrap(),
            role: PeerRole::Agent,
            zone: None,
        };
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert!(conns.want(&peer, a));
        assert!(!conns.want(&peer, b));
        assert_eq!((conns.len(), conns.coming(a)), (1, 1));
        conns.up(NOW, ConnId(1), LARGE, true);
        assert_eq!(conns.get(ConnId(1)).unwrap().wanted, [a, b].into());
        assert_eq!(conns.idle(NOW), [ConnId(1)]);
        conns.used(NOW, ConnId(1), a, true);
        assert!(conns.idle(NOW).is_empty());
        assert!(conns.dial_ended(LARGE).is_empty());
    }
}
