//! The tags of a cluster, kept by several build-indexes together.
//!
//! The tags of a repository belong to a few of them by rendezvous hashing over all that are listed,
//! whether they answer or not: who owns a tag must not depend on who is up. A change is acknowledged
//! when most owners have it on disk, and whoever reads it later from any build-index sees it.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use kraken_proto::Digest;
use kraken_proto::tags::list::{Lists, Members};
use kraken_proto::tags::record::{Change, Condition, TagState};
use reqwest::Client;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::backend::{self, TagBackend};
use super::members::{self, IndexMember, RingError, View};
use super::owner::Owner;
use super::store::TagStore;
use super::{TagError, TagService, chance};
use crate::link::RegisterName;
use crate::name::{RepoName, Tag, TagName};

/// The build-indexes of a cluster, as one of them sees them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TagRing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    cluster: String,
    name: String,
    store: TagStore,
    http: Client,
    configured: Members,
    view: RwLock<Arc<View>>,
    replicas: usize,
    pub(super) proposer: u64,
    pub(super) round: AtomicU64,
    backend: OnceLock<TagBackend>,
}

impl TagRing {
    /// The build-index `name` of `cluster`, which keeps its registers in `store`. `members` are all
    /// build-indexes, this one among them unless it is to leave, or none if it is alone; each tag belongs
    /// to `replicas`.
    ///
    /// # Errors
    /// The list makes no sense, or another one than the last was asked for is still to follow.
    pub fn new(
        store: TagStore,
        (cluster, name): (&str, &str),
        members: &[IndexMember],
        replicas: usize,
        http: Client,
    ) -> Result<Self, RingError> {
        let lists = members::configured(&store, name, members)?;
        if replicas == 0 {
            return Err(RingError::NoReplicas);
        }
        let standing = store.standing();
        if standing.votes() && standing.replicas != replicas {
            return Err(RingError::Replicas {
                before: standing.replicas,
                now: replicas,
            });
        }
        if cluster.is_empty() || cluster.len() > 255 {
            return Err(RingError::Cluster);
        }
        if standing.votes() {
            store.assume(lists.clone());
        }
        let configured = lists.latest().members.clone();
        let view = View::new(lists, (name, &store), replicas, &http);
        let inner = Inner {
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            store,
            http,
            configured,
            view: RwLock::new(Arc::new(view)),
            replicas,
            proposer: chance(),
            round: AtomicU64::new(1),
            backend: OnceLock::new(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The same with a backend where all is written to, and read again after the loss of all disks.
    #[must_use]
    pub fn with_backend(self, backend: TagBackend) -> Self {
        // The first one stays: nothing was written anywhere else.
        let _ = self.inner.backend.set(backend);
        self
    }

    /// That backend.
    pub fn backend(&self) -> Option<&TagBackend> {
        self.inner.backend.get()
    }

    /// How many objects of the backend could not be read when the cluster began; nothing without one.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn unreadable(&self) -> Result<Option<u64>, TagError> {
        match self.backend() {
            Some(_) => Ok(Some(backend::unreadable(self.here()).await?)),
            None => Ok(None),
        }
    }

    /// What a tag is, with its history; nothing of one that was never set.
    ///
    /// # Errors
    /// Too few of its owners answer.
    pub async fn state(&self, name: &TagName) -> Result<Option<TagState>, TagError> {
        self.register(&name.clone().into()).await
    }

    /// The same of any register.
    pub(crate) async fn register(&self, name: &RegisterName) -> Result<Option<TagState>, TagError> {
        self.change(name, Change::Read, true).await
    }

    /// Lets a tag point to `digest`, or removes it without one, if `condition` holds.
    ///
    /// # Errors
    /// [`TagError::Conflict`]; [`TagError::Unavailable`] when too few of its owners answer: then the
    /// change may have been made, or be made yet.
    pub async fn set(
        &self,
        name: &TagName,
        digest: Option<Digest>,
        condition: Condition,
    ) -> Result<Option<TagState>, TagError> {
        let name = name.clone().into();
        self.set_by(&name, digest, (condition, false)).await
    }

    /// The same of any register, which may have to stay what it is.
    pub(crate) async fn set_by(
        &self,
        name: &RegisterName,
        digest: Option<Digest>,
        (condition, is_immutable): (Condition, bool),
    ) -> Result<Option<TagState>, TagError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(0));
        let cluster = self.inner.cluster.clone();
        let change = Change::Set {
            digest,
            condition,
            is_immutable,
            attempted: Vec::new(),
            millis,
            cluster,
        };
        self.change(name, change, false).await
    }

    /// Lets a register be what another cluster has made of it, unless it was changed later here.
    pub(crate) async fn merge(
        &self,
        name: &RegisterName,
        state: TagState,
        is_immutable: bool,
    ) -> Result<Option<TagState>, TagError> {
        let change = Change::Merge {
            state,
            is_immutable,
        };
        self.change(name, change, false).await
    }

    /// Makes the owners of a tag agree on what it is, all that answer.
    pub(super) async fn agree(&self, name: &RegisterName) -> Result<(), TagError> {
        self.change(name, Change::Read, false).await.map(drop)
    }

    /// The registers of this build-index.
    pub(crate) fn here(&self) -> &TagStore {
        &self.inner.store
    }

    /// The build-indexes as they are now.
    pub(super) fn view(&self) -> Arc<View> {
        self.inner.view()
    }

    /// From now on they are these.
    pub(super) fn see(&self, lists: Lists) {
        let inner = &self.inner;
        let own = (inner.name.as_str(), &inner.store);
        let view = View::new(lists, own, inner.replicas, &inner.http);
        let mut seen = inner.view.write().unwrap_or_else(PoisonError::into_inner);
        *seen = Arc::new(view);
    }

    /// All build-indexes but this one.
    pub(super) fn others(&self) -> Vec<(String, Owner)> {
        let view = self.view();
        let others = view.owners().filter(|(name, _)| **name != self.inner.name);
        others
            .map(|(name, it)| (name.clone(), it.clone()))
            .collect()
    }

    /// The order in which build-indexes do something once for all about a digest: their names, and where each
    /// is reached.
    pub(crate) fn order_for(&self, digest: Digest) -> Vec<(String, String)> {
        self.view().order_for(digest)
    }

    /// How many owners of a repository come before this one.
    pub(crate) fn rank(&self, repo: &str) -> usize {
        let names = self.view().owning(repo).names;
        let rank = names.iter().position(|name| *name == self.inner.name);
        rank.unwrap_or(names.len())
    }

    /// Whether this is an owner of a repository.
    pub(crate) fn owns_repo(&self, repo: &str) -> bool {
        self.view().owning(repo).names.contains(&self.inner.name)
    }

    /// What the others are asked with.
    pub(crate) fn http(&self) -> &Client {
        &self.inner.http
    }

    /// The list in the configuration.
    pub(super) fn configured(&self) -> &Members {
        &self.inner.configured
    }

    /// The name of the cluster.
    pub(crate) fn cluster(&self) -> &str {
        &self.inner.cluster
    }

    /// This build-index's name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// How many owners each tag is to have.
    pub(super) fn replicas(&self) -> usize {
        self.inner.replicas
    }

    /// Whether the tags of a repository belong to this build-index.
    pub(super) fn owns(&self, name: &RegisterName) -> bool {
        let owning = self.view().owning(name.repo().as_str());
        owning.names.contains(&self.inner.name)
    }

    /// Reads or changes a tag; with `look`, it first only looks whether the owners agree. Once begun it
    /// is gone through with, also when nobody waits any more.
    async fn change(
        &self,
        name: &RegisterName,
        change: Change,
        look: bool,
    ) -> Result<Option<TagState>, TagError> {
        let (inner, name) = (self.inner.clone(), name.clone());
        let (reply, answer) = oneshot::channel();
        let attempt = async move { inner.attempt(name, (change, look), reply).await };
        tokio::spawn(attempt.in_current_span());
        answer
            .await
            .map_err(|_| TagError::Unavailable("the build-index stops".into()))?
    }
}

impl Inner {
    pub(super) fn view(&self) -> Arc<View> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.clone()
    }
}

impl TagService for TagRing {
    async fn get(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, TagError> {
        let name = TagName::new(repo.clone(), tag.clone());
        let state = self.state(&name).await?;
        Ok(state.and_then(|state| state.now.digest))
    }

    async fn put(&self, repo: &RepoName, tag: &Tag, digest: Digest) -> Result<(), TagError> {
        let name = TagName::new(repo.clone(), tag.clone());
        self.set(&name, Some(digest), Condition::Any).await?;
        Ok(())
    }

    async fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let prefix = format!("{repo}:");
        let after = last.map(|last| format!("{prefix}{last}"));
        let names = self.page(&prefix, n, after.as_deref()).await?;
        let tags = names.iter().map(|name| name[prefix.len()..].to_owned());
        Ok(tags.collect())
    }

    async fn repositories(&self, n: usize, last: Option<&str>) -> Result<Vec<String>, TagError> {
        self.page_repositories(n, last).await
    }

    async fn delete_at(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> Result<bool, TagError> {
        let name = TagName::new(repo.clone(), tag.clone());
        let state = self.state(&name).await?;
        let Some(state) = state.filter(|state| state.now.digest == Some(digest)) else {
            return Ok(false);
        };
        match self
            .set(&name, None, Condition::At(state.now.version))
            .await
        {
            Err(TagError::Conflict(_)) => Ok(false),
            done => done.map(|_| true),
        }
    }

    async fn delete(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagError> {
        if self.get(repo, tag).await?.is_none() {
            return Ok(false);
        }
        let name = TagName::new(repo.clone(), tag.clone());
        self.set(&name, None, Condition::Any).await?;
        Ok(true)
    }
}
