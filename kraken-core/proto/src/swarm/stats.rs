//! Where a blob's bytes came from and went to.

use crate::peer::PeerRole;

/// Counters of one blob on one host, in bytes of verified pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SwarmStats {
    /// Received from origins.
    pub from_origins: u64,
    /// Received from agents.
    pub from_agents: u64,
    /// Sent, to anybody.
    pub sent: u64,
    /// Pieces that did not verify.
    pub rejected_pieces: u64,
}

impl SwarmStats {
    pub(crate) fn received(&mut self, role: PeerRole, bytes: u64) {
        match role {
            PeerRole::Origin => self.from_origins += bytes,
            PeerRole::Agent => self.from_agents += bytes,
        }
    }
}
