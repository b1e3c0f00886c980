//! Is everything there that a tag will need?

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt, TryStreamExt};
use kraken_proto::{Digest, Namespace};

use crate::manifest::{Manifest, ManifestError};
use crate::reader::{ReadError, fetch};
use crate::source::{BlobSource, SourceError};

/// What a walk went over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    /// All manifests that have to be there, the first among them.
    pub(crate) manifests: BTreeSet<Digest>,
    /// Those of them that list something that is left out, and not there as a whole.
    pub(crate) sparse: BTreeSet<Digest>,
}

/// Walks from `digest` down to the layers, through every manifest of an index: all of these. A blob that is no
/// manifest (a tag may name any file) needs nothing but itself.
pub(crate) async fn complete<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    digest: Digest,
) -> Result<BTreeSet<Digest>, CheckError> {
    let walked = complete_but(blobs, (ns, digest), &BTreeSet::new()).await;
    walked.map(|walked| walked.manifests)
}

/// The same, though these manifests need not be there.
pub(crate) async fn complete_but<B: BlobSource>(
    blobs: &B,
    (ns, digest): (&Namespace, Digest),
    left_out: &BTreeSet<Digest>,
) -> Result<Walked, CheckError> {
    let mut walked = Walked::default();
    walked.manifests.insert(digest);
    let mut without = BTreeMap::<Digest, BTreeSet<Digest>>::new();
    let mut manifests = vec![digest];
    while let Some(next) = manifests.pop() {
        let manifest = match fetch(blobs, ns, next).await {
            Ok((_, manifest)) => manifest,
            Err(error) if next == digest && is_plain(&error) => return Ok(walked),
            Err(error) => return Err(CheckError::of(error, next)),
        };
        for child in manifest.manifests() {
            if left_out.contains(&child.digest) {
                without.entry(next).or_default().insert(child.digest);
            } else if walked.manifests.insert(child.digest) {
                manifests.push(child.digest);
            }
        }
        if walked.manifests.len() > MAX_MANIFESTS {
            let message = format!("the index lists more than {MAX_MANIFESTS} manifests");
            return Err(CheckError::Refused(message));
        }
        exist(blobs, ns, blobs_of(&manifest)).await?;
    }
    let whole = whole(blobs, ns, without.values().flatten().copied().collect()).await?;
    without.retain(|_, listed| !listed.is_subset(&whole));
    walked.sparse = without.into_keys().collect();
    Ok(walked)
}

/// Those of some manifests that are there with all that they need.
async fn whole<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    manifests: BTreeSet<Digest>,
) -> Result<BTreeSet<Digest>, CheckError> {
    // Mostly none of them is.
    let looked = stream::iter(manifests).map(async |digest| {
        let found = is_there(blobs, ns, digest).await?;
        Ok(found.then_some(digest))
    });
    let there: Vec<_> = looked.buffer_unordered(STATS).try_collect().await?;
    let mut left: Vec<_> = there.into_iter().flatten().collect();
    let mut listed = BTreeMap::new();
    // What would go beyond that counts as missing.
    while let Some(next) = left.pop().filter(|_| listed.len() < MAX_MANIFESTS) {
        if listed.contains_key(&next) {
            continue;
        }
        match lists(blobs, ns, next).await {
            Ok(children) => {
                left.extend(&children);
                listed.insert(next, Some(children));
            }
            Err(error @ CheckError::Unavailable(_)) => return Err(error),
            Err(_) => drop(listed.insert(next, None)),
        }
    }
    let whole = listed.into_iter();
    let mut whole: BTreeMap<_, _> = whole.filter_map(|(it, has)| Some((it, has?))).collect();
    loop {
        let there: BTreeSet<_> = whole.keys().copied().collect();
        whole.retain(|_, children| children.iter().all(|it| there.contains(it)));
        if whole.len() == there.len() {
            return Ok(there);
        }
    }
}

/// What a manifest lists whose blobs are all there.
async fn lists<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    digest: Digest,
) -> Result<Vec<Digest>, CheckError> {
    let fetched = fetch(blobs, ns, digest).await;
    let (_, manifest) = fetched.map_err(|error| CheckError::of(error, digest))?;
    exist(blobs, ns, blobs_of(&manifest)).await?;
    Ok(manifest.manifests().map(|child| child.digest).collect())
}

fn blobs_of(manifest: &Manifest) -> BTreeSet<Digest> {
    manifest.blobs().map(|blob| blob.digest).collect()
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
        .map(async |digest| match is_there(blobs, ns, digest).await? {
            true => Ok(()),
            false => Err(CheckError::Missing(digest)),
        })
        .buffer_unordered(STATS)
        .try_collect()
        .await
}

/// Whether all of a blob is there.
async fn is_there<B: BlobSource>(
    blobs: &B,
    ns: &Namespace,
    digest: Digest,
) -> Result<bool, CheckError> {
    let unavailable = |error: SourceError| CheckError::Unavailable(error.to_string());
    match blobs.stat_whole(ns, digest).await {
        Ok(Some(_)) => return Ok(true),
        Ok(None) | Err(SourceError::NotFound) => {}
        Err(error) => return Err(unavailable(error)),
    }
    // One that comes may yet break off.
    match blobs.stat(ns, digest).await {
        Ok(Some(_)) => {
            let what = format!("{digest} is still on its way: try again when it is there");
            Err(CheckError::Unavailable(what))
        }
        Ok(None) | Err(SourceError::NotFound) => Ok(false),
        Err(error) => Err(unavailable(error)),
    }
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
        let walked = complete(blobs, &Namespace::default(), digest).await;
        walked.map(|walked| assert!(walked.contains(&digest)))
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
            let walked = complete_but(&blobs, (&ns, top), &left_out).await;
            walked.map(|walked| walked.sparse)
        };
        assert_eq!(check(&[two]).await, Ok([nested].into()));
        assert_eq!(check(&[one]).await, Err(CheckError::Missing(two)));
        blobs.remove(layer);
        assert_eq!(check(&[two]).await, Err(CheckError::Missing(layer)));
    }

    #[tokio::test]
    async fn an_index_is_whole_when_what_is_left_out_is_there_all_the_same() {
        let blobs = MemoryBlobs::default();
        let (one, layer) = image(&blobs, "one");
        let (two, _) = image(&blobs, "two");
        let nested = index(&blobs, &[one]);
        let top = index(&blobs, &[nested, two]);
        let ns = Namespace::default();
        let walk = async |left_out: &[Digest]| {
            let left_out = left_out.iter().copied().collect();
            complete_but(&blobs, (&ns, top), &left_out).await.unwrap()
        };
        let walked = walk(&[nested]).await;
        assert_eq!(walked.manifests, [top, two].into());
        assert_eq!(walked.sparse, [].into());
        assert_eq!(walk(&[one]).await.sparse, [].into());
        blobs.remove(layer);
        assert_eq!(walk(&[nested]).await.sparse, [top].into());
        assert_eq!(walk(&[one]).await.sparse, [nested].into());
        assert_eq!(walk(&[nested, one]).await.sparse, [top].into());
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
