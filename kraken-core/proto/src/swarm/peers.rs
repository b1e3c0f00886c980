//! One neighbour in one blob's swarm.

use std::time::Duration;

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
    /// It fetches only parts of the blob, and is offered nothing.
    pub(crate) is_partial: bool,
    /// Pieces that we cancelled and that may arrive all the same; a handful.
    pub(crate) cancelled: Vec<u32>,
    /// Pieces that it asked for and that are being sent; a handful.
    pub(crate) uploads: Vec<u32>,
    /// How many pieces it was sent.
    pub(crate) served: u32,
    /// What it takes from an offer until it says to have the piece, smoothed; zero before the
    /// first.
    pub(crate) takes: Duration,
    /// What a request to it takes from asking to arrival, smoothed; zero before the first.
    pub(crate) service: Duration,
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
            is_partial: false,
            cancelled: Vec::new(),
            uploads: Vec::new(),
            served: 0,
            takes: Duration::ZERO,
            service: Duration::ZERO,
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

/// Takes `piece` out of a short list and says whether it was in.
pub(crate) fn take(pieces: &mut Vec<u32>, piece: u32) -> bool {
    let place = pieces.iter().position(|it| *it == piece);
    place.map(|place| pieces.swap_remove(place)).is_some()
}
