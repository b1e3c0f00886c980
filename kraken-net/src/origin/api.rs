//! What an origin does for others.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use kraken_proto::{Digest, MetaInfo, Namespace, PeerInfo};

use super::garbage::{GarbageAsked, GarbagePage};
use super::holdings::{Holdings, HoldingsAsked};
use crate::http::{ApiError, ByteStream};

/// Which copies of a blob count when it is asked whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// Whole ones on the disk of the origin that is asked.
    Here,
    /// Whole ones there or in its backend.
    Whole,
    /// Also one that is on its way in, and may yet break off: it can be read while it comes.
    Coming,
}

/// The calls behind an origin's HTTP face ([`super::router`]). Every call may also fail with
/// [`ApiError::Unavailable`] or [`ApiError::Internal`].
pub trait OriginApi: Send + Sync + 'static {
    /// This origin as a peer of swarms.
    fn peer(&self) -> PeerInfo;

    /// The base URLs of the healthy owners of a blob, in ring order.
    ///
    /// # Errors
    /// No owner is known.
    fn locations(
        &self,
        digest: Digest,
    ) -> impl Future<Output = Result<Vec<String>, ApiError>> + Send;

    /// A blob's length in bytes, or `None` when there is none of these copies.
    ///
    /// # Errors
    /// The backend cannot be asked.
    fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
        copies: Copies,
    ) -> impl Future<Output = Result<Option<u64>, ApiError>> + Send;

    /// A blob's metainfo; fetches the blob from the backend when it must.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when neither disk nor backend has it.
    fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<MetaInfo, ApiError>> + Send;

    /// As much of a blob's metainfo as is known; begins to fetch the blob from the backend when it
    /// must. With `after`, waits for a while until more states than so many are known.
    ///
    /// # Errors
    /// As [`OriginApi::metainfo`]; [`ApiError::Damaged`] when the bytes turned out wrong.
    fn open_metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        after: Option<u32>,
    ) -> impl Future<Output = Result<MetaInfo, ApiError>> + Send {
        let _ = after;
        self.metainfo(namespace, digest)
    }

    /// A blob's bytes, or those in `range`, which lies within the blob; streams while it fetches.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when neither disk nor backend has it.
    fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> impl Future<Output = Result<BlobRead, ApiError>> + Send;

    /// Begins to fetch a blob from the backend, unless it is there.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when the backend does not have it.
    fn prefetch(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<Prefetch, ApiError>> + Send;

    /// Whether an upload may begin here: not the copy of a blob that another origin has taken.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when too few owners have been there for a while, so that no commit could be
    /// acknowledged; [`ApiError::Full`].
    fn check_uploads(&self) -> Result<(), ApiError> {
        Ok(())
    }

    /// Begins an upload and returns its id: at most 128 letters, digits, hyphens and underscores.
    ///
    /// # Errors
    /// There is no room for it.
    fn upload_start(&self) -> impl Future<Output = Result<String, ApiError>> + Send;

    /// Begins an upload of which digest and length are known, and returns its id as
    /// [`OriginApi::upload_start`] does. The blob can be read and followed while its bytes come, as
    /// one that comes from the backend; an implementation may also take it in as any other bytes.
    ///
    /// # Errors
    /// There is no room for it.
    fn upload_start_known(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
    ) -> impl Future<Output = Result<String, ApiError>> + Send {
        let _ = (namespace, digest, length);
        self.upload_start()
    }

    /// How many bytes of an upload are here.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] for an id that is not known (any more).
    fn upload_len(&self, id: &str) -> impl Future<Output = Result<u64, ApiError>> + Send;

    /// Appends the bytes that belong at `offset`, and returns the new length. Bodies are cut into
    /// pieces of 256 KiB to 1 MiB, the last one of any size; an empty one only checks the offset.
    ///
    /// # Errors
    /// [`ApiError::RangeInvalid`] with the true length when `offset` is not the end.
    fn upload_append(
        &self,
        id: &str,
        offset: u64,
        bytes: Bytes,
    ) -> impl Future<Output = Result<u64, ApiError>> + Send;

    /// Makes a blob of an upload: verified, durable on a quorum of owners, its write-back queued.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] when the bytes do not have that digest; then nothing is kept.
    fn upload_commit(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<MetaInfo, ApiError>> + Send;

    /// Makes a blob of a copy that another origin sent: verified and durable here. It is written
    /// back only after `write_back_delay`, should the sender not have done it.
    ///
    /// # Errors
    /// As [`OriginApi::upload_commit`].
    fn upload_commit_replica(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
        write_back_delay: Duration,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Throws an upload away.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] for an id that is not known.
    fn upload_abort(&self, id: &str) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Deletes a blob from this origin's disk.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] while it is not written back; [`ApiError::NotFound`].
    fn remove(&self, digest: Digest) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Whether it hands its share over and leaves.
    fn is_leaving(&self) -> bool {
        false
    }

    /// What it holds of another origin's share.
    ///
    /// # Errors
    /// Its store or its queue cannot be read.
    fn holdings(
        &self,
        asked: HoldingsAsked,
    ) -> impl Future<Output = Result<Holdings, ApiError>> + Send;

    /// The digest that a tag of the namespace's repository points to in the registry that its blobs come
    /// from; `None` when there is no such tag.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the blobs come from no registry; that cannot be asked.
    fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> impl Future<Output = Result<Option<Digest>, ApiError>> + Send {
        let _ = (namespace, tag);
        let what = "its blobs come from no registry";
        std::future::ready(Err(ApiError::Conflict(what.into())))
    }

    /// Does a step of a collector of garbage, and says with which blobs.
    ///
    /// # Errors
    /// Its store, its queue or the backend cannot be asked.
    fn garbage(
        &self,
        asked: GarbageAsked,
    ) -> impl Future<Output = Result<Vec<Digest>, ApiError>> + Send;

    /// Up to [`MOST`](super::MOST) blobs that it or a storage holds whole, in the order of their digests.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] from a storage that cannot tell; the store or the backend cannot be asked.
    fn garbage_page(
        &self,
        asked: GarbagePage,
    ) -> impl Future<Output = Result<Vec<Digest>, ApiError>> + Send;

    /// The numbers of the storages that keep these namespaces' blobs, none where blobs are only read.
    fn places(&self, namespaces: &[Namespace]) -> Vec<Option<usize>>;

    /// Which of these blobs it holds whole, or had and let go, as they are in the backend.
    ///
    /// # Errors
    /// Its store cannot be read.
    fn holds(
        &self,
        digests: Vec<Digest>,
    ) -> impl Future<Output = Result<Vec<Digest>, ApiError>> + Send;

    /// Lets this origin write a blob that it holds to the namespace's backend after `delay`, should
    /// nobody have done so.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when it does not hold the blob; its queue cannot be written.
    fn write_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
        delay: Duration,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Whether this origin tries to write the blob to the namespace's backend, or has tried in vain.
    ///
    /// # Errors
    /// Its queue cannot be read.
    fn writes_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<bool, ApiError>> + Send;
}

/// A blob, or a part of it, on its way.
pub struct BlobRead {
    /// The length of the whole blob in bytes, also when a range was asked for.
    pub length: u64,
    /// The bytes that were asked for. A stream that ends early has failed.
    pub body: ByteStream,
}

impl fmt::Debug for BlobRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobRead")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// What a prefetch found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefetch {
    /// The blob is here.
    Present,
    /// The blob is being fetched.
    Started,
}
