//! Manifests as served: read whole, proven, and remembered for a while.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use kraken_proto::{Digest, Namespace};
use moka::future::Cache;
use serde_json::{Value, json};

use crate::manifest::{Manifest, ManifestError, MediaType};
use crate::source::{BlobSource, SourceError};

/// Reads manifests and remembers them. What a digest names never changes, so nothing goes stale.
pub(crate) struct ManifestReader {
    cache: Cache<Digest, Stored>,
}

/// A manifest's exact bytes and its kind.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: MediaType,
}

impl Stored {
    /// Its descriptor as a list of referrers has it: with its artifact type and all annotations.
    pub(crate) fn describe(&self, digest: Digest) -> Value {
        let manifest: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        let mut descriptor = json!({
            "mediaType": self.media_type.as_str(),
            "digest": digest,
            "size": self.bytes.len(),
        });
        let written = &manifest["artifactType"];
        let config = &manifest["config"]["mediaType"];
        let kind = [written, config]
            .into_iter()
            .find_map(|it| it.as_str().filter(|it| !it.is_empty()));
        if let Some(kind) = kind {
            descriptor["artifactType"] = kind.into();
        }
        if manifest["annotations"].is_object() {
            descriptor["annotations"] = manifest["annotations"].clone();
        }
        descriptor
    }
}

impl ManifestReader {
    /// Remembers up to `bytes` of manifests.
    pub(crate) fn new(bytes: u64) -> Self {
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|_, stored: &Stored| u32::try_from(stored.bytes.len()).unwrap_or(u32::MAX))
            .build();
        Self { cache }
    }

    /// A manifest, by one read however many ask at once.
    pub(crate) async fn read<B: BlobSource>(
        &self,
        blobs: &B,
        ns: &Namespace,
        digest: Digest,
    ) -> Result<Stored, ReadError> {
        let fetch = async {
            let (bytes, manifest) = fetch(blobs, ns, digest).await?;
            let media_type = manifest.media_type();
            Ok(Stored { bytes, media_type })
        };
        let read = self.cache.try_get_with(digest, fetch).await;
        read.map_err(Arc::unwrap_or_clone)
    }

    /// Remembers a manifest that was just pushed.
    pub(crate) async fn remember(&self, digest: Digest, bytes: Bytes, media_type: MediaType) {
        self.cache
            .insert(digest, Stored { bytes, media_type })
            .await;
    }
}

impl fmt::Debug for ManifestReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManifestReader").finish_non_exhaustive()
    }
}

/// Reads the manifest `digest` whole and checks that the bytes are it.
pub(crate) async fn fetch<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    digest: Digest,
) -> Result<(Bytes, Manifest), ReadError> {
    let limit = Manifest::MAX_LEN as u64;
    let body = blobs.open(ns, digest, 0..limit + 1).await?;
    if body.total > limit {
        return Err(ReadError::Refused(ManifestError::TooLarge));
    }
    let whole = body
        .stream
        .try_fold(BytesMut::new(), |mut whole, chunk| async move {
            whole.extend_from_slice(&chunk);
            Ok(whole)
        })
        .await?;
    if Digest::of(&whole) != digest {
        return Err(ReadError::Unavailable(
            "its bytes do not have its digest".to_string(),
        ));
    }
    let manifest = Manifest::parse(&whole)?;
    Ok((whole.freeze(), manifest))
}

/// Why a manifest cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the manifest does not exist")]
    NotFound,
    #[error(transparent)]
    Refused(#[from] ManifestError),
    #[error("the manifest cannot be read now, try again: {0}")]
    Unavailable(String),
}

impl From<SourceError> for ReadError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::NotFound => Self::NotFound,
            SourceError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}
