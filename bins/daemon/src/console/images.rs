//! Which blobs an image consists of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use kraken_core::net::http::ApiError;
use kraken_core::net::origin::{BlobRead, OriginCluster};
use kraken_core::{Digest, Namespace};
use kraken_registry::name::split_tag;
use kraken_registry::tags::client::TagClient;
use kraken_registry::{Manifest, TagService as _};
use serde::Serialize;

/// The most manifests that are kept; they never change.
const KEPT: usize = 64;
/// The most manifests of one index that are looked at.
const PLATFORMS: usize = 16;

/// Finds images.
pub(super) struct Images {
    tags: Option<TagClient>,
    origins: OriginCluster,
    known: Mutex<BTreeMap<Digest, Arc<Vec<Image>>>>,
}

/// An image for one platform: what a host pulls.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Image {
    /// Its manifest.
    pub(super) manifest: Digest,
    /// Its manifest, its configuration and its layers with their lengths.
    pub(super) blobs: Vec<(Digest, u64)>,
}

impl Images {
    pub(super) fn new(tags: Option<TagClient>, origins: OriginCluster) -> Self {
        Self {
            tags,
            origins,
            known: Mutex::default(),
        }
    }

    /// The digest of `repository:tag`, and its images: several for an index.
    ///
    /// # Errors
    /// It is no name of an image, does not exist, or nobody who knows can be asked.
    pub(super) async fn find(&self, name: &str) -> Result<(Digest, Arc<Vec<Image>>), ApiError> {
        let tags = self.tags.as_ref().ok_or_else(|| {
            let what = "this console knows no build-index: name them in console.build_indexes";
            ApiError::BadRequest(what.into())
        })?;
        let wrong = |error: &dyn std::fmt::Display| ApiError::BadRequest(error.to_string());
        let (repo, tag) = split_tag(name).map_err(|error| wrong(&error))?;
        let found = tags.get(&repo, &tag).await;
        let found = found.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        let digest = found.ok_or(ApiError::NotFound)?;
        if let Some(images) = self.known().get(&digest) {
            return Ok((digest, images.clone()));
        }
        let namespace: Namespace = repo.as_str().parse().map_err(|error| wrong(&error))?;
        let images = Arc::new(self.images(&namespace, digest).await?);
        let mut known = self.known();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(digest, images.clone());
        drop(known);
        Ok((digest, images))
    }

    async fn images(&self, namespace: &Namespace, digest: Digest) -> Result<Vec<Image>, ApiError> {
        let (manifest, length) = self.manifest(namespace, digest).await?;
        let children: Vec<_> = manifest.manifests().map(|it| it.digest).collect();
        if children.is_empty() {
            return Ok(vec![image((digest, length), &manifest)]);
        }
        let mut images = Vec::new();
        for child in children.into_iter().take(PLATFORMS) {
            let (manifest, length) = self.manifest(namespace, child).await?;
            images.push(image((child, length), &manifest));
        }
        Ok(images)
    }

    async fn manifest(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<(Manifest, u64), ApiError> {
        let read = self.origins.read(namespace, digest, None).await?;
        let bytes = read_all(read).await?;
        let manifest = Manifest::parse(&bytes);
        let manifest = manifest.map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok((manifest, bytes.len() as u64))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Arc<Vec<Image>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn image(manifest: (Digest, u64), content: &Manifest) -> Image {
    let mut blobs = vec![manifest];
    blobs.extend(content.blobs().map(|blob| (blob.digest, blob.size)));
    blobs.sort_unstable();
    blobs.dedup_by_key(|(digest, _)| *digest);
    Image {
        manifest: manifest.0,
        blobs,
    }
}

/// The bytes of a manifest, which has a bound.
async fn read_all(mut read: BlobRead) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = read.body.next().await {
        let chunk = chunk.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        if bytes.len() + chunk.len() > Manifest::MAX_LEN {
            return Err(ApiError::BadRequest(
                "this is too long for a manifest".into(),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
