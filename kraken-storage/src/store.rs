//! The piece store: what a host keeps of each blob.

use std::collections::HashSet;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kraken_proto::cache::ledger::{Ceiling, Kept, Lifetimes};
use kraken_proto::{Bitfield, Digest, MetaInfo};

/// What a store holds of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobStatus {
    /// Nothing.
    Absent,
    /// Some pieces, each verified.
    Partial {
        /// The blob.
        meta: MetaInfo,
        /// The pieces that are there.
        have: Bitfield,
    },
    /// All of it, under its name.
    Sealed {
        /// The blob.
        meta: MetaInfo,
    },
}

/// What needs room in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need<'a> {
    /// So many bytes.
    pub bytes: u64,
    /// For this upload; for a new blob when it is `None`.
    pub upload: Option<&'a str>,
}

impl Need<'_> {
    /// A new blob of so many bytes.
    pub const fn blob(bytes: u64) -> Self {
        Self {
            bytes,
            upload: None,
        }
    }
}

/// How much of a store may go without need. A store has to know each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// What is used above the ceiling's high mark, down to its low one.
    Marks,
    /// What is used above so many hundredths of the ceiling.
    Percent(u8),
    /// What is over.
    Lifetimes {
        /// How long blobs stay.
        lifetimes: Lifetimes,
        /// What time it is, in milliseconds since 1970.
        now_ms: u64,
    },
}

/// What a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Bytes of blobs and uploads.
    pub bytes: u64,
    /// How many blobs, whole and partial.
    pub blobs: u64,
    /// What it may take.
    pub ceiling: Option<Ceiling>,
}

/// What [`PieceStore::verify`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is no such blob, or it is not whole.
    Absent,
    /// Its bytes are right.
    Right,
    /// Its bytes were wrong: it has been set aside.
    Damaged,
}

/// Where an agent keeps blobs. Embedders may bring their own; `testkit` holds the suite that every
/// implementation passes.
///
/// The caller has verified every piece before it writes it: a store keeps what it is given and
/// gives back exactly that. A blob is *partial* from [`PieceStore::open`] until
/// [`PieceStore::seal`], which makes it durable.
pub trait PieceStore: Send + Sync + 'static {
    /// What is there of the blob.
    ///
    /// # Errors
    /// The store cannot be read.
    fn status(&self, digest: Digest)
    -> impl Future<Output = Result<BlobStatus, StoreError>> + Send;

    /// Makes room for a blob, or finds what is left of an earlier attempt, and says which pieces
    /// are there (all of them when the blob is sealed). After a crash each piece in the answer has
    /// been verified again.
    ///
    /// While the metainfo is open, this is called again whenever more of it is known. A metainfo
    /// that contradicts the one from before takes its place; the pieces that do not fit it are gone.
    ///
    /// # Errors
    /// No room, or the store cannot be written.
    fn open(&self, meta: MetaInfo) -> impl Future<Output = Result<Bitfield, StoreError>> + Send;

    /// Keeps one verified piece. Writing a piece that is there already changes nothing.
    ///
    /// # Errors
    /// The blob is not open, or the store cannot be written; then the piece is not there.
    fn write(
        &self,
        digest: Digest,
        piece: u32,
        data: Bytes,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads `len` bytes at `offset`; they must lie within pieces that are there. Shorter only
    /// where the blob ends.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a piece in the range is not there.
    fn read(
        &self,
        digest: Digest,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + Send;

    /// The file that a sealed blob is in, whole and from its first byte, for those who can do better
    /// with a file than with bytes. None when the blob is not sealed, and from a store that keeps it
    /// in another way. The file's bytes do not change, even when the blob is removed.
    ///
    /// # Errors
    /// The store cannot be read.
    fn file(
        &self,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<Arc<File>>, StoreError>> + Send {
        let _ = digest;
        std::future::ready(Ok(None))
    }

    /// The next sealed blob whose bytes turned out to be wrong: the store no longer has it. For the
    /// one who owns the store, to get it anew. A store that does not look waits for ever.
    fn damaged(&self) -> impl Future<Output = Digest> + Send {
        std::future::pending()
    }

    /// Every piece is there: makes the blob durable under its name.
    ///
    /// # Errors
    /// A piece or a part of the metainfo is missing, or the store cannot be written; then the blob
    /// stays partial.
    fn seal(&self, digest: Digest) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets the blob, partial or sealed. Not an error when it is absent.
    ///
    /// # Errors
    /// The store cannot be written.
    fn remove(&self, digest: Digest) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets what is there of a blob that is not sealed; a sealed one stays. A store whose blobs
    /// are sealed by several at once brings its own, which looks and removes in one step.
    ///
    /// # Errors
    /// The store cannot be written.
    fn discard(&self, digest: Digest) -> impl Future<Output = Result<(), StoreError>> + Send {
        async move {
            match self.status(digest).await? {
                BlobStatus::Partial { .. } => self.remove(digest).await,
                BlobStatus::Absent | BlobStatus::Sealed { .. } => Ok(()),
            }
        }
    }

    /// What is to be removed after [`StoreError::Full`] so that what needs room gets it: the blobs that
    /// go first in the store's order, without those that are pinned or `spared`; at least one. A store
    /// without a ceiling of its own knows of none.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there would be no room then either.
    fn victims(
        &self,
        need: Need<'_>,
        spared: &HashSet<Digest>,
    ) -> impl Future<Output = Result<Vec<Digest>, StoreError>> + Send {
        let _ = (need, spared);
        std::future::ready(Err(StoreError::Full))
    }

    /// What may be removed although nothing needs its room, without what is pinned or `spared`. None
    /// in a store without a ceiling.
    ///
    /// # Errors
    /// The store cannot be read.
    fn surplus(
        &self,
        goal: Goal,
        spared: &HashSet<Digest>,
    ) -> impl Future<Output = Result<Vec<Digest>, StoreError>> + Send {
        let _ = (goal, spared);
        std::future::ready(Ok(Vec::new()))
    }

    /// What the store takes and may take; `None` when it does not count.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Up to `max` blobs, whole and partial, in the order of their digests, from the one after `after`
    /// on. None in a store that does not count.
    fn page(&self, after: Option<Digest>, max: usize) -> Vec<Kept> {
        let _ = (after, max);
        Vec::new()
    }

    /// A blob, whole or partial, as the store counts it.
    fn kept(&self, digest: Digest) -> Option<Kept> {
        let _ = digest;
        None
    }

    /// A blob is used, although nothing of it is read here.
    fn touch(&self, digest: Digest) {
        let _ = digest;
    }

    /// Makes the times of the last uses survive the process; for the owner to call now and then.
    ///
    /// # Errors
    /// The store cannot be written.
    fn note_uses(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        std::future::ready(Ok(()))
    }

    /// From now on, durably, the blob stays whatever needs its room or how old it is, or does so no
    /// more; also one that is not here yet. Only [`PieceStore::remove`] removes it then.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`], or the store cannot be written.
    fn pin(
        &self,
        digest: Digest,
        is_pinned: bool,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (digest, is_pinned);
        std::future::ready(Err(StoreError::Unsupported("pins")))
    }

    /// Reads a sealed blob back, and sets it aside when it is not itself.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`], or the store cannot be read.
    fn verify(&self, digest: Digest) -> impl Future<Output = Result<Verdict, StoreError>> + Send {
        let _ = digest;
        std::future::ready(Err(StoreError::Unsupported("verification")))
    }

    /// Where a sealed blob's file lies, for links to it. `None` when the blob is not sealed, and from a
    /// store that keeps it in another way.
    ///
    /// # Errors
    /// The store cannot be read.
    fn path(
        &self,
        digest: Digest,
    ) -> impl Future<Output = Result<Option<PathBuf>, StoreError>> + Send {
        let _ = digest;
        std::future::ready(Ok(None))
    }

    /// The sealed blobs, in order of their digests.
    ///
    /// # Errors
    /// The store cannot be read.
    fn list(&self) -> impl Future<Output = Result<Vec<Digest>, StoreError>> + Send;
}

/// A store that also takes blobs whose name is known only at their end: what an origin needs.
///
/// An upload is a file that only grows. Its SHA-256, and with it the chain's states, are computed
/// as the bytes arrive, so that a commit reads nothing back. An upload survives a restart: its
/// hash is then computed anew from the bytes that are there, once, when it is next used.
pub trait UploadStore: PieceStore {
    /// Starts an upload and names it: at most 128 letters, digits, hyphens and underscores, as the name
    /// becomes part of a URL.
    ///
    /// # Errors
    /// The store cannot be written.
    fn upload_start(&self) -> impl Future<Output = Result<String, StoreError>> + Send;

    /// How many bytes the upload has.
    ///
    /// # Errors
    /// [`StoreError::UploadUnknown`].
    fn upload_len(&self, upload: &str) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Adds `data` at `offset`, which must be the upload's length, and gives the new length.
    ///
    /// # Errors
    /// [`StoreError::UploadOffset`] when `offset` is elsewhere; nothing is written then.
    fn upload_append(
        &self,
        upload: &str,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Ends the upload: when its bytes have the digest `expected`, the blob is sealed and durable
    /// (also when it was there before); otherwise the upload is gone and nothing is kept.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`], [`StoreError::UploadUnknown`], or the store cannot be
    /// written (then the upload is still there).
    fn upload_commit(
        &self,
        upload: &str,
        expected: Digest,
    ) -> impl Future<Output = Result<MetaInfo, StoreError>> + Send;

    /// Forgets the upload. Not an error when it is unknown.
    ///
    /// # Errors
    /// The store cannot be written.
    fn upload_abort(&self, upload: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Why a store refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The blob is neither partial nor sealed here.
    #[error("blob {0} is not in the store")]
    Absent(Digest),
    /// A piece that was to be read or sealed is not there.
    #[error("piece {piece} of blob {digest} is not in the store")]
    Missing {
        /// The blob.
        digest: Digest,
        /// The first piece that is missing.
        piece: u32,
    },
    /// A blob was to be sealed whose metainfo is still open.
    #[error("blob {0} cannot be sealed before its metainfo is whole")]
    Open(Digest),
    /// A piece index or length that the blob does not have.
    #[error("a write of {len} bytes does not fit piece {piece} of blob {digest}")]
    Bounds {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: u32,
        /// The length of the data.
        len: usize,
    },
    /// The volume is full, or the store's own ceiling reached.
    #[error("no space left in the store")]
    Full,
    /// No such upload (or it has ended).
    #[error("upload {0} is not known")]
    UploadUnknown(String),
    /// The upload's length is another.
    #[error("the upload has {len} bytes, data came for offset {offset}")]
    UploadOffset {
        /// What the upload has.
        len: u64,
        /// Where the data was to go.
        offset: u64,
    },
    /// The upload's bytes have another digest.
    #[error("the bytes have digest {found}, not {expected}")]
    DigestMismatch {
        /// What the client promised.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The bytes on disk are not what was written.
    #[error("blob {digest} is damaged in the store: {what}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// What is wrong.
        what: String,
    },
    /// This kind of store does not have that.
    #[error("this store has no {0}")]
    Unsupported(&'static str),
    /// The operating system refused.
    #[error("the store cannot {doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's own error.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::Io { .. })
    }
}

/// Checks that `len` bytes are what `piece` holds.
pub(crate) fn check_bounds(meta: &MetaInfo, piece: u32, len: usize) -> Result<(), StoreError> {
    if piece < meta.piece_count() && meta.piece_size(piece) as usize == len {
        return Ok(());
    }
    Err(StoreError::Bounds {
        digest: meta.digest(),
        piece,
        len,
    })
}

/// The first piece under the bytes `range` that is not there.
pub(crate) fn first_missing(meta: &MetaInfo, have: &Bitfield, range: Range<u64>) -> Option<u32> {
    meta.pieces_of(range).find(|piece| !have.has(*piece))
}
