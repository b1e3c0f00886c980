//! What the driver is told.

use std::ops::Range;
use std::sync::Arc;

use kraken_net::Frame;
use kraken_proto::history::{Neighbour, Transfer};
use kraken_proto::tracker::report::BlobReport;
use kraken_proto::{
    Bitfield, ConnId, Digest, Extent, Input, Message, MetaInfo, Namespace, ReaderId, SwarmStats,
};
use kraken_storage::StoreError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::Span;

use super::Progress;
use crate::agent::hearsay::Told;
use crate::dynamic::DynConn;
use crate::error::ReadError;

/// What happened, from a link, a task or the handle.
pub(crate) enum Note {
    /// For the scheduler as it is.
    Input(Input),
    /// A message, and perhaps a piece.
    Frame {
        conn: ConnId,
        frame: Frame,
        room: OwnedSemaphorePermit,
    },
    /// A connection stands.
    Connected {
        conn: Arc<dyn DynConn>,
        dialled: bool,
    },
    /// A blob is to be fetched or seeded; the answer follows its progress.
    Open {
        told: Told,
        namespace: Namespace,
        have: Bitfield,
        /// Whether its pieces come from elsewhere, by `Ingested`, and none from peers.
        ingest: bool,
        /// How much of it is fetched.
        extent: Extent,
        /// The span of the request that it is for, if that belongs to a trace.
        request: Span,
        reply: oneshot::Sender<watch::Receiver<Progress>>,
    },
    /// More is known of an open metainfo, and the store has it.
    Continued { meta: MetaInfo, is_hearsay: bool },
    /// Peers are to be asked for the metainfo of a blob.
    Seek {
        namespace: Namespace,
        digest: Digest,
        reply: oneshot::Sender<Option<Told>>,
    },
    /// A part of a metainfo, for a peer that asked for it.
    Tell { conn: ConnId, message: Message },
    /// The discovery says the same of a metainfo as a peer did.
    Confirmed { meta: MetaInfo },
    /// The discovery does not tell now whether what a peer said of a metainfo is right.
    Unconfirmed { digest: Digest },
    /// A metainfo is not what the discovery says, or a piece did not fit one that it says nothing of.
    Contradicted { meta: MetaInfo, is_sure: bool },
    /// A piece came from elsewhere and is in the store, with the metainfo that proves it.
    #[cfg_attr(
        not(all(feature = "http", feature = "fs")),
        expect(dead_code, reason = "only origins take blobs in")
    )]
    Ingested { meta: MetaInfo, piece: u32 },
    /// A blob's metainfo will not become whole.
    Failed { digest: Digest, error: ReadError },
    /// The store was asked about a blob that a peer wants.
    LookedUp {
        digest: Digest,
        meta: Option<MetaInfo>,
    },
    /// The last piece is there, and the blob is durable under its name, or not.
    Sealed {
        digest: Digest,
        result: Result<(), StoreError>,
    },
    /// A piece could not be written.
    WriteFailed {
        digest: Digest,
        piece: u32,
        error: StoreError,
    },
    /// A reader begins with these bytes.
    Read {
        digest: Digest,
        reader: ReaderId,
        bytes: Range<u64>,
    },
    /// A reader moved.
    Want {
        digest: Digest,
        reader: ReaderId,
        pieces: Range<u32>,
    },
    /// Leave the swarm of a blob that is not whole yet.
    Pause {
        digest: Digest,
        reply: oneshot::Sender<()>,
    },
    /// Leave the swarm and forget the blob.
    Forget {
        digest: Digest,
        reply: oneshot::Sender<()>,
    },
    /// Leave the swarm and forget the blob, unless somebody reads it: then the answer is false.
    LeaveUnread {
        digest: Digest,
        reply: oneshot::Sender<bool>,
    },
    /// Where a blob's bytes came from.
    Stats {
        digest: Digest,
        reply: oneshot::Sender<Option<SwarmStats>>,
    },
    /// What moved since the last report, which did not arrive if it is `again`.
    Report {
        again: bool,
        reply: oneshot::Sender<Vec<BlobReport>>,
    },
    /// What is remembered of how a blob came.
    Transfers {
        digest: Digest,
        reply: oneshot::Sender<Vec<Transfer>>,
    },
    /// What comes at this moment, and who is connected.
    UnderWay {
        reply: oneshot::Sender<(Vec<Transfer>, Vec<Neighbour>)>,
    },
    /// This host ends soon: the answer is how many pieces are left to hand over.
    Leave { reply: oneshot::Sender<usize> },
    /// End: answered when the tracker is being told and the peers that were met are kept.
    Stop { reply: oneshot::Sender<()> },
}

/// What the driver answers to a note; nothing when it has ended.
pub(crate) async fn asked<T: Default>(
    notes: &mpsc::Sender<Note>,
    note: impl FnOnce(oneshot::Sender<T>) -> Note,
) -> T {
    let (reply, answer) = oneshot::channel();
    match notes.send(note(reply)).await {
        Ok(()) => answer.await.unwrap_or_default(),
        Err(_) => T::default(),
    }
}
