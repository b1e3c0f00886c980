//! What a host does.

use crate::blob::digest::Digest;
use crate::blob::metainfo::MetaInfo;
use crate::peer::{PeerId, PeerInfo, PeerRole};
use crate::scheduler::input::ConnId;
use crate::tracker::AnnounceRequest;
use crate::wire::message::Message;

/// What the shell is to do. A shell has to do all of these, so that one more breaks those that do not know it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Connect to a peer; answered with `ConnUp` or `DialFailed`.
    Dial(PeerInfo),
    /// Send a message.
    Send {
        /// To whom.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Read a piece from the store and send it; answered with `PieceSent`.
    SendPiece {
        /// To whom.
        conn: ConnId,
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Before all pieces for which this is not set: the peer has hardly anything yet, and has
        /// nothing to give to others until it has.
        first: bool,
    },
    /// The peer no longer wants a piece: do not send it if that has not begun.
    CancelPiece {
        /// To whom.
        conn: ConnId,
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// Verify and write the piece that came with this input; answered with `PieceStored`,
    /// `PieceRejected` or `PieceLost`.
    Store {
        /// From whom.
        conn: ConnId,
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// Close a connection; answered with `ConnDown`.
    Close {
        /// Which.
        conn: ConnId,
        /// Why, for the other side and the log.
        reason: CloseReason,
    },
    /// Tell the tracker; answered with `Announced` or `AnnounceFailed`.
    Announce(AnnounceRequest),
    /// Does the store hold this blob whole? Answered with `Found`.
    Lookup {
        /// The blob.
        digest: Digest,
    },
    /// Send a peer the part of a blob's encoded metainfo that begins at `offset`, as
    /// [`Message::MetaInfo`]; one with a total of 0 when there is none here.
    TellMetaInfo {
        /// To whom.
        conn: ConnId,
        /// The blob.
        digest: Digest,
        /// Where the part begins.
        offset: u32,
    },
    /// What became of `Seek`: what a peer said the metainfo is, and who; nothing when nobody knew
    /// it. Its last piece alone proves a metainfo, so that one from a peer may turn out wrong.
    Sought {
        /// The blob.
        digest: Digest,
        /// The metainfo, and who told it.
        found: Option<(MetaInfo, PeerId)>,
    },
    /// Something worth telling: for logs, counters, readers and assertions.
    Event(Event),
}

/// Why a host closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both sides dialled at once, and the other connection stays.
    Duplicate,
    /// No room for more connections.
    Full,
    /// The peer is kept away for what it did before.
    Banned,
    /// The peer sent bytes that are not the piece.
    WrongBytes,
    /// The peer broke the protocol.
    Protocol,
    /// The peer owes pieces and is silent.
    Silent,
    /// Nothing in common any more.
    Idle,
    /// This host stops.
    Shutdown,
}

impl CloseReason {
    /// A word for the other side and for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Full => "full",
            Self::Banned => "banned",
            Self::WrongBytes => "wrong-bytes",
            Self::Protocol => "protocol",
            Self::Silent => "silent",
            Self::Idle => "idle",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Something worth telling. One stream, many readers: traces, metrics, the simulator's checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A piece is verified and in the store.
    PieceDone {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// How many bytes.
        bytes: u64,
        /// Who sent it.
        from: PeerId,
        /// What that peer is there for.
        role: PeerRole,
        /// Whether it was fetched ahead of a reader, of a blob of which only parts are fetched.
        is_ahead: bool,
    },
    /// Every piece of the blob is in the store.
    BlobDone {
        /// The blob.
        digest: Digest,
    },
    /// A piece was sent.
    PieceSent {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// How many bytes.
        bytes: u64,
        /// To whom.
        to: PeerId,
    },
    /// A peer is kept away.
    PeerBanned {
        /// Who.
        peer: PeerId,
        /// Why.
        reason: CloseReason,
    },
    /// A peer owes pieces and is silent: they are asked of others too.
    PeerStalled {
        /// The blob.
        digest: Digest,
        /// Who.
        peer: PeerId,
    },
}
