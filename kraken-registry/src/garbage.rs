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
    GarbageAsked, GarbagePage, GarbageStep, MOST, OriginClient, OriginCluster,
};
use kraken_proto::{Digest, Namespace};
use serde::{Deserialize, Serialize};

use crate::link::{Link, RegisterName};
use crate::name::RepoName;
use crate::reader::{ReadError, fetch};
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
    /// takes from its first question to its manifest.
    pub grace_seconds: u64,
    /// Whether it goes from the storage behind the origins as well: only where no other cluster or tool
    /// keeps blobs there.
    pub stored: bool,
    /// Whether to count only.
    pub dry_run: bool,
}

/// What was found and done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
        let (marked, repositories) = self.mark().await?;
        let mut collected = Collected {
            referenced: marked.len(),
            ..Collected::default()
        };
        let members = self.members()?;
        let mut garbage = BTreeSet::new();
        for (_, origin) in &members {
            unmarked(origin, None, &marked, &mut garbage).await?;
        }
        let mut stored = Vec::new();
        if options.stored {
            let (_, first) = members.first().ok_or(GarbageError::NoOrigin)?;
            for namespace in places(first, repositories).await? {
                let mut there = BTreeSet::new();
                match unmarked(first, Some(&namespace), &marked, &mut there).await {
                    Ok(()) => stored.push((namespace, there)),
                    Err(GarbageError::Origin(ApiError::Conflict(_))) => collected.unlisted += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        garbage.extend(stored.iter().flat_map(|(_, there)| there));
        collected.garbage = garbage.len();
        if !options.dry_run {
            let garbage: Vec<_> = garbage.into_iter().collect();
            for batch in garbage.chunks(BATCH) {
                let grace = Duration::from_secs(options.grace_seconds);
                let (removed, from_storages) = remove(&members, (batch, grace), &stored).await?;
                collected.removed += removed;
                collected.removed_stored += from_storages;
            }
        }
        Ok(collected)
    }

    /// All that is referenced, and the repositories.
    async fn mark(&self) -> Result<(HashSet<Digest>, BTreeSet<RepoName>), GarbageError> {
        let mut marked = HashSet::new();
        let mut repositories = BTreeSet::new();
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
                repositories.insert(name.repo().clone());
                match name {
                    // A blob that is no manifest needs nothing else.
                    RegisterName::Link(_, Link::Blob(_)) => {
                        marked.insert(digest);
                    }
                    name => named.push((name.repo().clone(), digest)),
                }
            }
            self.follow(named, &mut marked).await?;
            if is_last {
                return Ok((marked, repositories));
            }
        }
    }

    /// Marks manifests and all that they need.
    async fn follow(
        &self,
        mut named: Vec<(RepoName, Digest)>,
        marked: &mut HashSet<Digest>,
    ) -> Result<(), GarbageError> {
        while !named.is_empty() {
            named.retain(|(_, digest)| marked.insert(*digest));
            let read = stream::iter(named).map(async |(repo, digest)| {
                let ns = repo.namespace();
                (repo, digest, fetch(&self.origins, &ns, digest).await)
            });
            let read: Vec<_> = read.buffer_unordered(READS).collect().await;
            named = Vec::new();
            for (repo, digest, read) in read {
                match read {
                    Ok((_, manifest)) => {
                        marked.extend(manifest.all_blobs().map(|blob| blob.digest));
                        let children = manifest.manifests().map(|child| child.digest);
                        named.extend(children.map(|child| (repo.clone(), child)));
                    }
                    // A tag may name any file, and one that is gone needs nothing.
                    Err(ReadError::NotFound | ReadError::Refused(_)) => {}
                    Err(ReadError::Unavailable(reason)) => {
                        return Err(GarbageError::Unread { digest, reason });
                    }
                }
            }
        }
        Ok(())
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
    /// A register's name makes no sense.
    #[error("{0:?} is neither a tag nor a link")]
    Name(String),
    /// There is none.
    #[error("no origin is known")]
    NoOrigin,
}
