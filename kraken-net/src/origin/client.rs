//! Asking one origin.

use std::ops::Range;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use kraken_proto::{Digest, MetaInfo, Namespace, PeerInfo};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::{BlobRead, Copies, Prefetch};
use super::garbage::{GarbageAsked, GarbagePage, Places};
use super::holdings::{Digests, Holdings, HoldingsAsked};
use super::{LEAVING, LOCATIONS, UPLOAD_ID, UPLOAD_OFFSET};
use crate::announce::client::read_metainfo;
use crate::announce::server::MetaInfoQuery;
use crate::http::client::{READ_IDLE, request, request_with};
use crate::http::error::total_of;
use crate::http::path::segment;
use crate::http::{ApiError, BaseUrl, ByteStream, HttpBody, HttpClient, HttpResponse};

/// How long an origin may work on a commit before it answers: it makes the blob durable and copies
/// it to a quorum, which for 256 GiB at 300 MB/s takes a quarter of an hour.
const COMMIT_PATIENCE: Duration = Duration::from_mins(15);
/// How long an origin may fetch a blob from its backend before it answers. Going to another origin
/// sooner would have that one fetch it as well.
pub(crate) const FETCH_PATIENCE: Duration = Duration::from_mins(15);
/// How long an origin may look through all that it holds.
const HOLDINGS_PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer about what is held: a thousand blobs with some namespaces each.
const MAX_HOLDINGS: usize = 8 << 20;
/// The longest description of a peer, in bytes.
const MAX_PEER: usize = 4 << 10;

/// A client of one origin. Its calls are those of [`super::OriginApi`]; besides the errors named
/// there, all may answer [`ApiError::Unavailable`].
#[derive(Debug, Clone)]
pub struct OriginClient {
    url: BaseUrl,
    http: HttpClient,
}

impl OriginClient {
    /// A client of the origin at `url`.
    pub fn new(url: BaseUrl, http: HttpClient) -> Self {
        Self { url, http }
    }

    /// Where the origin is.
    pub fn url(&self) -> &BaseUrl {
        &self.url
    }

    /// The origin as a peer.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn peer(&self) -> Result<PeerInfo, ApiError> {
        let answer = self.ask(Method::GET, "/internal/peercontext").await?;
        answer.json(MAX_PEER).await
    }

    /// Whether the origin answers, and says that it hands its share over and leaves.
    ///
    /// # Errors
    /// It does not answer within `patience`.
    pub async fn is_leaving(&self, patience: Duration) -> Result<bool, ApiError> {
        let path = "/internal/peercontext";
        let answer = tokio::time::timeout(patience, self.ask(Method::GET, path)).await;
        let too_slow = |_| ApiError::Unavailable("no answer in time".into());
        Ok(answer.map_err(too_slow)??.header(LEAVING).is_some())
    }

    /// What the origin holds of another one's share.
    ///
    /// # Errors
    /// It cannot be asked, or cannot read its store.
    pub async fn holdings(&self, asked: &HoldingsAsked) -> Result<Holdings, ApiError> {
        self.post("/internal/ring/holdings", asked).await
    }

    /// Which of these blobs the origin holds whole, or had and let go, as they are in the backend.
    ///
    /// # Errors
    /// It cannot be asked, or cannot read its store.
    pub async fn holds(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, ApiError> {
        let held: Digests = self
            .post("/internal/ring/holds", &Digests { digests })
            .await?;
        Ok(held.digests)
    }

    /// Does a step of a collector of garbage, and says with which blobs.
    ///
    /// # Errors
    /// It cannot be asked, or cannot do it.
    pub async fn garbage(&self, asked: &GarbageAsked) -> Result<Vec<Digest>, ApiError> {
        let done: Digests = self.post("/internal/garbage", asked).await?;
        Ok(done.digests)
    }

    /// Up to [`MOST`](super::MOST) blobs that it or a storage holds whole, in the order of their digests.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the storage cannot tell; it cannot be asked.
    pub async fn garbage_page(&self, asked: &GarbagePage) -> Result<Vec<Digest>, ApiError> {
        let page: Digests = self.post("/internal/garbage/page", asked).await?;
        Ok(page.digests)
    }

    /// The numbers of the storages that keep these namespaces' blobs.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn places(&self, namespaces: Vec<Namespace>) -> Result<Vec<Option<usize>>, ApiError> {
        self.post("/internal/garbage/places", &Places { namespaces })
            .await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).expect("what is asked has string keys only");
        let url = self.url.join(path);
        let mut post = request_with(Method::POST, url, HttpBody::Bytes(body.into()))?;
        let json = HeaderValue::from_static("application/json");
        post.headers_mut().insert(header::CONTENT_TYPE, json);
        let answer = self.http.send_within(post, HOLDINGS_PATIENCE).await?;
        answer.successful().await?.json(MAX_HOLDINGS).await
    }

    /// The base URLs of a blob's owners.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn locations(&self, digest: Digest) -> Result<Vec<String>, ApiError> {
        let path = format!("/blobs/{digest}/locations");
        let answer = self.ask(Method::GET, &path).await?;
        let owners = answer.header(LOCATIONS).unwrap_or_default();
        let owners = owners.split(',').map(str::trim);
        Ok(owners
            .filter(|owner| !owner.is_empty())
            .map(str::to_string)
            .collect())
    }

    /// A blob's length in bytes, or `None`; with `local`, as far as the origin's disk knows.
    ///
    /// # Errors
    /// Whoever could know cannot be asked.
    pub async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
        copies: Copies,
    ) -> Result<Option<u64>, ApiError> {
        let copies = match copies {
            Copies::Here => "?local=true",
            Copies::Whole => "?whole=true",
            Copies::Coming => "",
        };
        let path = format!("/internal{}{copies}", blob(namespace, digest));
        match self.ask(Method::HEAD, &path).await {
            Ok(answer) => self.number(&answer, header::CONTENT_LENGTH).map(Some),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the origin write a blob that it holds to the namespace's backend after `delay`, should nobody
    /// have done so.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when it does not hold the blob.
    pub async fn write_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
        delay: Duration,
    ) -> Result<(), ApiError> {
        let path = format!(
            "/internal{}/write-back?delay_ms={}",
            blob(namespace, digest),
            delay.as_millis()
        );
        self.ask(Method::PUT, &path).await.map(drop)
    }

    /// Whether the origin tries to write the blob to the namespace's backend, or has tried in vain.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn writes_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<bool, ApiError> {
        let path = format!("/internal{}/write-back", blob(namespace, digest));
        match self.ask(Method::GET, &path).await {
            Ok(_) => Ok(true),
            Err(ApiError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A blob's metainfo.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], or an answer that makes no sense.
    pub async fn metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        let path = format!("/internal{}/metainfo", blob(namespace, digest));
        let answer = self.within(Method::GET, &path, FETCH_PATIENCE).await?;
        read_metainfo(&answer.bytes(MetaInfo::MAX_ENCODED).await?, digest, None)
    }

    /// What a tag points to in the registry that the namespace's blobs come from.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when there is no such tag, or an answer that makes no sense.
    pub async fn resolve(&self, namespace: &Namespace, tag: &str) -> Result<Digest, ApiError> {
        let (namespace, tag) = (segment(namespace.as_str()), segment(tag));
        let path = format!("/internal/namespace/{namespace}/tags/{tag}");
        let answer = self.within(Method::GET, &path, FETCH_PATIENCE).await?;
        let bytes = answer.bytes(MAX_DIGEST).await?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        let wrong = |_| ApiError::Unavailable("an origin's answer is no digest".into());
        text.trim().parse().map_err(wrong)
    }

    /// As much of a blob's metainfo as the origin knows; with `known`, it waits for a while until
    /// there is more than that.
    ///
    /// # Errors
    /// As [`OriginClient::metainfo`]; [`ApiError::Damaged`].
    pub async fn open_metainfo(
        &self,
        namespace: &Namespace,
        digest: Digest,
        known: Option<&MetaInfo>,
    ) -> Result<MetaInfo, ApiError> {
        let query = MetaInfoQuery::open(known);
        let path = format!("/internal{}/metainfo{query}", blob(namespace, digest));
        let answer = self.ask(Method::GET, &path).await?;
        read_metainfo(&answer.bytes(MetaInfo::MAX_ENCODED).await?, digest, known)
    }

    /// A blob's bytes, or those in `range`, which is not empty; an end past the blob's is cut.
    ///
    /// # Errors
    /// [`ApiError::NotFound`]; [`ApiError::RangeInvalid`].
    pub async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobRead, ApiError> {
        let mut get = request(Method::GET, self.url.join(&blob(namespace, digest)))?;
        if let Some(range) = &range {
            let last = range.end.saturating_sub(1);
            let value = format!("bytes={}-{last}", range.start);
            let value = HeaderValue::try_from(value).expect("digits");
            get.headers_mut().insert(header::RANGE, value);
        }
        let answer = self
            .http
            .send_within(get, FETCH_PATIENCE)
            .await?
            .successful()
            .await?;
        let length = match (answer.status(), &range) {
            (StatusCode::PARTIAL_CONTENT, Some(_)) => {
                total_of(answer.headers()).ok_or_else(|| self.odd("no Content-Range"))?
            }
            (StatusCode::OK, None) => self.number(&answer, header::CONTENT_LENGTH)?,
            (status, _) => return Err(self.odd(status.as_str())),
        };
        Ok(BlobRead {
            length,
            body: answer.stream(),
        })
    }

    /// Lets the origin fetch a blob.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub async fn prefetch(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Prefetch, ApiError> {
        let path = format!("{}/prefetch", blob(namespace, digest));
        let answer = self.ask(Method::POST, &path).await?;
        Ok(match answer.status() {
            StatusCode::OK => Prefetch::Present,
            _ => Prefetch::Started,
        })
    }

    /// Begins an upload and returns its id.
    ///
    /// # Errors
    /// There is no room for it.
    pub async fn upload_start(&self) -> Result<String, ApiError> {
        self.start(&format!("/namespace/{}/uploads", Namespace::default()))
            .await
    }

    /// Begins the copy of a blob that another origin has taken.
    ///
    /// # Errors
    /// There is no room for it.
    pub async fn upload_start_replica(&self, digest: Digest) -> Result<String, ApiError> {
        self.start(&format!("/internal/blobs/{digest}/uploads"))
            .await
    }

    /// Begins an upload of a blob whose digest and length, in bytes, are known: others can have it
    /// while it comes.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the origin has it; there is no room for it.
    pub async fn upload_start_known(
        &self,
        namespace: &Namespace,
        digest: Digest,
        length: u64,
    ) -> Result<String, ApiError> {
        let blob = blob(namespace, digest);
        self.start(&format!("{blob}/uploads?size={length}")).await
    }

    async fn start(&self, path: &str) -> Result<String, ApiError> {
        let answer = self.ask(Method::POST, path).await?;
        let id = answer.header(UPLOAD_ID).map(str::to_string);
        id.ok_or_else(|| self.odd("no Upload-Id"))
    }

    /// How many bytes of an upload the origin has.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub async fn upload_len(&self, id: &str) -> Result<u64, ApiError> {
        let answer = self.ask(Method::GET, &upload(id)).await?;
        self.number(&answer, HeaderName::from_static(UPLOAD_OFFSET))
    }

    /// Appends a body at `offset` and returns the new length. After an error, ask
    /// [`OriginClient::upload_len`] how much of it arrived.
    ///
    /// # Errors
    /// [`ApiError::RangeInvalid`] when `offset` is not the end; [`ApiError::NotFound`].
    pub async fn upload_append(
        &self,
        id: &str,
        offset: u64,
        body: ByteStream,
    ) -> Result<u64, ApiError> {
        let url = self.url.join(&upload(id));
        let mut request = request_with(Method::PATCH, url, HttpBody::Stream(body))?;
        let offset = HeaderValue::from(offset);
        request.headers_mut().insert(UPLOAD_OFFSET, offset);
        let answer = self.http.ask(request).await?;
        self.number(&answer, HeaderName::from_static(UPLOAD_OFFSET))
    }

    /// Makes a blob of an upload.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] for a wrong digest; [`ApiError::NotFound`] for an unknown upload.
    pub async fn upload_commit(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<MetaInfo, ApiError> {
        let namespace = segment(namespace.as_str());
        let path = format!("/namespace/{namespace}/uploads/{id}?digest={digest}");
        let answer = self.commit(&path).await?;
        read_metainfo(&answer.bytes(MetaInfo::MAX_ENCODED).await?, digest, None)
    }

    /// Makes a blob of a copy that this origin sends to another.
    ///
    /// # Errors
    /// As [`OriginClient::upload_commit`].
    pub async fn upload_commit_replica(
        &self,
        id: &str,
        namespace: &Namespace,
        digest: Digest,
        write_back_delay: Duration,
    ) -> Result<(), ApiError> {
        let path = format!(
            "/internal/blobs/{digest}/uploads/{id}?namespace={}&write_back_delay_ms={}",
            segment(namespace.as_str()),
            write_back_delay.as_millis()
        );
        self.commit(&path).await.map(drop)
    }

    /// Throws an upload away.
    ///
    /// # Errors
    /// [`ApiError::NotFound`].
    pub async fn upload_abort(&self, id: &str) -> Result<(), ApiError> {
        self.ask(Method::DELETE, &upload(id)).await.map(drop)
    }

    /// Deletes a blob from the origin's disk.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] while it is not written back; [`ApiError::NotFound`].
    pub async fn remove(&self, digest: Digest) -> Result<(), ApiError> {
        let path = format!("/internal/blobs/{digest}");
        self.ask(Method::DELETE, &path).await.map(drop)
    }

    async fn ask(&self, method: Method, path: &str) -> Result<HttpResponse, ApiError> {
        self.within(method, path, READ_IDLE).await
    }

    async fn commit(&self, path: &str) -> Result<HttpResponse, ApiError> {
        self.within(Method::PUT, path, COMMIT_PATIENCE).await
    }

    async fn within(
        &self,
        method: Method,
        path: &str,
        patience: Duration,
    ) -> Result<HttpResponse, ApiError> {
        let request = request(method, self.url.join(path))?;
        let answer = self.http.send_within(request, patience).await?;
        answer.successful().await
    }

    fn number(&self, answer: &HttpResponse, name: HeaderName) -> Result<u64, ApiError> {
        let number = answer.header(&name).and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.odd(&format!("no usable {name}")))
    }

    fn odd(&self, what: &str) -> ApiError {
        ApiError::Internal(format!("{} gave an odd answer: {what}", self.url))
    }
}

/// Longer than any digest, in bytes.
const MAX_DIGEST: usize = 256;

fn blob(namespace: &Namespace, digest: Digest) -> String {
    format!("/namespace/{}/blobs/{digest}", segment(namespace.as_str()))
}

/// The namespace counts when the upload is committed, not before.
fn upload(id: &str) -> String {
    format!("/namespace/{}/uploads/{id}", Namespace::default())
}
