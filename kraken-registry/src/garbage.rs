//! Collecting garbage: blobs that no repository needs any more go from the origins and from the storage
//! behind them, while others push and pull.
//!
//! All that is referenced is marked first: what tags and links name, and from there down to the layers of
//! every platform. What an origin or a storage holds beside that is garbage, unless somebody asked about
//! it within the grace period, as every push does: origins tell (`kraken_proto::garbage`). Only what all
//! origins give up goes, so all of them must be there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use kraken_core::net::http::ApiError;
use kraken_core::net::origin::{
    Copies, GarbageAsked, GarbagePage, GarbageStep, MOST, OriginClient, OriginCluster,
};
use kraken_proto::garbage::Garbage;
use kraken_proto::{Digest, Namespace};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::link::{Link, RegisterName};
use crate::manifest::{Manifest, ManifestError};
use crate::name::RepoName;
use crate::reader::{ReadError, fetch};
use crate::source::BlobSource;
use crate::tags::TagError;
use crate::tags::ring::TagRing;

/// Manifests read at once.
const READS: usize = 16;
/// Names in one page of registers.
const PAGE: usize = 1000;
/// Blobs that are removed together: so many are done well within the time for which they wait.
const BATCH: usize = 200;

/// What is to be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GarbageOptions {
    /// How long nobody may have asked about a blob before it goes, in seconds; longer than any push
    /// takes from its first question to its manifest. The time that the run takes is added.
    pub grace_seconds: u64,
    /// Whether it goes from the storage behind the origins as well: only where no other cluster or tool
    /// keeps blobs there.
    pub stored: bool,
    /// Whether to count only.
    pub dry_run: bool,
}

impl GarbageOptions {
    /// Whether they can be followed.
    ///
    /// # Errors
    /// [`GarbageError::Grace`].
    pub fn check(&self) -> Result<(), GarbageError> {
        // The time that the run takes is added, and origins remember no longer.
        let most = (Garbage::MAX_GRACE / 2).as_secs();
        match (1..=most).contains(&self.grace_seconds) {
            true => Ok(()),
            false => Err(GarbageError::Grace { most }),
        }
    }
}

/// What was found and done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Collected {
    /// Blobs that are referenced, manifests among them.
    pub referenced: usize,
    /// Blobs that origins or storages hold and nothing refers to.
    pub garbage: usize,
    /// Those of them that have gone from all origins.
    pub removed: usize,
    /// Those that have gone from storages.
    pub removed_stored: usize,
    /// Storages that cannot tell what they hold.
    pub unlisted: usize,
}

/// What a run found to be referenced.
#[derive(Debug, Default)]
struct Marked {
    digests: HashSet<Digest>,
    /// The manifests whose needs are marked. A layer may be another repository's manifest.
    followed: HashSet<Digest>,
    /// All that have, or ever had, a tag or a link.
    repositories: BTreeSet<RepoName>,
}

/// What one manifest needs.
struct Needs {
    blobs: Vec<Digest>,
    manifests: Vec<Digest>,
}

/// Collects garbage in one cluster.
#[derive(Clone)]
pub struct Collector {
    tags: TagRing,
    origins: OriginCluster,
}

impl Collector {
    /// A collector for what these tags and links name at these origins.
    pub const fn new(tags: TagRing, origins: OriginCluster) -> Self {
        Self { tags, origins }
    }

    /// One run.
    ///
    /// # Errors
    /// [`GarbageError`]: what could not be asked. What has gone until then was garbage.
    pub async fn run(&self, options: GarbageOptions) -> Result<Collected, GarbageError> {
        options.check()?;
        let began = Instant::now();
        let members = self.members()?;
        let (_, first) = members.first().ok_or(GarbageError::NoOrigin)?;
        let marked = self.mark(&members).await?;
        let mut collected = Collected {
            referenced: marked.digests.len(),
            ..Collected::default()
        };
        let mut garbage = BTreeSet::new();
        for (_, origin) in &members {
            unmarked(origin, None, &marked.digests, &mut garbage).await?;
        }
        let mut stored = Vec::new();
        if options.stored {
            for namespace in places(first, marked.repositories).await? {
                let mut there = BTreeSet::new();
                match unmarked(first, Some(&namespace), &marked.digests, &mut there).await {
                    Ok(()) => stored.push((namespace, there)),
                    Err(GarbageError::Origin(ApiError::Conflict(_))) => collected.unlisted += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        garbage.extend(stored.iter().flat_map(|(_, there)| there));
        collected.garbage = garbage.len();
        if collected.referenced == 0 && collected.garbage > 0 {
            return Err(GarbageError::NothingReferenced);
        }
        if !options.dry_run {
            let garbage: Vec<_> = garbage.into_iter().collect();
            for batch in garbage.chunks(BATCH) {
                // What was pushed since the marks were made counts as young.
                let grace = Duration::from_secs(options.grace_seconds) + began.elapsed();
                let (removed, from_storages) = remove(&members, (batch, grace), &stored).await?;
                collected.removed += removed;
                collected.removed_stored += from_storages;
            }
        }
        Ok(collected)
    }

    /// All that is referenced, and the repositories.
    async fn mark(&self, members: &[(String, OriginClient)]) -> Result<Marked, GarbageError> {
        let mut marked = Marked::default();
        let mut after = None::<String>;
        loop {
            let page = self.tags.page_all(PAGE, after.as_deref()).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|(name, _)| name.clone());
            let mut named = Vec::new();
            for (name, digest) in page {
                let Ok(name) = name.parse::<RegisterName>() else {
                    return Err(GarbageError::Name(name));
                };
                // What is stored for one that has nothing any more is garbage.
                marked.repositories.insert(name.repo().clone());
                let Some(digest) = digest else { continue };
                if matches!(name, RegisterName::Link(_, Link::Sparse(_))) {
                    continue;
                }
                marked.digests.insert(digest);
                // A blob that is kept for its own sake needs nothing else.
                if !matches!(name, RegisterName::Link(_, Link::Blob(_))) {
                    named.push((name.repo().clone(), digest));
                }
            }
            self.follow(named, &mut marked, members).await?;
            if is_last {
                return Ok(marked);
            }
        }
    }

    /// Marks all that manifests need.
    async fn follow(
        &self,
        mut named: Vec<(RepoName, Digest)>,
        marked: &mut Marked,
        members: &[(String, OriginClient)],
    ) -> Result<(), GarbageError> {
        while !named.is_empty() {
            named.retain(|(_, digest)| !marked.followed.contains(digest));
            let read = stream::iter(named).map(async |(repo, digest)| {
                let ns = repo.namespace();
                (repo, digest, self.needs(&ns, digest).await)
            });
            let read: Vec<_> = read.buffer_unordered(READS).collect().await;
            named = Vec::new();
            for (repo, digest, needs) in read {
                match needs {
                    Ok(needs) => {
                        marked.followed.insert(digest);
                        marked.digests.extend(needs.blobs);
                        for child in needs.manifests {
                            marked.digests.insert(child);
                            named.push((repo.clone(), child));
                        }
                    }
                    // A tag may name any file.
                    Err(ReadError::Refused(_)) => {
                        marked.followed.insert(digest);
                    }
                    // It may be there for another repository that names it.
                    Err(ReadError::NotFound) => nobody_has(members, &repo, digest).await?,
                    Err(ReadError::Unavailable(reason)) => {
                        let (_, origin) = members.first().ok_or(GarbageError::NoOrigin)?;
                        let numbers = origin.places(vec![repo.namespace()]).await?;
                        // What comes from another registry comes from there again.
                        if numbers.first().is_none_or(Option::is_some) {
                            return Err(GarbageError::Unread { digest, reason });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What a manifest needs; what is too long to be one is not read.
    async fn needs(&self, ns: &Namespace, digest: Digest) -> Result<Needs, ReadError> {
        match BlobSource::stat(&self.origins, ns, digest).await? {
            None => return Err(ReadError::NotFound),
            Some(length) if length > Manifest::MAX_LEN as u64 => {
                return Err(ReadError::Refused(ManifestError::TooLarge));
            }
            Some(_) => {}
        }
        let (_, manifest) = fetch(&self.origins, ns, digest).await?;
        Ok(Needs {
            blobs: manifest.all_blobs().map(|blob| blob.digest).collect(),
            manifests: manifest.manifests().map(|child| child.digest).collect(),
        })
    }

    fn members(&self) -> Result<Vec<(String, OriginClient)>, GarbageError> {
        let names = self.origins.names();
        let members = names.into_iter().map(|name| {
            let client = self.origins.origin(&name);
            client.map(|client| (name, client))
        });
        let members: Option<Vec<_>> = members.collect();
        let members = members.ok_or(GarbageError::NoOrigin)?;
        match members.is_empty() {
            true => Err(GarbageError::NoOrigin),
            false => Ok(members),
        }
    }
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

/// Makes sure that a manifest is really gone: an origin that was away a moment ago may have it.
async fn nobody_has(
    members: &[(String, OriginClient)],
    repo: &RepoName,
    digest: Digest,
) -> Result<(), GarbageError> {
    let ns = repo.namespace();
    let asked = members
        .iter()
        .map(|(_, origin)| origin.stat(&ns, digest, Copies::Here));
    for found in join_all(asked).await {
        if found?.is_some() {
            let reason = "an origin has it that could not be asked a moment ago".into();
            return Err(GarbageError::Unread { digest, reason });
        }
    }
    Ok(())
}

/// What an origin, or a storage behind it, holds and nothing refers to.
async fn unmarked(
    origin: &OriginClient,
    namespace: Option<&Namespace>,
    marked: &HashSet<Digest>,
    garbage: &mut BTreeSet<Digest>,
) -> Result<(), GarbageError> {
    let mut asked = GarbagePage {
        namespace: namespace.cloned(),
        after: None,
    };
    loop {
        let page = origin.garbage_page(&asked).await?;
        garbage.extend(page.iter().filter(|digest| !marked.contains(digest)));
        match page.last() {
            Some(last) if page.len() >= MOST => asked.after = Some(*last),
            _ => return Ok(()),
        }
    }
}

/// One namespace for each storage.
async fn places(
    origin: &OriginClient,
    repositories: BTreeSet<RepoName>,
) -> Result<Vec<Namespace>, GarbageError> {
    let namespaces: Vec<_> = repositories.iter().map(RepoName::namespace).collect();
    let mut places = BTreeMap::new();
    for some in namespaces.chunks(MOST) {
        let numbers = origin.places(some.to_vec()).await?;
        for (namespace, number) in some.iter().zip(numbers) {
            if let Some(number) = number {
                places.entry(number).or_insert_with(|| namespace.clone());
            }
        }
    }
    Ok(places.into_values().collect())
}

/// Removes those of some blobs that all origins give up: from them, and from storages. How many each.
async fn remove(
    members: &[(String, OriginClient)],
    (batch, grace): (&[Digest], Duration),
    stored: &[(Namespace, BTreeSet<Digest>)],
) -> Result<(usize, usize), GarbageError> {
    let token = crate::tags::chance();
    let step = |step: GarbageStep, digests: Vec<Digest>| GarbageAsked {
        token,
        step,
        digests,
    };
    let done = async {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let condemn = step(GarbageStep::Condemn { grace_ms }, batch.to_vec());
        let given_up = join_all(members.iter().map(|(_, origin)| origin.garbage(&condemn))).await;
        let mut doomed: BTreeSet<Digest> = batch.iter().copied().collect();
        for given_up in given_up {
            let given_up: BTreeSet<_> = given_up?.into_iter().collect();
            doomed.retain(|digest| given_up.contains(digest));
        }
        let remove = step(GarbageStep::Remove, doomed.iter().copied().collect());
        for removed in join_all(members.iter().map(|(_, origin)| origin.garbage(&remove))).await {
            let removed: BTreeSet<_> = removed?.into_iter().collect();
            doomed.retain(|digest| removed.contains(digest));
        }
        let mut from_storages = 0;
        for (namespace, there) in stored {
            let namespace = namespace.clone();
            let these: Vec<_> = doomed.intersection(there).copied().collect();
            if these.is_empty() {
                continue;
            }
            let remove = step(GarbageStep::RemoveStored { namespace }, these);
            if let Some((_, first)) = members.first() {
                from_storages += first.garbage(&remove).await?.len();
            }
        }
        Ok((doomed.len(), from_storages))
    };
    let done = done.await;
    // Whatever came of it, whoever pushes one of them need not wait.
    let release = step(GarbageStep::Release, batch.to_vec());
    let released = join_all(members.iter().map(|(_, origin)| origin.garbage(&release))).await;
    for error in released.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "condemned blobs wait for their time to pass");
    }
    done
}

/// Why no garbage, or not all of it, was collected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GarbageError {
    /// Too few build-indexes answer.
    #[error(transparent)]
    Tags(#[from] TagError),
    /// An origin does not answer, or fails: all must take part.
    #[error("an origin cannot take part: {0}")]
    Origin(#[from] ApiError),
    /// What a manifest needs is not known, so that nothing may go.
    #[error("what the manifest {digest} needs cannot be found out: {reason}")]
    Unread {
        /// The manifest.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// Origins do not remember for so long what they were asked, or nobody could push.
    #[error("the grace period is between 1 second and {most} seconds")]
    Grace {
        /// The longest, in seconds.
        most: u64,
    },
    /// A register's name makes no sense.
    #[error("{0:?} is neither a tag nor a link")]
    Name(String),
    /// It looks as if everything were garbage.
    #[error(
        "nothing is referenced at all: are these the build-indexes that keep this cluster's tags? \
         Push one image if they are"
    )]
    NothingReferenced,
    /// There is none.
    #[error("no origin is known")]
    NoOrigin,
}
