//! All registers in a storage of their own, for a cluster that loses every disk.
//!
//! | path under the prefix | |
//! |---|---|
//! | `registers/{repository}/_tags/{tag}` | a tag, with its versions and what it was before |
//! | `registers/{repository}/_links/{link}` | a link |
//! | `docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link` | the digest that a tag points to, as other registries keep it |
//!
//! What the storage lacks is noted and sent as what other clusters lack is ([`crate::replicate`]). Build-indexes
//! that begin, and of which none remembers anything, read all that is theirs before they vote.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::StreamExt as _;
use kraken_core::storage::{BackendError, OpendalBackend};
use kraken_proto::tags::record::TagState;
use serde::{Deserialize, Serialize};

use super::ring::TagRing;
use super::store::{TagStore, TagStoreError};
use crate::link::RegisterName;
use crate::name::{RepoName, TagName};

/// What the backend is called among the remotes; none of these can have such a name.
pub const BACKEND: &str = "~backend";
/// Objects that are read at once, and taken in one step.
const READS: usize = 32;
const STEP: usize = 500;
/// The bytes of one object, at most.
const MOST: usize = 64 << 10;
/// How many objects could not be read when the cluster began.
const UNREADABLE_KEY: &str = "unreadable";

/// Where all registers are kept besides the disks of their owners. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TagBackend {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    storage: OpendalBackend,
    prefix: String,
    place: String,
    /// For which beginning all was read.
    read_for: Mutex<Option<Vec<u64>>>,
    why_not_read: Mutex<Option<&'static str>>,
    was_just_read: AtomicBool,
    read: AtomicU64,
}

/// One object.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    name: String,
    state: TagState,
}

/// What one path turned out to be.
enum Found {
    Register(RegisterName, TagState),
    /// It belongs to others, or was removed meanwhile.
    Nothing,
    Unreadable {
        path: String,
        reason: String,
    },
}

/// A prefix under which nothing can be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no path of plain components such as kraken/tags")]
pub struct PrefixError(String);

impl TagBackend {
    /// Keeps registers in `storage`, under `prefix`, which may be empty. All are written again when `place`,
    /// which says where that is, is not what it was.
    ///
    /// # Errors
    /// The prefix is no path.
    pub fn new(
        storage: OpendalBackend,
        prefix: &str,
        place: impl Into<String>,
    ) -> Result<Self, PrefixError> {
        let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        let is_part = |it: &str| !matches!(it, "" | "." | "..") && it.chars().all(is_plain);
        let prefix = match trimmed {
            "" if prefix.is_empty() => String::new(),
            path if path.split('/').all(is_part) => format!("{path}/"),
            _ => return Err(PrefixError(prefix.to_owned())),
        };
        let inner = Inner {
            storage,
            prefix,
            place: place.into(),
            read_for: Mutex::default(),
            why_not_read: Mutex::default(),
            was_just_read: AtomicBool::new(false),
            read: AtomicU64::new(0),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Where it is: another text when it is another place.
    pub(crate) fn place(&self) -> String {
        format!("{} {}", self.inner.place, self.inner.prefix)
    }

    /// Why the registers were not read from it yet, while they are.
    pub(super) fn why_not_read(&self) -> Option<&'static str> {
        let why = self.inner.why_not_read.lock();
        *why.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was read since this was asked last.
    pub(super) fn was_just_read(&self) -> bool {
        self.inner.was_just_read.swap(false, Ordering::Relaxed)
    }

    fn tell(&self, why: Option<&'static str>) {
        let told = self.inner.why_not_read.lock();
        *told.unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn registers(&self) -> String {
        format!("{}registers/", self.inner.prefix)
    }

    fn path(&self, name: &RegisterName) -> String {
        let registers = self.registers();
        match name {
            RegisterName::Tag(name) => {
                format!("{registers}{}/_tags/{}", name.repo(), name.tag())
            }
            RegisterName::Link(repo, link) => format!("{registers}{repo}/_links/{link}"),
        }
    }

    /// The register that is kept at a path.
    fn name(&self, path: &str) -> Option<RegisterName> {
        let path = path.strip_prefix(&self.registers())?;
        if let Some((repo, tag)) = path.split_once("/_tags/") {
            let name = TagName::new(repo.parse().ok()?, tag.parse().ok()?);
            return Some(name.into());
        }
        let (repo, link) = path.split_once("/_links/")?;
        let repo: RepoName = repo.parse().ok()?;
        Some(RegisterName::Link(repo, link.parse().ok()?))
    }

    fn link(&self, name: &TagName) -> String {
        let (prefix, repo, tag) = (&self.inner.prefix, name.repo(), name.tag());
        format!("{prefix}docker/registry/v2/repositories/{repo}/_manifests/tags/{tag}/current/link")
    }

    /// What is kept of a register, or why that cannot be read.
    async fn kept(
        &self,
        path: &str,
        name: &RegisterName,
    ) -> Result<Option<Result<TagState, String>>, BackendError> {
        let bytes = self.inner.storage.read_object(path, MOST).await?;
        Ok(bytes.map(|bytes| {
            let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
            if kept.name != name.to_string() {
                return Err(format!("it is of {}", kept.name));
            }
            if !kept.state.is_sound() {
                return Err("its history is out of bounds".to_owned());
            }
            Ok(kept.state)
        }))
    }

    /// Makes sure that it has a register as it is here, or something later. Whether it had not.
    pub(crate) async fn put(
        &self,
        name: &RegisterName,
        state: &TagState,
    ) -> Result<bool, BackendError> {
        let path = self.path(name);
        let state = match self.kept(&path, name).await? {
            None => state.clone(),
            Some(Ok(kept)) => {
                let merged = kept.merged(state);
                if merged == kept {
                    return Ok(false);
                }
                merged
            }
            Some(Err(reason)) => {
                tracing::warn!(path, reason, "what cannot be read is written anew");
                state.clone()
            }
        };
        let storage = &self.inner.storage;
        // Before the register, so that whoever finds that up to date need not look for this.
        if let RegisterName::Tag(name) = name {
            let link = self.link(name);
            match state.now.digest {
                Some(digest) => {
                    storage
                        .write_object(&link, digest.to_string().into())
                        .await?
                }
                None => storage.remove_object(&link).await?,
            }
        }
        let name = name.to_string();
        let bytes = serde_json::to_vec(&Kept { name, state });
        let bytes = bytes.map_err(|error| BackendError::Other(error.to_string()))?;
        storage.write_object(&path, bytes).await?;
        Ok(true)
    }

    /// Reads what is there and belongs to this build-index, once for each beginning. Whether that was done
    /// before.
    pub(super) async fn restore(&self, ring: &TagRing, founders: &[u64]) -> Result<bool, String> {
        let read_for = || {
            let read_for = self.inner.read_for.lock();
            read_for.unwrap_or_else(PoisonError::into_inner)
        };
        if read_for().as_deref() == Some(founders) {
            return Ok(true);
        }
        self.tell(Some("it reads the tags from the backend"));
        let (restored, unreadable) = match self.read_all(ring).await {
            Ok(counted) => counted,
            Err(error) => {
                self.tell(Some(
                    "the backend of the tags cannot be read yet: see the log",
                ));
                return Err(format!("the backend of the tags: {error}"));
            }
        };
        let kept = ring.here().keep(UNREADABLE_KEY, &unreadable).await;
        kept.map_err(|error| error.to_string())?;
        tracing::info!(
            restored,
            unreadable,
            "read the tags and links of this build-index from the backend"
        );
        self.tell(None);
        *read_for() = Some(founders.to_vec());
        self.inner.was_just_read.store(true, Ordering::Relaxed);
        Ok(false)
    }

    /// How many were read, and how many could not be.
    async fn read_all(&self, ring: &TagRing) -> Result<(u64, u64), String> {
        let failed = |error: BackendError| error.to_string();
        let paths = self.inner.storage.list_objects(&self.registers()).await;
        let found = paths.map_err(failed)?.map(|path| {
            let (backend, ring) = (self.clone(), ring.clone());
            async move { backend.find(&ring, path?).await }
        });
        let mut found = found.buffer_unordered(READS);
        let (mut restored, mut unreadable) = (0, 0);
        let mut page = Vec::new();
        while let Some(found) = found.next().await {
            match found.map_err(failed)? {
                Found::Nothing => {}
                Found::Unreadable { path, reason } => {
                    tracing::error!(path, reason, "an object of the backend cannot be read");
                    unreadable += 1;
                }
                Found::Register(name, state) => {
                    restored += 1;
                    page.push((name, state));
                }
            }
            if page.len() == STEP {
                take(ring.here(), std::mem::take(&mut page)).await?;
            }
            self.inner.read.store(restored, Ordering::Relaxed);
        }
        take(ring.here(), page).await?;
        Ok((restored, unreadable))
    }

    async fn find(&self, ring: &TagRing, path: String) -> Result<Found, BackendError> {
        let Some(name) = self.name(&path) else {
            let reason = "it is no path of a register".to_owned();
            return Ok(Found::Unreadable { path, reason });
        };
        if !ring.owns(&name) {
            return Ok(Found::Nothing);
        }
        Ok(match self.kept(&path, &name).await? {
            None => Found::Nothing,
            Some(Ok(state)) => Found::Register(name, state),
            Some(Err(reason)) => Found::Unreadable { path, reason },
        })
    }

    /// Registers that this build-index has read from it since its start.
    pub fn read(&self) -> u64 {
        self.inner.read.load(Ordering::Relaxed)
    }
}

async fn take(store: &TagStore, page: Vec<(RegisterName, TagState)>) -> Result<(), String> {
    let taken = store.restore(page).await;
    taken.map_err(|error| error.to_string())
}

/// How many objects of the backend could not be read when the cluster began.
pub(super) async fn unreadable(store: &TagStore) -> Result<u64, TagStoreError> {
    Ok(store.kept(UNREADABLE_KEY).await?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use kraken_proto::Digest;
    use kraken_proto::tags::record::{Change, Condition};

    use super::*;
    use crate::link::Link;

    fn backend(prefix: &str) -> TagBackend {
        TagBackend::new(OpendalBackend::memory(), prefix, "memory").unwrap()
    }

    fn set(state: Option<&TagState>, text: Option<&str>, millis: u64) -> TagState {
        let change = Change::Set {
            digest: text.map(|text| Digest::of(text.as_bytes())),
            condition: Condition::Any,
            is_immutable: false,
            attempted: Vec::new(),
            millis,
            cluster: "east".into(),
        };
        change.apply(state).unwrap().unwrap()
    }

    #[test]
    fn every_register_has_a_path_of_its_own() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let repo: RepoName = "a/b".parse().unwrap();
        let tag: TagName = "a/b:v1".parse().unwrap();
        let referrer = Link::Referrer {
            subject: one,
            manifest: two,
        };
        for prefix in ["", "x", "x/y/"] {
            let backend = backend(prefix);
            for name in [
                RegisterName::Tag(tag.clone()),
                RegisterName::Link(repo.clone(), Link::Manifest(one)),
                RegisterName::Link(repo.clone(), referrer),
            ] {
                assert_eq!(backend.name(&backend.path(&name)), Some(name));
            }
        }
        for path in ["registers/a/_tags/", "registers/a", "registers/A/_tags/b"] {
            assert_eq!(backend("").name(path), None, "{path}");
        }
        for wrong in ["/", "/a", "a//b", "../a", "a b", "a/./b"] {
            let made = TagBackend::new(OpendalBackend::memory(), wrong, "");
            assert!(made.is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_is_later_stays_and_the_link_goes_with_the_tag() {
        let backend = backend("x");
        let tag: TagName = "a/b:v1".parse().unwrap();
        let name = RegisterName::Tag(tag.clone());
        let first = set(None, Some("1"), 1);
        let second = set(Some(&first), Some("2"), 2);
        let removed = set(Some(&second), None, 3);
        let link = async || {
            let path = backend.link(&tag);
            let link = backend.inner.storage.read_object(&path, 99).await;
            link.unwrap().map(|it| String::from_utf8(it).unwrap())
        };
        let kept = async || backend.kept(&backend.path(&name), &name).await.unwrap();
        assert_eq!(kept().await, None);
        assert!(backend.put(&name, &second).await.unwrap());
        assert!(!backend.put(&name, &second).await.unwrap());
        assert!(!backend.put(&name, &first).await.unwrap());
        assert_eq!(kept().await, Some(Ok(second)));
        assert_eq!(link().await, Some(Digest::of(b"2").to_string()));
        assert!(backend.put(&name, &removed).await.unwrap());
        assert_eq!(kept().await, Some(Ok(removed.clone())));
        assert_eq!(link().await, None);
        let path = backend.path(&name);
        let broken = backend.inner.storage.write_object(&path, b"{".to_vec());
        broken.await.unwrap();
        assert!(kept().await.unwrap().is_err());
        assert!(backend.put(&name, &removed).await.unwrap());
        assert_eq!(kept().await, Some(Ok(removed)));
    }
}
