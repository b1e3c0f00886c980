//! Asking whichever origin has a blob.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use kraken_proto::{Digest, Member, MetaInfo, Namespace, Ring};

use super::api::BlobRead;
use super::client::OriginClient;
use crate::http::health::Health;
use crate::http::{ApiError, BaseUrl, ByteStream, HttpClient};

/// A client of all origins of a cluster. Questions about a blob go to its owners in ring order and
/// fall through to the others. Clones share the memory of who failed lately.
#[derive(Clone)]
pub struct OriginCluster {
    inner: Arc<Inner>,
}

struct Inner {
    ring: Ring,
    origins: BTreeMap<String, OriginClient>,
    replicas: usize,
    health: Health,
    next_upload: AtomicUsize,
}

impl OriginCluster {
    /// A client of these origins: names, which place the blobs and stay when an origin moves, and
    /// base URLs. Each blob is owned by the first `replicas` in its order.
    pub fn new(
        origins: impl IntoIterator<Item = (String, BaseUrl)>,
        http: HttpClient,
        replicas: usize,
    ) -> Self {
        let origins: BTreeMap<_, _> = origins
            .into_iter()
            .map(|(name, url)| (name, OriginClient::new(url, http.clone())))
            .collect();
        Self {
            inner: Arc::new(Inner {
                ring: Ring::new(origins.keys().map(Member::new)),
                origins,
                replicas,
                health: Health::default(),
                next_upload: AtomicUsize::new(0),
            }),
        }
    }

    /// The names of a blob's owners, in ring order.
    pub fn owners(&self, digest: &Digest) -> Vec<&str> {
        self.inner.ring.owners(digest, self.inner.replicas)
    }

    /// The client of one origin.
    pub fn origin(&self, name: &str) -> Option<&OriginClient> {
        self.inner.origins.get(name)
    }

    /// A blob's length in bytes.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when so many origins said so that a blob which exists would have been
    /// found; [`ApiError::Unavailable`] when none has it and a quorum could not be asked.
    pub async fn stat(&self, namespace: &Namespace, digest: Digest) -> Result<u64, ApiError> {
        let ask = |origin: OriginClient| async move {
            let length = origin.stat(namespace, digest, false).await?;
            length.ok_or(ApiError::NotFound)
        };
        Ok(self.inner.first(&digest, ask).await?.1)
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
    /// No origin takes it.
    pub async fn upload_start(&self) -> Result<(String, String), ApiError> {
        let mut error = no_origins();
        for name in self.inner.turn() {
            let started = self.inner.origins[name].upload_start().await;
            match self.inner.remember(name, started) {
                Ok(id) => return Ok((name.to_string(), id)),
                Err(it) => error = it,
            }
        }
        Err(error)
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
        let mut error = no_origins();
        let ranked = self.inner.ring.ranked(&digest);
        let names = ranked.into_iter().map(|member| member.name.as_str());
        for name in self.inner.health.order(names) {
            let origin = &self.inner.origins[name];
            let started = origin.upload_start_known(namespace, digest, length).await;
            match self.inner.remember(name, started) {
                Ok(id) => return Ok((name.to_string(), id)),
                Err(it) if it.is_retryable() => error = it,
                Err(it) => return Err(it),
            }
        }
        Err(error)
    }

    /// How many bytes of an upload its origin has.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] for an origin or an upload that is not known.
    pub async fn upload_len(&self, origin: &str, id: &str) -> Result<u64, ApiError> {
        let len = self.inner.named(origin)?.upload_len(id).await;
        self.inner.remember(origin, len)
    }

    /// Appends a body to an upload; see [`OriginClient::upload_append`].
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
        client.upload_append(id, offset, body).await
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
        let meta = client.upload_commit(id, namespace, digest).await;
        self.inner.remember(origin, meta)
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
    /// [`ApiError::BadRequest`] when the bytes do not have that digest; otherwise the last
    /// origin's error.
    pub async fn put(
        &self,
        namespace: &Namespace,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<MetaInfo, ApiError> {
        let mut error = no_origins();
        for name in self.inner.turn() {
            let client = &self.inner.origins[name];
            let attempt = put_at(client, namespace, digest, bytes.clone()).await;
            match self.inner.remember(name, attempt) {
                Err(it) if it.is_retryable() => error = it,
                done => return done,
            }
        }
        Err(error)
    }
}

impl fmt::Debug for OriginCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginCluster")
            .field("origins", &self.inner.origins.keys())
            .field("replicas", &self.inner.replicas)
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
        let ranked = self.ring.ranked(digest);
        let names = ranked.into_iter().map(|member| member.name.as_str());
        let mut unavailable = self.origins.is_empty().then(no_origins);
        let mut unasked = 0;
        for name in self.health.order(names) {
            let answer = ask(self.origins[name].clone()).await;
            match self.remember(name, answer) {
                Ok(answer) => return Ok((name.to_string(), answer)),
                Err(ApiError::NotFound) => {}
                Err(error) if error.is_retryable() => {
                    tracing::debug!(origin = name, %error, "an origin failed");
                    let told = format!("origin {name}: {error}");
                    unavailable = Some(ApiError::Unavailable(told));
                    unasked += 1;
                }
                Err(error) => return Err(error),
            }
        }
        // A blob that exists is held by a quorum, or is in the backend that every origin asks: so
        // fewer silent origins than that cannot hide it.
        let quorum = self.replicas.min(self.origins.len()) / 2 + 1;
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
    fn turn(&self) -> Vec<&str> {
        let names: Vec<_> = self.origins.keys().map(String::as_str).collect();
        let turn = self.next_upload.fetch_add(1, Ordering::Relaxed) % names.len().max(1);
        let (later, first) = names.split_at(turn);
        self.health.order(first.iter().chain(later).copied())
    }

    fn named(&self, origin: &str) -> Result<&OriginClient, ApiError> {
        self.origins.get(origin).ok_or(ApiError::NotFound)
    }

    fn remember<T>(&self, name: &str, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        match &answer {
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
        if self.breaks > self.cluster.origins.len() {
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
