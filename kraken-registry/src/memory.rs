//! Blobs and tags in memory: for tests and for a first look. Nothing survives the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use kraken_proto::{Digest, Namespace};

use crate::link::{Link, LinkKind, Linked};
use crate::name::{RepoName, Tag};
use crate::sink::{BlobSink, BodyError, SinkError};
use crate::source::{BlobBody, BlobSource, SourceError};
use crate::tags::{LinkService, TagError, TagService};

/// Blobs in memory, of all namespaces alike. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryBlobs {
    inner: Arc<Mutex<Blobs>>,
    unavailable: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Blobs {
    blobs: HashMap<Digest, Bytes>,
    uploads: HashMap<String, BytesMut>,
    started: u64,
    announced: Vec<(Digest, u64)>,
}

impl MemoryBlobs {
    /// Adds a blob and returns its name.
    pub fn insert(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        lock(&self.inner).blobs.insert(digest, bytes);
        digest
    }

    /// Removes a blob; whether there was one.
    pub fn remove(&self, digest: Digest) -> bool {
        lock(&self.inner).blobs.remove(&digest).is_some()
    }

    /// How many uploads run.
    pub fn uploads(&self) -> usize {
        lock(&self.inner).uploads.len()
    }

    /// The uploads that began with their digest and length.
    pub fn announced(&self) -> Vec<(Digest, u64)> {
        lock(&self.inner).announced.clone()
    }

    /// From now on every operation fails, or works again: plays an outage.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.unavailable.store(unavailable, Ordering::SeqCst);
    }

    fn source(&self) -> Result<MutexGuard<'_, Blobs>, SourceError> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(SourceError::Unavailable(OUTAGE.to_string()));
        }
        Ok(lock(&self.inner))
    }

    fn sink(&self) -> Result<MutexGuard<'_, Blobs>, SinkError> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(SinkError::Unavailable(OUTAGE.to_string()));
        }
        Ok(lock(&self.inner))
    }
}

impl BlobSource for MemoryBlobs {
    async fn stat(&self, _: &Namespace, digest: Digest) -> Result<Option<u64>, SourceError> {
        let length = self.source()?.blobs.get(&digest).map(Bytes::len);
        Ok(length.map(|length| length as u64))
    }

    async fn open(
        &self,
        _: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<BlobBody, SourceError> {
        let bytes = self.source()?.blobs.get(&digest).cloned();
        let bytes = bytes.ok_or(SourceError::NotFound)?;
        let trim = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let (start, end) = (trim(range.start), trim(range.end));
        let part = bytes.slice(start..end.max(start));
        let chunks: Vec<_> = (0..part.len())
            .step_by(CHUNK)
            .map(|at| Ok(part.slice(at..(at + CHUNK).min(part.len()))))
            .collect();
        let stream = stream::iter(chunks).boxed();
        Ok(BlobBody::new(bytes.len() as u64, stream))
    }
}

impl BlobSink for MemoryBlobs {
    async fn upload_start(&self, _: &Namespace) -> Result<String, SinkError> {
        let mut blobs = self.sink()?;
        blobs.started += 1;
        // Host, port and slash: what the id of a cluster may hold.
        let id = format!("memory:0/{}", blobs.started);
        blobs.uploads.insert(id.clone(), BytesMut::new());
        Ok(id)
    }

    async fn upload_start_known(
        &self,
        ns: &Namespace,
        digest: Digest,
        length: u64,
    ) -> Result<String, SinkError> {
        self.sink()?.announced.push((digest, length));
        self.upload_start(ns).await
    }

    async fn upload_len(&self, id: &str) -> Result<u64, SinkError> {
        let blobs = self.sink()?;
        let upload = blobs.uploads.get(id).ok_or(SinkError::Unknown)?;
        Ok(upload.len() as u64)
    }

    async fn upload_append(
        &self,
        id: &str,
        offset: u64,
        mut body: BoxStream<'static, Result<Bytes, BodyError>>,
    ) -> Result<u64, SinkError> {
        let mut len = self.upload_len(id).await?;
        if len != offset {
            return Err(SinkError::OffsetWrong { len });
        }
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            let mut blobs = self.sink()?;
            let upload = blobs.uploads.get_mut(id).ok_or(SinkError::Unknown)?;
            upload.extend_from_slice(&chunk);
            len = upload.len() as u64;
        }
        Ok(len)
    }

    async fn upload_commit(
        &self,
        id: &str,
        _: &Namespace,
        digest: Digest,
    ) -> Result<(), SinkError> {
        let mut blobs = self.sink()?;
        let bytes = blobs.uploads.remove(id).ok_or(SinkError::Unknown)?;
        if Digest::of(&bytes) != digest {
            return Err(SinkError::DigestMismatch);
        }
        blobs.blobs.insert(digest, bytes.freeze());
        Ok(())
    }

    async fn upload_abort(&self, id: &str) -> Result<(), SinkError> {
        let upload = self.sink()?.uploads.remove(id);
        upload.map(drop).ok_or(SinkError::Unknown)
    }
}

/// Tags in memory. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryTags {
    tags: Arc<Mutex<Repositories>>,
    links: Arc<Mutex<Links>>,
    unavailable: Arc<AtomicBool>,
}

/// Whether each is held, or was removed.
type Links = BTreeMap<(String, Link), bool>;
type Repositories = BTreeMap<String, BTreeMap<String, Digest>>;

impl MemoryTags {
    /// From now on every operation fails, or works again: plays an outage.
    pub fn set_unavailable(&self, unavailable: bool) {
        self.unavailable.store(unavailable, Ordering::SeqCst);
    }

    fn lock(&self) -> Result<MutexGuard<'_, Repositories>, TagError> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(TagError::Unavailable(OUTAGE.to_string()));
        }
        Ok(lock(&self.tags))
    }
}

impl TagService for MemoryTags {
    async fn get(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, TagError> {
        let tags = self.lock()?;
        let digest = tags
            .get(repo.as_str())
            .and_then(|tags| tags.get(tag.as_str()));
        Ok(digest.copied())
    }

    async fn put(&self, repo: &RepoName, tag: &Tag, digest: Digest) -> Result<(), TagError> {
        let mut tags = self.lock()?;
        let repo = tags.entry(repo.to_string()).or_default();
        repo.insert(tag.to_string(), digest);
        Ok(())
    }

    async fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let tags = self.lock()?;
        let repo = tags.get(repo.as_str());
        Ok(repo.map_or_else(Vec::new, |tags| page(tags.keys(), n, last)))
    }

    async fn repositories(&self, n: usize, last: Option<&str>) -> Result<Vec<String>, TagError> {
        Ok(page(self.lock()?.keys(), n, last))
    }

    async fn delete_at(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> Result<bool, TagError> {
        match self.get(repo, tag).await? {
            Some(found) if found == digest => self.delete(repo, tag).await,
            _ => Ok(false),
        }
    }

    async fn delete(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagError> {
        let mut tags = self.lock()?;
        let Some(of_repo) = tags.get_mut(repo.as_str()) else {
            return Ok(false);
        };
        let found = of_repo.remove(tag.as_str()).is_some();
        if of_repo.is_empty() {
            tags.remove(repo.as_str());
        }
        Ok(found)
    }
}

impl LinkService for MemoryTags {
    async fn link(&self, repo: &RepoName, link: Link) -> Result<Linked, TagError> {
        drop(self.lock()?);
        let links = lock(&self.links);
        Ok(match links.get(&(repo.to_string(), link)) {
            None => Linked::Never,
            Some(true) => Linked::Held,
            Some(false) => Linked::Removed,
        })
    }

    async fn set_link(&self, repo: &RepoName, link: Link, is_held: bool) -> Result<(), TagError> {
        drop(self.lock()?);
        lock(&self.links).insert((repo.to_string(), link), is_held);
        Ok(())
    }

    async fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> Result<Vec<Digest>, TagError> {
        drop(self.lock()?);
        let links = lock(&self.links);
        let of = links.iter().filter(|((of, link), is_held)| {
            **is_held && of == repo.as_str() && link.kind() == kind
        });
        let digests = of.map(|((_, link), _)| link.digest());
        let behind = digests.filter(|digest| after.is_none_or(|after| *digest > after));
        Ok(behind.take(n).collect())
    }

    async fn tags_of(&self, repo: &RepoName, digest: Digest) -> Result<Vec<Tag>, TagError> {
        let tags = self.lock()?;
        let of = tags.get(repo.as_str()).into_iter().flatten();
        let found = of.filter(|(_, found)| **found == digest);
        Ok(found.filter_map(|(tag, _)| tag.parse().ok()).collect())
    }

    async fn is_known(&self, repo: &RepoName) -> Result<bool, TagError> {
        let is_tagged = self.lock()?.contains_key(repo.as_str());
        let links = lock(&self.links);
        Ok(is_tagged || links.keys().any(|(of, _)| of == repo.as_str()))
    }
}

fn page<'a>(names: impl Iterator<Item = &'a String>, n: usize, last: Option<&str>) -> Vec<String> {
    let behind = names.filter(|name| last.is_none_or(|last| name.as_str() > last));
    behind.take(n).cloned().collect()
}

/// No critical section leaves the maps half changed, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const OUTAGE: &str = "an outage is being played";
const CHUNK: usize = 64 << 10;
