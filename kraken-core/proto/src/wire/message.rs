//! The messages between two peers.

use crate::blob::bitfield::Bitfield;
use crate::blob::digest::Digest;
use crate::blob::metainfo::PieceLength;
use crate::peer::PeerRole;

/// What one peer says to another over their one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first message of each side: what it is there for.
    Hello {
        /// The sender's role.
        role: PeerRole,
    },
    /// The sender takes part in this blob's swarm and has these pieces. Both sides say it; the
    /// first to speak is answered with `Subscribe`, or with `Unsubscribe` when the other side
    /// neither wants nor holds the blob.
    Subscribe {
        /// The blob.
        digest: Digest,
        /// One swarm per blob and piece length.
        piece_length: PieceLength,
        /// What the sender has.
        have: Bitfield,
    },
    /// The sender left the blob's swarm, or was never in it.
    Unsubscribe {
        /// The blob.
        digest: Digest,
    },
    /// The sender has these pieces now.
    Have {
        /// The blob.
        digest: Digest,
        /// Pieces, at most [`Message::MAX_HAVES`].
        pieces: Vec<u32>,
    },
    /// The sender wants this piece.
    Request {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// The sender no longer wants this piece.
    Cancel {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// The sender will not serve this piece (now): ask somebody else.
    Refuse {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// The piece itself. The bytes travel beside the message, on a stream of their own, and never
    /// through a machine.
    Piece {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// How many bytes follow, at most [`PieceLength::MAX`].
        len: u32,
    },
}

impl Message {
    /// The most pieces in one `Have`.
    pub const MAX_HAVES: usize = 1024;

    /// The blob that the message is about, if any.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Hello { .. } => None,
            Self::Subscribe { digest, .. }
            | Self::Unsubscribe { digest }
            | Self::Have { digest, .. }
            | Self::Request { digest, .. }
            | Self::Cancel { digest, .. }
            | Self::Refuse { digest, .. }
            | Self::Piece { digest, .. } => Some(*digest),
        }
    }
}
