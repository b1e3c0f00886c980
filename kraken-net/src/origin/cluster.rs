//! Asking whichever origin has a blob.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use kraken_proto::ring::health::HealthConfig;
use kraken_proto::{Digest, MetaInfo, Namespace};

use super::api::{BlobRead, Copies, Prefetch};
use super::appending::{Patience, append};
use super::client::OriginClient;
use super::members::{Members, RingMember};
use crate::http::health::Health;
use crate::http::{ApiError, ByteStream, HttpClient};

/// A client of all origins of a cluster. Questions about a blob go to its owners in ring order and
/// fall through to the others. Clones share the memory of who failed lately.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use kraken_net::Identity;
/// use kraken_net::http::HttpClient;
/// use kraken_net::origin::{OriginCluster, RingMember};
/// use kraken_proto::Digest;
///
/// let identity = Identity::from_files("proxy.crt", "proxy.key", "ca.crt")?;
/// let members = [RingMember::new("origin-1", "https://origin-1:7605".parse()?)];
/// let origins = OriginCluster::new(members, HttpClient::new(Some(&identity))?, 3);
/// let release = &b"a release"[..];
/// let digest = Digest::of(release);
/// origins.put(&"releases".parse()?, digest, release.into()).await?; // on most of its owners' disks
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct OriginCluster {
    inner: Arc<Inner>,
}

struct Inner {
    members: Members,
    /// Who failed so lately that no probe has noticed.
    health: Health,
    next_upload: AtomicUsize,
}

impl OriginCluster {
    /// A client of these origins. Each blob is owned by the first `replicas` in its order.
    pub fn new(
        origins: impl IntoIterator<Item = RingMember>,
        http: HttpClient,
        replicas: usize,
    ) -> Self {
        let members: Vec<_> = origins.into_iter().collect();
        let health = HealthConfig::default();
        Self {
            inner: Arc::new(Inner {
                members: Members::new(None, &members, Some(http), (replicas, health)),
                health: Health::default(),
                next_upload: AtomicUsize::new(0),
            }),
        }
    }

    /// Asks the origins for ever whether they are there, so that one that does not answer keeps nobody
    /// waiting. For a process that lives on, in a task of its own.
    pub async fn watch(&self) {
        self.inner.members.probe().await;
    }

    /// From now on these are the origins.
    pub fn set(&self, origins: impl IntoIterator<Item = RingMember>) {
        let members: Vec<_> = origins.into_iter().collect();
        self.inner.members.set(&members);
    }

    /// The names of all origins.
    pub fn names(&self) -> Vec<String> {
        self.inner.members.all()
    }

    /// How many origins answer, as far as [`OriginCluster::watch`] has looked.
    pub fn up(&self) -> usize {
        let names = self.names();
        names
            .iter()
            .filter(|it| self.inner.members.is_up(it))
            .count()
    }

    /// The names of a blob's owners, in ring order.
    pub fn owners(&self, digest: &Digest) -> Vec<String> {
        self.inner.members.owners(*digest)
    }

    /// The client of one origin.
    pub fn origin(&self, name: &str) -> Option<OriginClient> {
        self.inner.members.client(name)
    }

    /// A blob's length in bytes.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when so many origins said so that a blob which exists would have been
    /// found; [`ApiError::Unavailable`] when none has it and a quorum could not be asked.
    pub async fn stat(&self, namespace: &Namespace, digest: Digest) -> Result<u64, ApiError> {
        self.length(namespace, digest, Copies::Coming).await
    }

    /// The same of a blob that is there as a whole: one that is on its way in may yet break off.
    ///
    /// # Errors
    /// As [`OriginCluster::stat`].
    pub async fn stat_whole(&self, namespace: &Namespace, digest: Digest) -> Result<u64, ApiError> {
        self.length(namespace, digest, Copies::Whole).await
    }

    async fn length(
        &self,
        namespace: &Namespace,
        digest: Digest,
        copies: Copies,
    ) -> Result<u64, ApiError> {
        let ask = |origin: OriginClient| async move {
            let length = origin.stat(namespace, digest, copies).await?;
            length.ok_or(ApiError::NotFound)
        };
        Ok(self.inner.first(&digest, ask).await?.1)
    }

    /// Lets a blob's first owner fetch it, unless that has it.
    ///
    /// # Errors
    /// As [`OriginCluster::stat`].
    pub async fn prefetch(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Prefetch, ApiError> {
        let ask = |origin: OriginClient| async move { origin.prefetch(namespace, digest).await };
        Ok(self.inner.first(&digest, ask).await?.1)
    }

    /// What a tag points to in the registry that the namespace's blobs come from. All who ask for the same
    /// ask the same origin, while that is there.
    ///
    /// # Errors
    /// As [`OriginCluster::stat`].
    pub async fn resolve(&self, namespace: &Namespace, tag: &str) -> Result<Digest, ApiError> {
        let place = Digest::of(format!("{namespace}:{tag}").as_bytes());
        let ask = |origin: OriginClient| async move { origin.resolve(namespace, tag).await };
        Ok(self.inner.first(&place, ask).await?.1)
    }

    /// A blob's metainfo.
    ///
    /// # Errors
    /// As [`OriginCluster::stat`].
    pub async fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        let ask = |origin: OriginClient| async move { origin.metainfo(namespace, digest).await };
        Ok(self.inner.first(&digest, ask).await?.1)
    }

    /// As much of a blob's metainfo as its first owner knows; see [`OriginClient::open_metainfo`].
    ///
    /// # Errors
    /// As [`OriginCluster::stat`]; [`ApiError::Damaged`].
    pub async fn open_metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        known: Option<&MetaInfo>,
    ) -> Result<MetaInfo, ApiError> {
        let ask = |origin: OriginClient| async move {
            origin.open_metainfo(namespace, digest, known).await
        };
        Ok(self.inner.first(&digest, ask).await?.1)
    }

    /// A blob's bytes, or those in `range`, whose end is cut to the blob's. When an origin breaks
    /// off, the stream goes on at the same byte from another. The bytes come from origins that
    /// verified them; whoever stores them checks them again.
    ///
    /// # Errors
    /// As [`OriginCluster::stat`], and [`ApiError::RangeInvalid`] for a range that holds no byte
    /// of the blob.
    pub async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, ApiError> {
        if let Some(range) = range.as_ref().filter(|range| range.is_empty()) {
            let length = self.stat(namespace, digest).await?;
            tracing::debug!(?range, "an empty range was asked for");
            return Err(ApiError::RangeInvalid { len: length });
        }
        let (source, blob) = self.inner.open(namespace, digest, range.clone()).await?;
        let part = range.unwrap_or(0..blob.length);
        let resumed = Resumed {
            cluster: self.inner.clone(),
            namespace: namespace.clone(),
            digest,
            at: part.start,
            end: part.end.min(blob.length),
            length: blob.length,
            source,
            body: blob.body,
            breaks: 0,
        };
        Ok(BlobRead {
            length: blob.length,
            body: resumed.stream(),
        })
    }

    /// Begins an upload at one of the origins, in turn, and returns that origin's name and the
    /// upload's id.
    ///
    /// # Errors
    /// No origin takes it: what the first one said, which is one that answers if there is any.
    pub async fn upload_start(&self) -> Result<(String, String), ApiError> {
        let mut failed = None;
        for (name, client) in self.inner.turn() {
            let started = self
                .inner
                .members
                .while_up(&name, client.upload_start())
                .await;
            match self.inner.remember(&name, started) {
                Ok(id) => return Ok((name, id)),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        Err(failed.unwrap_or_else(no_origins))
    }

    /// Begins an upload of a blob whose digest and length, in bytes, are known, at the first of its
    /// owners that takes it: there others look for it, and can have it while it comes.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when that origin has it; no origin takes it.
    pub async fn upload_start_known(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
    ) -> Result<(String, String), ApiError> {
        let mut failed = None;
        for (name, client) in self.inner.order(digest) {
            let started = client.upload_start_known(namespace, digest, length);
            let started = self.inner.members.while_up(&name, started).await;
            match self.inner.remember(&name, started) {
                Ok(id) => return Ok((name, id)),
                Err(error) if error.is_retryable() => drop(failed.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Err(failed.unwrap_or_else(no_origins))
    }

    /// How many bytes of an upload its origin has.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] for an origin or an upload that is not known.
    pub async fn upload_len(&self, origin: &str, id: &str) -> Result<u64, ApiError> {
        let client = self.inner.named(origin)?;
        let mut patience = Patience::new(id);
        loop {
            let len = self
                .inner
                .members
                .while_up(origin, client.upload_len(id))
                .await;
            match self.inner.remember(origin, len) {
                Err(error) => patience.wait(error).await?,
                len => return len,
            }
        }
    }

    /// Appends a body to an upload. An origin that restarts meanwhile is waited for, up to a minute, and
    /// gets what it lacks: whoever sends the body notices nothing.
    ///
    /// # Errors
    /// [`ApiError::RangeInvalid`] when `offset` is not the end; [`ApiError::NotFound`].
    pub async fn upload_append(
        &self,
        origin: &str,
        id: &str,
        offset: u64,
        body: ByteStream,
    ) -> Result<u64, ApiError> {
        // Failures are not held against the origin: they may be the body's.
        let client = self.inner.named(origin)?;
        append(&client, id, offset, body).await
    }

    /// Makes a blob of an upload: verified, durable on a quorum, its write-back queued.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] for a wrong digest; [`ApiError::NotFound`].
    pub async fn upload_commit(
        &self,
        origin: &str,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        let client = self.inner.named(origin)?;
        let mut patience = Patience::new(id);
        loop {
            let meta = client.upload_commit(id, namespace, digest);
            let meta = self.inner.members.while_up(origin, meta).await;
            match self.inner.remember(origin, meta) {
                // It may have happened: then it is said again. Owners that have been away for long are not
                // about to be back.
                Err(error) if self.inner.members.check_quorum().is_err() => return Err(error),
                Err(error) => patience.wait(error).await?,
                committed => return committed,
            }
        }
    }

    /// Throws an upload away.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub async fn upload_abort(&self, origin: &str, id: &str) -> Result<(), ApiError> {
        let aborted = self.inner.named(origin)?.upload_abort(id).await;
        self.inner.remember(origin, aborted)
    }

    /// Uploads bytes that are at hand, to one origin after the other until one takes them.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] when the bytes do not have that digest; otherwise the first
    /// origin's error.
    pub async fn put(
        &self,
        namespace: &Namespace,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<MetaInfo, ApiError> {
        let mut failed = None;
        for (name, client) in self.inner.turn() {
            let attempt = put_at(&client, namespace, digest, bytes.clone());
            let attempt = self.inner.members.while_up(&name, attempt).await;
            match self.inner.remember(&name, attempt) {
                Err(error) if error.is_retryable() => drop(failed.get_or_insert(error)),
                done => return done,
            }
        }
        Err(failed.unwrap_or_else(no_origins))
    }
}

impl fmt::Debug for OriginCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginCluster")
            .field("members", &self.inner.members)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// The first good answer about a blob, and who gave it.
    async fn first<T, F>(
        &self,
        digest: &Digest,
        ask: impl Fn(OriginClient) -> F,
    ) -> Result<(String, T), ApiError>
    where
        F: Future<Output = Result<T, ApiError>> + Send,
    {
        // A blob that exists is held by a quorum, or is in the backend that every origin asks: so
        // fewer silent origins than that cannot hide it.
        let quorum = self.members.replicas() / 2 + 1;
        let order = self.order(*digest);
        let mut unavailable = order.is_empty().then(no_origins);
        let (mut unasked, mut not_found) = (0, 0);
        let count = order.len();
        for (place, (name, client)) in order.into_iter().enumerate() {
            // Behind the first that is down all are: nobody waits for what they cannot change.
            let left = count - place;
            if not_found > 0 && unasked + left < quorum && !self.members.is_up(&name) {
                return Err(ApiError::NotFound);
            }
            let answer = self.members.while_up(&name, ask(client)).await;
            match self.remember(&name, answer) {
                Ok(answer) => return Ok((name, answer)),
                Err(ApiError::NotFound) => not_found += 1,
                // Another origin would only ask it too.
                Err(error @ ApiError::Behind { wait: Some(_), .. }) => return Err(error),
                Err(error) if error.is_retryable() => {
                    tracing::debug!(origin = name, %error, "an origin failed");
                    let what = format!("origin {name}: {error}");
                    unavailable = Some(match error {
                        ApiError::Behind { wait, .. } => ApiError::Behind { what, wait },
                        _ => ApiError::Unavailable(what),
                    });
                    unasked += 1;
                }
                Err(error) => return Err(error),
            }
        }
        match unavailable {
            Some(error) if unasked == 0 || unasked >= quorum => Err(error),
            _ => Err(ApiError::NotFound),
        }
    }

    async fn open(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> Result<(String, BlobRead), ApiError> {
        let ask = |origin: OriginClient| {
            let range = range.clone();
            async move { origin.read(namespace, digest, range).await }
        };
        self.first(&digest, ask).await
    }

    /// All origins, beginning with another one each time.
    fn turn(&self) -> Vec<(String, OriginClient)> {
        let mut names = self.members.all();
        let turn = self.next_upload.fetch_add(1, Ordering::Relaxed) % names.len().max(1);
        names.rotate_left(turn);
        let (there, away): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|it| self.members.is_up_to_stay(it));
        self.clients(there.into_iter().chain(away).collect())
    }

    /// All origins in a blob's order, those that failed lately behind the others.
    fn order(&self, digest: Digest) -> Vec<(String, OriginClient)> {
        self.clients(self.members.order(digest))
    }

    fn clients(&self, names: Vec<String>) -> Vec<(String, OriginClient)> {
        let order = self.health.order(names.iter().map(String::as_str));
        let client = |name: &str| Some((name.to_string(), self.members.client(name)?));
        order.into_iter().filter_map(client).collect()
    }

    fn named(&self, origin: &str) -> Result<OriginClient, ApiError> {
        self.members.client(origin).ok_or(ApiError::NotFound)
    }

    fn remember<T>(&self, name: &str, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        match &answer {
            // It answers itself.
            Err(ApiError::Behind { .. }) => self.health.answered(name),
            Err(error) if error.is_retryable() => self.health.failed(name),
            _ => self.health.answered(name),
        }
        answer
    }
}

async fn put_at(
    client: &OriginClient,
    namespace: &Namespace,
    digest: Digest,
    bytes: Bytes,
) -> Result<MetaInfo, ApiError> {
    let id = client.upload_start().await?;
    let body = futures::stream::iter([Ok(bytes)]).boxed();
    client.upload_append(&id, 0, body).await?;
    client.upload_commit(&id, namespace, digest).await
}

fn no_origins() -> ApiError {
    ApiError::Unavailable("no origin is configured".to_string())
}

/// A read that survives the origin it comes from.
struct Resumed {
    cluster: Arc<Inner>,
    namespace: Namespace,
    digest: Digest,
    at: u64,
    end: u64,
    length: u64,
    source: String,
    body: ByteStream,
    /// Breaks since the last byte.
    breaks: usize,
}

impl Resumed {
    fn stream(self) -> ByteStream {
        futures::stream::unfold(Some(self), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(state))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.at < self.end {
            match self.body.next().await {
                Some(Ok(mut chunk)) => {
                    chunk.truncate(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
                    self.at += chunk.len() as u64;
                    if !chunk.is_empty() {
                        self.breaks = 0;
                        return Ok(Some(chunk));
                    }
                }
                Some(Err(error)) => self.resume(error).await?,
                None => {
                    let early = io::ErrorKind::UnexpectedEof;
                    self.resume(io::Error::new(early, "the body ended early"))
                        .await?;
                }
            }
        }
        Ok(None)
    }

    async fn resume(&mut self, error: io::Error) -> io::Result<()> {
        tracing::debug!(origin = %self.source, %error, at = self.at, digest = ?self.digest, "a read broke off");
        self.cluster.health.failed(&self.source);
        self.breaks += 1;
        if self.breaks > self.cluster.members.count() {
            return Err(error);
        }
        let rest = Some(self.at..self.end);
        let opened = self.cluster.open(&self.namespace, self.digest, rest).await;
        let (source, blob) = opened.map_err(io::Error::other)?;
        if blob.length != self.length {
            return Err(io::Error::other(format!(
                "origins disagree on the length of {}: {} and {}",
                self.digest, self.length, blob.length
            )));
        }
        (self.source, self.body) = (source, blob.body);
        Ok(())
    }
}
