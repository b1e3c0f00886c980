//! No storage at all.

use std::ops::Range;

use futures::{StreamExt as _, TryStreamExt as _};
use kraken_proto::{Digest, Namespace};

use super::{Backend, BackendError, ByteStream};

/// Takes every blob and keeps none: the origins' disks are the storage, which nothing leaves for want of room;
/// or, as one of several backends, for namespaces whose blobs may go when there is no room.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoopBackend;

impl Backend for NoopBackend {
    async fn stat(&self, _: &Namespace, _: Digest) -> Result<Option<u64>, BackendError> {
        Ok(None)
    }

    async fn read(
        &self,
        _: &Namespace,
        digest: Digest,
        _: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        Err(BackendError::NotFound(digest))
    }

    /// Reads the bytes to their end, so that what is wrong with them is seen here as anywhere.
    async fn write(
        &self,
        _: &Namespace,
        digest: Digest,
        expected: u64,
        bytes: ByteStream,
    ) -> Result<(), BackendError> {
        let count = async |sum: u64, chunk: bytes::Bytes| Ok(sum + chunk.len() as u64);
        let found = bytes.boxed().try_fold(0, count).await?;
        if found == expected {
            return Ok(());
        }
        Err(BackendError::Length {
            digest,
            expected,
            found,
        })
    }

    fn keeps(&self) -> bool {
        false
    }

    async fn delete(&self, _: &Namespace, _: Digest) -> Result<(), BackendError> {
        Ok(())
    }

    async fn list(
        &self,
        _: &Namespace,
        _: Option<Digest>,
        _: usize,
    ) -> Result<Vec<Digest>, BackendError> {
        Ok(Vec::new())
    }
}
