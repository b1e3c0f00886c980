//! Asking trackers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use http::{HeaderValue, Method, header};
use kraken_proto::tracker::report::HostReport;
use kraken_proto::{
    AnnounceBlob, AnnounceReply, AnnounceRequest, Digest, Member, MetaInfo, Namespace, Ring,
};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::reports::{self, Deaf};
use super::server::MetaInfoQuery;
use crate::discovery::{Discovery, DiscoveryError};
use crate::http::client::{READ_IDLE, request, request_with};
use crate::http::error::ApiError;
use crate::http::health::Health;
use crate::http::path::segment;
use crate::http::{BaseUrl, BaseUrlError, HttpBody, HttpClient, HttpResponse};
use crate::origin::client::FETCH_PATIENCE;
use crate::trace_span;

/// The longest reply to an announce: 256 handouts of 100 peers at 225 bytes make 6 MiB.
const MAX_REPLY: usize = 8 << 20;
/// Announces at once to trackers that are only told.
const MAX_TELLING: usize = 16;
/// How long a tracker may think about an announce; it only looks into its memory.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(5);

/// [`Discovery`] by trackers. Each blob belongs to one of them, chosen by rendezvous hashing over
/// the digest; when that one fails, the next in the blob's order is asked. That one is told of every
/// announce, too, so that it knows the blob's peers before it is asked. Clones share the memory of who
/// failed lately.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use kraken_net::Identity;
/// use kraken_net::announce::TrackerClient;
/// use kraken_net::http::HttpClient;
///
/// let identity = Identity::from_files("host.crt", "host.key", "ca.crt")?;
/// let http = HttpClient::new(Some(&identity))?;
/// let trackers = TrackerClient::new(["https://tracker-1:7601", "https://tracker-2:7601"], http)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TrackerClient {
    current: Arc<RwLock<Arc<Inner>>>,
}

struct Inner {
    ring: Ring,
    urls: BTreeMap<String, BaseUrl>,
    http: HttpClient,
    health: Arc<Health>,
    /// Announces on their way to trackers that are only told.
    telling: Arc<Semaphore>,
    /// Trackers that want no reports, or do not answer to them.
    deaf: Arc<Deaf>,
}

impl Inner {
    fn table<T: AsRef<str>>(
        trackers: impl IntoIterator<Item = T>,
    ) -> Result<(Ring, BTreeMap<String, BaseUrl>), BaseUrlError> {
        let mut urls = BTreeMap::new();
        for tracker in trackers {
            let url: BaseUrl = tracker.as_ref().parse()?;
            urls.insert(url.to_string(), url);
        }
        Ok((Ring::new(urls.keys().map(Member::new)), urls))
    }
}

impl TrackerClient {
    /// A client of the trackers at these base URLs. Every host must use the same texts for the
    /// same trackers, because they decide which blob belongs to which.
    ///
    /// # Errors
    /// A text is no URL.
    pub fn new<T: AsRef<str>>(
        trackers: impl IntoIterator<Item = T>,
        http: HttpClient,
    ) -> Result<Self, BaseUrlError> {
        let (ring, urls) = Inner::table(trackers)?;
        let inner = Inner {
            ring,
            urls,
            http,
            health: Arc::default(),
            telling: Arc::new(Semaphore::new(MAX_TELLING)),
            deaf: Arc::default(),
        };
        Ok(Self {
            current: Arc::new(RwLock::new(Arc::new(inner))),
        })
    }

    /// From now on these are the trackers; what is being asked goes on with those of before.
    ///
    /// # Errors
    /// A text is no URL; nothing has changed then.
    pub fn set<T: AsRef<str>>(
        &self,
        trackers: impl IntoIterator<Item = T>,
    ) -> Result<(), BaseUrlError> {
        let (ring, urls) = Inner::table(trackers)?;
        let before = self.inner();
        let inner = Inner {
            ring,
            urls,
            http: before.http.clone(),
            health: before.health.clone(),
            telling: before.telling.clone(),
            deaf: before.deaf.clone(),
        };
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(inner);
        Ok(())
    }

    /// The trackers' base URLs.
    pub fn urls(&self) -> Vec<BaseUrl> {
        self.inner().urls.values().cloned().collect()
    }

    /// Whether the tracker is asked last for now.
    #[cfg(test)]
    pub(super) fn has_failed(&self, tracker: &str) -> bool {
        self.inner().health.has_failed(tracker)
    }

    fn inner(&self) -> Arc<Inner> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for TrackerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackerClient")
            .field("trackers", &self.inner().urls.keys())
            .finish_non_exhaustive()
    }
}

impl Discovery for TrackerClient {
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceReply, DiscoveryError> {
        let inner = self.inner();
        Self::tell_the_next(&inner, &request);
        let mut round = Round::new(&inner, request.blobs);
        let mut merged: Option<AnnounceReply> = None;
        // Each round loses at least one tracker or is the last.
        while !round.groups.is_empty() {
            let asks = round.groups.iter().map(|(tracker, blobs)| {
                let request = AnnounceRequest {
                    peer: request.peer.clone(),
                    blobs: blobs.clone(),
                };
                inner.announce_to(tracker, request)
            });
            let answers = join_all(asks).await;
            for reply in round.next(answers) {
                merged = Some(match merged.take() {
                    Some(before) => merge(before, reply),
                    None => reply,
                });
            }
        }
        merged.ok_or_else(|| round.error())
    }

    async fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, DiscoveryError> {
        let asked = Asked::Whole;
        let meta = self.inner().metainfo(namespace, digest, &asked).await?;
        if meta.is_whole() {
            Ok(meta)
        } else {
            let reason = "a tracker gave an open metainfo where a whole one was asked for";
            Err(DiscoveryError::Refused(reason.to_string()))
        }
    }

    async fn open_metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        known: Option<MetaInfo>,
    ) -> Result<MetaInfo, DiscoveryError> {
        let asked = Asked::Open(known);
        self.inner().metainfo(namespace, digest, &asked).await
    }

    async fn report(&self, report: HostReport) -> Result<Option<Duration>, DiscoveryError> {
        let inner = self.inner();
        reports::tell(&inner.http, inner.urls.values(), &inner.deaf, &report).await
    }
}

impl TrackerClient {
    /// Tells those who are asked next, should those fail that are asked now; nobody waits for it.
    fn tell_the_next(inner: &Arc<Inner>, request: &AnnounceRequest) {
        let mut groups = BTreeMap::<String, Vec<AnnounceBlob>>::new();
        for blob in &request.blobs {
            // One that failed lately stands last: with two trackers that is the second.
            let next = inner.order(&blob.digest).get(1).copied();
            if let Some(next) = next.filter(|next| !inner.health.has_failed(next)) {
                groups
                    .entry(next.to_string())
                    .or_default()
                    .push(blob.clone());
            }
        }
        for (tracker, blobs) in groups {
            let announce = AnnounceRequest {
                peer: request.peer.clone(),
                blobs,
            };
            let Ok(permit) = inner.telling.clone().try_acquire_owned() else {
                // They are slow to hear: the next announce tells as much.
                return;
            };
            let inner = inner.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let told = inner
                    .post(&tracker, "/announce?quiet=true", &announce)
                    .await;
                if let Err(error) = told {
                    tracing::debug!(tracker, %error, "a tracker was not told");
                }
            });
        }
    }
}

impl Inner {
    /// The trackers in the order in which to ask them about `digest`.
    fn order(&self, digest: &Digest) -> Vec<&str> {
        let ranked = self.ring.ranked(digest);
        self.health
            .order(ranked.into_iter().map(|member| member.name.as_str()))
    }

    async fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        asked: &Asked,
    ) -> Result<MetaInfo, DiscoveryError> {
        let mut last = no_trackers();
        for tracker in self.order(&digest) {
            let answer = self.metainfo_from(tracker, namespace, digest, asked).await;
            let reason = match answer {
                Ok(meta) => return Ok(meta),
                // The tracker asked every origin that could have it.
                Err(ApiError::NotFound) => return Err(DiscoveryError::NotFound(digest)),
                Err(ApiError::Damaged(reason)) => {
                    return Err(DiscoveryError::Damaged { digest, reason });
                }
                // Another tracker would only ask the same origins.
                Err(ApiError::Behind { what, .. }) => {
                    return Err(DiscoveryError::Unavailable(what));
                }
                Err(error) if error.is_retryable() => error.to_string(),
                Err(error) => return Err(DiscoveryError::Refused(error.to_string())),
            };
            last = DiscoveryError::Unavailable(reason);
        }
        Err(last)
    }

    async fn announce_to(
        &self,
        tracker: &str,
        announce: AnnounceRequest,
    ) -> Result<AnnounceReply, ApiError> {
        let answer = async {
            let answer = self.post(tracker, "/announce", &announce).await?;
            answer.json(MAX_REPLY).await
        };
        self.remember(tracker, answer.await)
    }

    async fn post(
        &self,
        tracker: &str,
        path: &str,
        announce: &AnnounceRequest,
    ) -> Result<HttpResponse, ApiError> {
        let body = serde_json::to_vec(announce).expect("an announce has string keys only");
        let url = self.urls[tracker].join(path);
        let mut post = request_with(Method::POST, url, HttpBody::Bytes(body.into()))?;
        let json = HeaderValue::from_static("application/json");
        post.headers_mut().insert(header::CONTENT_TYPE, json);
        let answer = self.http.send_within(post, ANNOUNCE_PATIENCE).await?;
        answer.successful().await
    }

    async fn metainfo_from(
        &self,
        tracker: &str,
        namespace: &Namespace,
        digest: Digest,
        asked: &Asked,
    ) -> Result<MetaInfo, ApiError> {
        let path = format!(
            "/namespace/{}/blobs/{digest}/metainfo{}",
            segment(namespace.as_str()),
            asked.query()
        );
        let get = request(Method::GET, self.urls[tracker].join(&path))?;
        let answer = async {
            let patience = asked.patience();
            let answer = self
                .http
                .send_within(get, patience)
                .await?
                .successful()
                .await?;
            let body = answer.bytes(MetaInfo::MAX_ENCODED).await?;
            read_metainfo(&body, digest, asked.known())
        };
        let span = trace_span!("metainfo", otel.kind = "client", server.address = tracker);
        self.remember(tracker, answer.instrument(span).await)
    }

    fn remember<T>(&self, tracker: &str, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        match &answer {
            // That is about this host, or the storage, and not about the tracker.
            Err(ApiError::TooMany(_) | ApiError::Behind { .. }) => self.health.answered(tracker),
            Err(error) if error.is_retryable() => {
                tracing::debug!(tracker, %error, "a tracker failed");
                self.health.failed(tracker);
            }
            _ => self.health.answered(tracker),
        }
        answer
    }
}

/// The blobs of an announce on their way through the trackers: who is asked next about which.
struct Round<'a> {
    inner: &'a Inner,
    groups: BTreeMap<&'a str, Vec<AnnounceBlob>>,
    failed: Vec<&'a str>,
    unavailable: Option<ApiError>,
    refused: Option<ApiError>,
}

impl<'a> Round<'a> {
    fn new(inner: &'a Inner, blobs: Vec<AnnounceBlob>) -> Self {
        let mut round = Self {
            inner,
            groups: BTreeMap::new(),
            failed: Vec::new(),
            unavailable: None,
            refused: None,
        };
        if blobs.is_empty() {
            // A host without blobs still learns when to come again, from anyone.
            let any = inner.order(&Digest::from_bytes([0; 32])).first().copied();
            round
                .groups
                .extend(any.map(|tracker| (tracker, Vec::new())));
        }
        round.assign(blobs);
        round
    }

    /// Puts each blob to the first tracker in its order that has not failed in this announce.
    fn assign(&mut self, blobs: Vec<AnnounceBlob>) {
        for blob in blobs {
            let order = self.inner.order(&blob.digest);
            let next = order.into_iter().find(|name| !self.failed.contains(name));
            if let Some(tracker) = next {
                self.groups.entry(tracker).or_default().push(blob);
            }
        }
    }

    /// Takes the answers of the groups, in their order, and regroups what has no answer.
    fn next(&mut self, answers: Vec<Result<AnnounceReply, ApiError>>) -> Vec<AnnounceReply> {
        let mut replies = Vec::new();
        let mut again = Vec::new();
        for ((tracker, blobs), answer) in std::mem::take(&mut self.groups).into_iter().zip(answers)
        {
            match answer {
                Ok(reply) => replies.push(reply),
                Err(error) if error.is_retryable() => {
                    self.failed.push(tracker);
                    self.unavailable = Some(error);
                    again.extend(blobs);
                }
                Err(error) => {
                    tracing::warn!(tracker, %error, "an announce was refused");
                    self.refused = Some(error);
                }
            }
        }
        self.assign(again);
        replies
    }

    fn error(&self) -> DiscoveryError {
        match (&self.refused, &self.unavailable) {
            (Some(error), _) => DiscoveryError::Refused(error.to_string()),
            (None, Some(error)) => DiscoveryError::Unavailable(error.to_string()),
            (None, None) => no_trackers(),
        }
    }
}

/// Two replies as one. The earlier interval counts, so that no tracker forgets the host.
fn merge(mut one: AnnounceReply, other: AnnounceReply) -> AnnounceReply {
    one.interval_ms = one.interval_ms.min(other.interval_ms);
    one.handouts.extend(other.handouts);
    one
}

/// How much of a metainfo is asked for.
pub(crate) enum Asked {
    /// All of it, which may take as long as an origin takes the blob in.
    Whole,
    /// What is there beyond what is known.
    Open(Option<MetaInfo>),
}

impl Asked {
    fn known(&self) -> Option<&MetaInfo> {
        match self {
            Self::Whole => None,
            Self::Open(known) => known.as_ref(),
        }
    }

    fn query(&self) -> String {
        match self {
            Self::Whole => String::new(),
            Self::Open(known) => MetaInfoQuery::open(known.as_ref()),
        }
    }

    fn patience(&self) -> Duration {
        match self {
            Self::Whole => FETCH_PATIENCE,
            Self::Open(_) => READ_IDLE,
        }
    }
}

/// The metainfo in a body, an answer to somebody who knows `known`; it must be the one that was
/// asked for.
pub(crate) fn read_metainfo(
    body: &[u8],
    digest: Digest,
    known: Option<&MetaInfo>,
) -> Result<MetaInfo, ApiError> {
    let meta = MetaInfo::decode_after(body, known)
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    if meta.digest() == digest {
        Ok(meta)
    } else {
        let found = meta.digest();
        Err(ApiError::Internal(format!(
            "the metainfo is of {found}, not of {digest}"
        )))
    }
}

fn no_trackers() -> DiscoveryError {
    DiscoveryError::Unavailable("no tracker is configured".to_string())
}
