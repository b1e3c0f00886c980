//! One neighbour in one blob's swarm.

use std::collections::BTreeSet;

use crate::blob::bitfield::Bitfield;
use crate::peer::{PeerId, PeerRole};
use crate::time::Timestamp;

/// A peer that takes part in the same swarm, over one connection.
#[derive(Debug)]
pub(crate) struct Neighbour {
    pub(crate) id: PeerId,
    pub(crate) role: PeerRole,
    /// What it has; nothing until it has subscribed.
    pub(crate) have: Bitfield,
    /// Whether it has subscribed, which is when it may be asked and may ask.
    pub(crate) subscribed: bool,
    /// Pieces that we cancelled and that may arrive all the same.
    pub(crate) cancelled: BTreeSet<u32>,
    /// Pieces that it asked for and that are being sent.
    pub(crate) uploads: BTreeSet<u32>,
    /// When it last sent a piece.
    pub(crate) last_piece: Timestamp,
    /// A piece of its has verified. Until then it is asked for one at a time: a liar is known by
    /// its first piece and wastes no more than that.
    pub(crate) proven: bool,
    /// It owes pieces and is silent: no more requests until one comes.
    pub(crate) stalled: bool,
}

impl Neighbour {
    pub(crate) fn new(id: PeerId, role: PeerRole, pieces: u32) -> Self {
        Self {
            id,
            role,
            have: Bitfield::empty(pieces),
            subscribed: false,
            cancelled: BTreeSet::new(),
            uploads: BTreeSet::new(),
            last_piece: Timestamp::ZERO,
            proven: false,
            stalled: false,
        }
    }

    pub(crate) fn is_agent(&self) -> bool {
        self.role == PeerRole::Agent
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.subscribed && self.have.is_full()
    }
}
