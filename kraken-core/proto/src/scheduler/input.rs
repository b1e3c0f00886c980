//! What happens to a host.

use std::ops::Range;

use crate::blob::bitfield::Bitfield;
use crate::blob::digest::Digest;
use crate::blob::metainfo::{MetaInfo, PieceLength};
use crate::blob::namespace::Namespace;
use crate::peer::{PeerId, PeerInfo};
pub use crate::picker::window::ReaderId;
use crate::tracker::AnnounceReply;
use crate::wire::message::Message;

/// Names one connection; the shell chooses the numbers and never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What the scheduler must know of a blob: its metainfo without the proofs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSpec {
    /// What it belongs to.
    pub namespace: Namespace,
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// The distance between piece boundaries.
    pub piece_length: PieceLength,
}

impl BlobSpec {
    /// The part of `meta` that the scheduler needs.
    pub fn of(meta: &MetaInfo, namespace: Namespace) -> Self {
        Self {
            namespace,
            digest: meta.digest(),
            length: meta.length(),
            piece_length: meta.piece_length(),
        }
    }

    /// The number of pieces.
    pub fn piece_count(&self) -> u32 {
        u32::try_from(self.piece_length.pieces(self.length)).expect("checked by the metainfo")
    }

    /// The pieces that cover the bytes `range`; empty when it lies past the end.
    pub fn pieces_of(&self, range: Range<u64>) -> Range<u32> {
        self.piece_length.pieces_of(range, self.length)
    }

    /// The length of `piece` in bytes.
    pub fn piece_size(&self, piece: u32) -> u64 {
        let start = u64::from(piece) * self.piece_length.bytes();
        self.length
            .saturating_sub(start)
            .min(self.piece_length.bytes())
    }
}

/// How much of a blob is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// What its readers want, and some of what lies ahead of those that read forward.
    Parts,
}

/// What happens to a host. A shell has to tell all of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Take part in the swarm of a blob, with these pieces; full means to seed it.
    Open {
        /// The blob.
        spec: BlobSpec,
        /// The pieces in the store.
        have: Bitfield,
    },
    /// The metainfo of a blob is open: its first pieces can be proved, and the others not yet.
    /// Comes right after `Open`, and again whenever there are more. Without it, all can be.
    Provable {
        /// The blob.
        digest: Digest,
        /// How many pieces, from the first on; an origin that takes the blob in from elsewhere
        /// says 0, and asks no peer for any.
        pieces: u32,
    },
    /// How much of a blob is fetched: all of it unless this says otherwise, right after `Open` or at
    /// any time.
    Fetch {
        /// The blob.
        digest: Digest,
        /// How much.
        extent: Extent,
    },
    /// A piece is in the store that came from no peer: an origin takes the blob in.
    PieceIngested {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// Leave a blob's swarm.
    Forget {
        /// The blob.
        digest: Digest,
    },
    /// Ask peers for the metainfo of a blob, for it cannot be learnt elsewhere; answered with
    /// `Sought`. Said again within 15 seconds as long as somebody waits for it.
    Seek {
        /// What it belongs to.
        namespace: Namespace,
        /// The blob.
        digest: Digest,
    },
    /// What `Sought` told of a blob's metainfo is of no use: the next search begins anew.
    Unsought {
        /// The blob.
        digest: Digest,
    },
    /// Peers that were met in an earlier life of this host.
    Known {
        /// Who; the first ones are forgotten when they are too many.
        peers: Vec<PeerInfo>,
    },
    /// A reader wants these pieces next, in order; an empty range ends it.
    Want {
        /// The blob.
        digest: Digest,
        /// Which reader.
        reader: ReaderId,
        /// The pieces from the one it waits for.
        pieces: Range<u32>,
    },
    /// A reader begins: it wants the pieces of these bytes, in order. When it is done with the first
    /// of them, it says what it wants next by `Want`.
    Read {
        /// The blob.
        digest: Digest,
        /// Which reader.
        reader: ReaderId,
        /// The bytes.
        bytes: Range<u64>,
    },
    /// A connection stands.
    ConnUp {
        /// Its name.
        conn: ConnId,
        /// Who is on the other side, proved by the handshake.
        peer: PeerId,
        /// Whether this host dialled.
        dialled: bool,
    },
    /// A connection is gone, whoever ended it.
    ConnDown {
        /// Its name.
        conn: ConnId,
    },
    /// A dial came to nothing.
    DialFailed {
        /// Who was dialled.
        peer: PeerId,
    },
    /// A message arrived; of a piece, the shell holds the bytes until the actions of this input
    /// are drained: `Store` takes them, otherwise they are dropped.
    Message {
        /// From where.
        conn: ConnId,
        /// What it says.
        message: Message,
    },
    /// The peer broke the protocol in a way that the decoder noticed.
    Violation {
        /// From where.
        conn: ConnId,
    },
    /// A piece was verified and written.
    PieceStored {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Who sent it.
        conn: ConnId,
    },
    /// A piece did not verify: whoever sent it lies.
    PieceRejected {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// Who sent it.
        conn: ConnId,
    },
    /// A piece could not be written, through no fault of its sender.
    PieceLost {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
    },
    /// A piece has been handed to the network, or could not be read.
    PieceSent {
        /// The blob.
        digest: Digest,
        /// Which piece.
        piece: u32,
        /// To whom.
        conn: ConnId,
        /// Whether it went out.
        sent: bool,
    },
    /// The tracker answered; `digests` are the blobs that were announced.
    Announced {
        /// What was announced.
        digests: Vec<Digest>,
        /// The answer.
        reply: AnnounceReply,
    },
    /// No tracker could be asked.
    AnnounceFailed {
        /// What was to be announced.
        digests: Vec<Digest>,
    },
    /// The answer to `Lookup`: the store holds the blob whole, or not.
    Found {
        /// The blob.
        digest: Digest,
        /// What it is, when it is there.
        spec: Option<BlobSpec>,
    },
    /// This host stops soon: hand over what others lack and nobody else has, those pieces first that
    /// the fewest have, and be handed out no more for what is whole here. What is being fetched goes on.
    Leave,
    /// Stop: no more dials, say goodbye.
    Shutdown,
}
