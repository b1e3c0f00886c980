//! Is everything there that a tag will need?

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use kraken_proto::{Digest, Namespace};

use crate::manifest::ManifestError;
use crate::reader::{ReadError, fetch};
use crate::source::{BlobSource, SourceError};

/// Walks from `digest` down to the layers, through every manifest of an index. A blob that is no
/// manifest (a tag may name any file) needs nothing but itself.
pub(crate) async fn complete<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    digest: Digest,
) -> Result<(), CheckError> {
    let all = complete_but(blobs, (ns, digest), &BTreeSet::new()).await;
    all.map(drop)
}

/// The same, though these manifests need not be there. The indexes that list one of them.
pub(crate) async fn complete_but<B: BlobSource>(
    blobs: &B,
    (ns, digest): (&Namespace, Digest),
    left_out: &BTreeSet<Digest>,
) -> Result<BTreeSet<Digest>, CheckError> {
    let mut sparse = BTreeSet::new();
    let mut seen = BTreeSet::from([digest]);
    let mut manifests = vec![digest];
    while let Some(next) = manifests.pop() {
        let manifest = match fetch(blobs, ns, next).await {
            Ok((_, manifest)) => manifest,
            Err(error) if next == digest && is_plain(&error) => return Ok(sparse),
            Err(error) => return Err(CheckError::of(error, next)),
        };
        for child in manifest.manifests() {
            if left_out.contains(&child.digest) {
                sparse.insert(next);
            } else if seen.insert(child.digest) {
                manifests.push(child.digest);
            }
        }
        if seen.len() > MAX_MANIFESTS {
            let message = format!("the index lists more than {MAX_MANIFESTS} manifests");
            return Err(CheckError::Refused(message));
        }
        exist(
            blobs,
            ns,
            manifest.blobs().map(|blob| blob.digest).collect(),
        )
        .await?;
    }
    Ok(sparse)
}

/// Bounds the work that one request can cause. The largest images in the wild list some dozens.
const MAX_MANIFESTS: usize = 4096;
/// Questions to the source at once.
const STATS: usize = 16;

fn is_plain(error: &ReadError) -> bool {
    matches!(
        error,
        ReadError::Refused(ManifestError::NotManifest | ManifestError::TooLarge)
    )
}

async fn exist<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    digests: BTreeSet<Digest>,
) -> Result<(), CheckError> {
    stream::iter(digests)
        .map(async |digest| match blobs.stat(ns, digest).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(SourceError::NotFound) => Err(CheckError::Missing(digest)),
            Err(error) => Err(CheckError::Unavailable(error.to_string())),
        })
        .buffer_unordered(STATS)
        .try_collect()
        .await
}

/// Why a tag cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("{0} is not there: push blobs and manifests before the tag")]
    Missing(Digest),
    #[error("{0}")]
    Refused(String),
    #[error("nobody knows whether the image is complete: {0}")]
    Unavailable(String),
}

impl CheckError {
    fn of(error: ReadError, digest: Digest) -> Self {
        match error {
            ReadError::NotFound => Self::Missing(digest),
            ReadError::Refused(error) => Self::Refused(format!("{digest}: {error}")),
            ReadError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::memory::MemoryBlobs;

    fn image(blobs: &MemoryBlobs, name: &str) -> (Digest, Digest) {
        let config = blobs.insert(format!("config {name}"));
        let layer = blobs.insert(format!("layer {name}"));
        let manifest = json!({
            "schemaVersion": 2, "config": { "digest": config }, "layers": [{ "digest": layer }],
        });
        (blobs.insert(manifest.to_string()), layer)
    }

    fn index(blobs: &MemoryBlobs, children: &[Digest]) -> Digest {
        let children: Vec<_> = children
            .iter()
            .map(|child| json!({ "digest": child }))
            .collect();
        let index = json!({ "schemaVersion": 2, "manifests": children });
        blobs.insert(index.to_string())
    }

    async fn check(blobs: &MemoryBlobs, digest: Digest) -> Result<(), CheckError> {
        complete(blobs, &Namespace::default(), digest).await
    }

    #[tokio::test]
    async fn an_index_is_checked_down_to_the_layers() {
        let blobs = MemoryBlobs::default();
        let (one, _) = image(&blobs, "one");
        let (two, layer) = image(&blobs, "two");
        let nested = index(&blobs, &[two]);
        let top = index(&blobs, &[one, nested, one]);
        assert_eq!(check(&blobs, top).await, Ok(()));
        blobs.remove(layer);
        assert_eq!(check(&blobs, top).await, Err(CheckError::Missing(layer)));
        blobs.remove(two);
        assert_eq!(check(&blobs, top).await, Err(CheckError::Missing(two)));
        assert_eq!(check(&blobs, one).await, Ok(()));
        blobs.set_unavailable(true);
        assert!(matches!(
            check(&blobs, one).await,
            Err(CheckError::Unavailable(_))
        ));
    }

    #[tokio::test]
    async fn what_is_left_out_need_not_be_there_and_nothing_else() {
        let blobs = MemoryBlobs::default();
        let (one, layer) = image(&blobs, "one");
        let (two, _) = image(&blobs, "two");
        let nested = index(&blobs, &[two]);
        let top = index(&blobs, &[one, nested]);
        blobs.remove(two);
        let ns = Namespace::default();
        let check = async |left_out: &[Digest]| {
            let left_out = left_out.iter().copied().collect();
            complete_but(&blobs, (&ns, top), &left_out).await
        };
        assert_eq!(check(&[two]).await, Ok([nested].into()));
        assert_eq!(check(&[one]).await, Err(CheckError::Missing(two)));
        blobs.remove(layer);
        assert_eq!(check(&[two]).await, Err(CheckError::Missing(layer)));
    }

    #[tokio::test]
    async fn a_plain_file_needs_only_itself() {
        let blobs = MemoryBlobs::default();
        let weights = blobs.insert("weights");
        assert_eq!(check(&blobs, weights).await, Ok(()));
        let absent = Digest::of(b"absent");
        assert_eq!(
            check(&blobs, absent).await,
            Err(CheckError::Missing(absent))
        );
        let listed = index(&blobs, &[weights]);
        assert!(matches!(
            check(&blobs, listed).await,
            Err(CheckError::Refused(_))
        ));
    }
}
