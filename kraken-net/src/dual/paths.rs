//! Which way to a peer: decides, and reads no clock and touches no socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use kraken_proto::Timestamp;

/// How long a peer is dialled over TCP at once, after QUIC had no answer from it.
pub(super) const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// Peers that are remembered. When there are more, the one that fades first is forgotten.
const MOST: usize = 4096;

/// Peers to which QUIC found no way, though TCP did.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Until when.
    tcp: BTreeMap<SocketAddr, Timestamp>,
}

impl Paths {
    /// Whether a peer is to be dialled over TCP at once.
    pub(super) fn tcp_first(&self, peer: SocketAddr, now: Timestamp) -> bool {
        self.tcp.get(&peer).is_some_and(|until| now < *until)
    }

    /// TCP has reached a peer that QUIC has not.
    pub(super) fn remember(&mut self, peer: SocketAddr, now: Timestamp) {
        if self.tcp.len() >= MOST && !self.tcp.contains_key(&peer) {
            self.tcp.retain(|_, until| now < *until);
            if self.tcp.len() >= MOST {
                let fades = self.tcp.iter().min_by_key(|(_, until)| **until);
                if let Some(fades) = fades.map(|(peer, _)| *peer) {
                    self.tcp.remove(&fades);
                }
            }
        }
        self.tcp.insert(peer, now + REMEMBERED);
    }

    /// TCP has not reached a peer, or QUIC has.
    pub(super) fn forget(&mut self, peer: SocketAddr) {
        self.tcp.remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn a_peer_is_remembered_for_a_while() {
        let mut paths = Paths::default();
        let then = Timestamp::ZERO + Duration::from_secs(5);
        assert!(!paths.tcp_first(peer(1), then));
        paths.remember(peer(1), then);
        let last = then + REMEMBERED - Duration::from_nanos(1);
        assert!(paths.tcp_first(peer(1), last));
        assert!(!paths.tcp_first(peer(2), then));
        assert!(!paths.tcp_first(peer(1), then + REMEMBERED));
        paths.forget(peer(1));
        assert!(!paths.tcp_first(peer(1), then));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let mut paths = Paths::default();
        let at = |index: usize| Timestamp::from_nanos(index as u64);
        for index in 0..MOST + 10 {
            paths.remember(peer(u16::try_from(index).unwrap()), at(index));
        }
        assert_eq!(paths.tcp.len(), MOST);
        let now = at(MOST + 10);
        assert!(!paths.tcp_first(peer(9), now) && paths.tcp_first(peer(10), now));
        let later = now + REMEMBERED;
        paths.remember(peer(9), later);
        assert_eq!(paths.tcp.len(), 1);
    }
}
