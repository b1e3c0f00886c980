//! Peers that are kept away for a while: after a failed dial briefly, after a lie for long.
//!
//! Each repetition doubles the time, and after as long a time of good conduct it is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::peer::PeerId;
use crate::time::Timestamp;

/// The peers under back-off.
#[derive(Debug, Default)]
pub(crate) struct Penalties {
    by_peer: BTreeMap<PeerId, Penalty>,
}

#[derive(Debug)]
struct Penalty {
    until: Timestamp,
    span: Duration,
    /// For what it did, not for being away: incoming connections are refused too.
    banned: bool,
}

/// Bounds the table against a flood of identities: the penalty that ends first gives way.
const MAX_PENALTIES: usize = 16_384;

impl Penalties {
    /// Keeps the peer away for `first`, or twice as long as the last time, at most `longest`.
    pub(crate) fn add(
        &mut self,
        now: Timestamp,
        peer: PeerId,
        first: Duration,
        longest: Duration,
        banned: bool,
    ) {
        self.forget_old(now);
        let before = self.by_peer.get(&peer);
        let span = before
            .map_or(first, |last| (last.span * 2).max(first))
            .min(longest);
        let until = (now + span).max(before.map_or(now, |last| last.until));
        let banned = banned || before.is_some_and(|last| last.banned && last.until > now);
        self.by_peer.insert(
            peer,
            Penalty {
                until,
                span,
                banned,
            },
        );
        if self.by_peer.len() > MAX_PENALTIES {
            let first_over = self
                .by_peer
                .iter()
                .min_by_key(|(_, it)| it.until)
                .map(|(id, _)| *id);
            first_over.and_then(|id| self.by_peer.remove(&id));
        }
    }

    /// The peer answered: a failed dial is forgotten, a ban is not.
    pub(crate) fn heal(&mut self, peer: PeerId) {
        if self.by_peer.get(&peer).is_some_and(|it| !it.banned) {
            self.by_peer.remove(&peer);
        }
    }

    /// Whether the peer is not to be dialled now.
    pub(crate) fn keeps_away(&self, now: Timestamp, peer: PeerId) -> bool {
        self.by_peer.get(&peer).is_some_and(|it| it.until > now)
    }

    /// Whether the peer is refused even when it calls.
    pub(crate) fn is_banned(&self, now: Timestamp, peer: PeerId) -> bool {
        self.by_peer
            .get(&peer)
            .is_some_and(|it| it.banned && it.until > now)
    }

    fn forget_old(&mut self, now: Timestamp) {
        self.by_peer.retain(|_, it| it.until + it.span > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_secs(25);
    const PEER: PeerId = PeerId::from_bytes([1; 32]);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn grows_and_heals() {
        let mut penalties = Penalties::default();
        penalties.add(at(0), PEER, FIRST, LONGEST, true);
        assert!(penalties.is_banned(at(9), PEER) && !penalties.is_banned(at(10), PEER));
        penalties.add(at(12), PEER, FIRST, LONGEST, true);
        assert!(penalties.is_banned(at(31), PEER) && !penalties.is_banned(at(32), PEER));
        penalties.add(at(33), PEER, FIRST, LONGEST, true);
        assert!(penalties.is_banned(at(57), PEER) && !penalties.is_banned(at(58), PEER));
        // As long a time of good conduct, and it starts anew.
        penalties.add(at(58 + 26), PEER, FIRST, LONGEST, true);
        assert!(!penalties.is_banned(at(58 + 26 + 10), PEER));
    }

    #[test]
    fn a_failed_dial_heals_at_once_and_a_ban_does_not() {
        let mut penalties = Penalties::default();
        penalties.add(at(0), PEER, FIRST, LONGEST, false);
        assert!(penalties.keeps_away(at(5), PEER) && !penalties.is_banned(at(5), PEER));
        penalties.heal(PEER);
        assert!(!penalties.keeps_away(at(5), PEER));
        penalties.add(at(0), PEER, FIRST, LONGEST, true);
        penalties.heal(PEER);
        assert!(penalties.is_banned(at(5), PEER));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut penalties = Penalties::default();
        for number in 0..MAX_PENALTIES as u64 + 10 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            penalties.add(at(0), PeerId::from_bytes(id), FIRST, LONGEST, true);
        }
        assert_eq!(penalties.by_peer.len(), MAX_PENALTIES);
    }
}
