//! The messages between two peers.

use std::net::SocketAddr;

use crate::blob::bitfield::Bitfield;
use crate::blob::digest::Digest;
#[cfg(doc)]
use crate::blob::metainfo::MetaInfo;
use crate::blob::metainfo::PieceLength;
use crate::peer::{PeerInfo, PeerRole};
use crate::zone::Zone;

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The zone it is in, where known.
    pub zone: Option<Zone>,
}

/// What one peer says to another over their one connection. Whoever takes part has to answer each, so that one more
/// breaks those that do not know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first message of each side: what it is there for.
    Hello {
        /// The sender's role.
        role: PeerRole,
        /// How others reach the sender, so that its neighbours can pass it on to theirs.
        contact: Option<Contact>,
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
        /// The sender fetches only parts of the blob: it asks for what it wants, and is offered
        /// nothing. Said again when that changes.
        is_partial: bool,
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
    /// The sender, an origin or an agent that goes, suggests to ask it for this piece, because nobody that it knows has
    /// it. Answered with `Request`, or with `Refuse` when the piece comes from elsewhere.
    Offer {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// Who else takes part in this blob's swarm? Answered with `Peers`. Hosts ask one another when
    /// no tracker answers.
    AskPeers {
        /// The blob.
        digest: Digest,
    },
    /// These agents take part in the blob's swarm; none when the sender does not know.
    Peers {
        /// The blob.
        digest: Digest,
        /// At most [`Message::MAX_PEERS`].
        peers: Vec<PeerInfo>,
    },
    /// What does this blob consist of? Answered with `MetaInfo`. Hosts ask one another when nobody
    /// else tells.
    AskMetaInfo {
        /// The blob.
        digest: Digest,
        /// From which byte of the encoding on.
        offset: u32,
    },
    /// A part of a blob's encoded metainfo, as much of it as the sender knows.
    MetaInfo {
        /// The blob.
        digest: Digest,
        /// The length of the whole encoding, at most [`MetaInfo::MAX_ENCODED`]; zero when the sender
        /// has none.
        total: u32,
        /// Where this part begins.
        offset: u32,
        /// At most [`Message::MAX_PART`] bytes, and none past the end.
        part: Vec<u8>,
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

    /// The most peers in one `Peers`.
    pub const MAX_PEERS: usize = 16;

    /// The most bytes in one `MetaInfo`: it is to fit a frame.
    pub const MAX_PART: usize = 8 << 10;

    /// The part of an encoded metainfo that begins at `offset`, as an answer to `AskMetaInfo`; an
    /// empty `encoding` says that there is none.
    ///
    /// # Panics
    /// When the encoding is longer than 4 GiB: none is.
    pub fn metainfo_part(digest: Digest, encoding: &[u8], offset: u32) -> Self {
        let from = encoding.len().min(offset as usize);
        let number = |bytes: usize| u32::try_from(bytes).expect("at most MAX_ENCODED");
        let end = encoding.len().min(from + Self::MAX_PART);
        Self::MetaInfo {
            digest,
            total: number(encoding.len()),
            offset: number(from),
            part: encoding[from..end].to_vec(),
        }
    }

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
            | Self::Offer { digest, .. }
            | Self::AskPeers { digest }
            | Self::Peers { digest, .. }
            | Self::AskMetaInfo { digest, .. }
            | Self::MetaInfo { digest, .. }
            | Self::Piece { digest, .. } => Some(*digest),
        }
    }
}
