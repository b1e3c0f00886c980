//! Images that are sent to another registry, by the OCI distribution protocol.
//!
//! A blob goes in chunks, each of which is there or not, and goes on where it was: [`Started::At`] can be
//! written down. Registries that take no chunks get it whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LINK, LOCATION, RANGE,
};
use http::{Method, StatusCode};
use kraken_proto::{Digest, Namespace};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::login::{Logins, with_right};
use super::{CONTENT_DIGEST, MANIFESTS, Place, RegistryOptions};
use crate::backend::BackendError;
use crate::backend::web::client;
use crate::backend::web::requests::Requests;

/// How long a chunk may be on its way.
const CHUNK: Duration = Duration::from_secs(300);
/// How much of what a registry says about an error is told.
const TOLD: usize = 300;
/// Names the shortest chunk that a registry takes, of all but the last.
const MIN_CHUNK: &str = "oci-chunk-min-length";
/// Chunks are in memory: a registry does not make them longer than this.
const MAX_CHUNK: u64 = 64 << 20;
const BYTES: &str = "application/octet-stream";
const READ: &str = "pull";
const WRITE: &str = "pull,push";
const DELETE: &str = "delete";

/// Writes to another registry. Clones share its connections and tokens.
#[derive(Debug, Clone)]
pub struct RegistryWriter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    url: Url,
    requests: Requests,
    logins: Logins,
}

/// Why something is not at the other registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// It does not answer, or does not say who may write.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It answers, and will not. Nothing has changed there.
    #[error("it answers {status}: {reason}")]
    Refused {
        /// What it answers.
        status: StatusCode,
        /// What it says about it.
        reason: String,
    },
    /// What it answers makes no sense.
    #[error("its answer makes no sense: {0}")]
    Broken(&'static str),
}

impl PushError {
    /// What it answers, if it refuses.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Backend(_) | Self::Broken(_) => None,
        }
    }
}

/// An upload that was begun: where it goes on, and how much is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The URL to go on at.
    pub url: String,
    /// How many bytes are there.
    pub at: u64,
    /// The shortest chunk that the registry takes.
    pub min_chunk: u64,
}

/// What became of the wish to upload a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// It is there, from the other repository.
    There,
    /// It is to be sent.
    At(Upload),
}

/// What a registry says of a manifest that it has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// It lists the manifest with what it is about (`OCI-Subject`).
    pub lists_subject: bool,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: serde_json::Value,
}

impl RegistryWriter {
    /// A request's answer may take `timeout`.
    ///
    /// # Errors
    /// The URL is none, all repositories would be one, or the authorities cannot be read.
    pub fn new(options: RegistryOptions, timeout: Duration) -> Result<Self, BackendError> {
        let (place, url) = Place::new(&options)?;
        if !options.repository.contains(super::NAMESPACE) {
            let what = "registry: repository: all images would go to one: put {namespace} in it";
            return Err(BackendError::Denied(what.into()));
        }
        Ok(Self(Arc::new(Inner {
            place,
            url: url.clone(),
            requests: Requests::new(client(options.ca.as_deref())?, timeout),
            logins: Logins::new(url, options.credentials.into_iter().collect(), true),
        })))
    }

    /// Where it writes: the registry's URL, and what it calls repositories there. Two that write to the same
    /// place have the same.
    pub fn place(&self) -> String {
        let place = &self.0.place;
        format!("{}/{} {}", place.url, place.repository, place.prefix)
    }

    /// What the other registry calls the repository of a namespace.
    pub fn repository(&self, namespace: &Namespace) -> String {
        self.0.place.repository(namespace)
    }

    /// Whether a repository there has a blob.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn has_blob(&self, repo: &str, digest: Digest) -> Result<bool, PushError> {
        let what = format!("blobs/{digest}");
        let response = self.0.ask((repo, READ), (Method::HEAD, &what)).await?;
        found(response).await.map(|found| found.is_some())
    }

    /// Begins to upload a blob, unless the repository `from` there has it and may share it.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn start(
        &self,
        repo: &str,
        digest: Digest,
        from: Option<&str>,
    ) -> Result<Started, PushError> {
        if let Some(from) = from.filter(|from| *from != repo) {
            let digest = digest.to_string();
            let mount = [("mount", digest.as_str()), ("from", from)];
            let response = self.0.begin(repo, &mount).await?;
            match response.status() {
                StatusCode::CREATED => return Ok(Started::There),
                StatusCode::ACCEPTED => return Ok(Started::At(self.0.upload(&response, 0)?)),
                // Who may write here may not read there.
                _ => {}
            }
        }
        let response = self.0.begin(repo, &[]).await?;
        match response.status() {
            StatusCode::ACCEPTED => Ok(Started::At(self.0.upload(&response, 0)?)),
            _ => Err(refused(response).await),
        }
    }

    /// How far an upload is; nothing when the registry knows it no more.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn find(&self, repo: &str, url: &str) -> Result<Option<Upload>, PushError> {
        let Ok(parsed) = Url::parse(url) else {
            return Ok(None);
        };
        let scope = format!("repository:{repo}:{WRITE}");
        let response = self
            .0
            .send((&scope, None), &parsed, |client| client.get(parsed.clone()));
        let response = response.await?;
        match response.status() {
            status if status.is_success() => {
                let at = ranged(response.headers()).unwrap_or_default();
                match response.headers().contains_key(LOCATION) {
                    true => Ok(Some(self.0.upload(&response, at)?)),
                    false => Ok(Some(Upload {
                        url: url.into(),
                        at,
                        min_chunk: 0,
                    })),
                }
            }
            status if status.is_client_error() => Ok(None),
            _ => Err(refused(response).await),
        }
    }

    /// Sends the next chunk of an upload; where it goes on. After an error nobody knows how much of it is there.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn append(
        &self,
        repo: &str,
        upload: &Upload,
        chunk: Bytes,
    ) -> Result<Upload, PushError> {
        let url = parse(&upload.url)?;
        let end = upload.at + chunk.len() as u64;
        let range = format!("{}-{}", upload.at, end.saturating_sub(1));
        let scope = format!("repository:{repo}:{WRITE}");
        let make = |client: &reqwest::Client| {
            let request = client.patch(url.clone()).header(CONTENT_TYPE, BYTES);
            request.header(CONTENT_RANGE, &range).body(chunk.clone())
        };
        let response = self.0.send((&scope, Some(CHUNK)), &url, make).await?;
        match response.status() {
            status if status.is_success() => {
                let next = self.0.upload(&response, end)?;
                match ranged(response.headers()) {
                    Some(at) if at != end => {
                        Err(PushError::Broken("it took another part than it was sent"))
                    }
                    _ => Ok(Upload {
                        min_chunk: upload.min_chunk,
                        ..next
                    }),
                }
            }
            _ => Err(refused(response).await),
        }
    }

    /// Ends an upload with its last bytes: all, if nothing was sent before.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn finish(
        &self,
        (repo, digest): (&str, Digest),
        upload: &Upload,
        rest: Bytes,
    ) -> Result<(), PushError> {
        let url = of_digest(&upload.url, digest)?;
        let scope = format!("repository:{repo}:{WRITE}");
        let make = |client: &reqwest::Client| {
            let request = client.put(url.clone()).header(CONTENT_TYPE, BYTES);
            // An empty body has its length too.
            request
                .header(CONTENT_LENGTH, rest.len())
                .body(rest.clone())
        };
        done(self.0.send((&scope, Some(CHUNK)), &url, make).await?).await
    }

    /// Sends all of a blob in one request, whose body may take any time as long as it moves.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn finish_whole(
        &self,
        (repo, digest): (&str, Digest),
        upload: &Upload,
        (bytes, length): (
            impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
            u64,
        ),
    ) -> Result<(), PushError> {
        let url = of_digest(&upload.url, digest)?;
        let right = self
            .0
            .logins
            .known(&format!("repository:{repo}:{WRITE}"))
            .await;
        let right = right.filter(|_| url.origin() == self.0.url.origin());
        let moved = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&moved);
        let bytes = bytes.inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let requests = &self.0.requests;
        let request = requests.client.put(url).header(CONTENT_TYPE, BYTES);
        let request = request.header(CONTENT_LENGTH, length);
        let request = request.body(reqwest::Body::wrap_stream(bytes));
        let mut sent = std::pin::pin!(requests.stream(with_right(request, right.as_ref())));
        loop {
            let before = moved.load(Ordering::Relaxed);
            match tokio::time::timeout(CHUNK, &mut sent).await {
                Ok(response) => return done(response?).await,
                Err(_) if moved.load(Ordering::Relaxed) != before => {}
                Err(_) => {
                    let what = "it takes no more bytes".to_string();
                    return Err(BackendError::Unavailable(what).into());
                }
            }
        }
    }

    /// What a tag there points to, or whether a manifest is there, by its digest.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn resolve(&self, repo: &str, reference: &str) -> Result<Option<Digest>, PushError> {
        let what = format!("manifests/{reference}");
        let response = self.0.ask((repo, READ), (Method::HEAD, &what)).await?;
        let Some(response) = found(response).await? else {
            return Ok(None);
        };
        let said = response.headers().get(CONTENT_DIGEST);
        match said.and_then(|it| it.to_str().ok()?.parse().ok()) {
            Some(digest) => Ok(Some(digest)),
            None => Ok(self.get(repo, &what).await?.map(|bytes| Digest::of(&bytes))),
        }
    }

    /// A page of a list of a repository, such as `tags/list?n=100`, and the query of the next one as the registry
    /// says it, such as `n=100&last=v7`; nothing when the list is not there.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn page(
        &self,
        repo: &str,
        what: &str,
    ) -> Result<Option<(Vec<u8>, Option<String>)>, PushError> {
        let response = self.0.ask((repo, READ), (Method::GET, what)).await?;
        let Some(response) = found(response).await? else {
            return Ok(None);
        };
        let links = response.headers().get_all(LINK).into_iter();
        let next = links.filter_map(|it| it.to_str().ok()).find_map(next_query);
        Ok(Some((self.0.requests.bytes(response).await?, next)))
    }

    /// The bytes of a manifest, `manifests/v1`, or of another list of a repository; nothing when it is not there.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn get(&self, repo: &str, what: &str) -> Result<Option<Vec<u8>>, PushError> {
        let response = self.0.ask((repo, READ), (Method::GET, what)).await?;
        match found(response).await? {
            Some(response) => Ok(Some(self.0.requests.bytes(response).await?)),
            None => Ok(None),
        }
    }

    /// Puts a manifest under a tag or its digest.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn put_manifest(
        &self,
        (repo, reference): (&str, &str),
        (media_type, bytes): (&str, Bytes),
    ) -> Result<Pushed, PushError> {
        let url = parse(&self.0.place.within(repo, &format!("manifests/{reference}")))?;
        let scope = format!("repository:{repo}:{WRITE}");
        let make = |client: &reqwest::Client| {
            let request = client.put(url.clone()).header(CONTENT_TYPE, media_type);
            request.body(bytes.clone())
        };
        let response = self.0.send((&scope, None), &url, make).await?;
        let lists_subject = response.headers().contains_key("oci-subject");
        done(response).await?;
        Ok(Pushed { lists_subject })
    }

    /// Deletes a manifest, or a tag where the registry does so by its name. Whether it was there.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn delete(&self, repo: &str, reference: &str) -> Result<bool, PushError> {
        let what = format!("manifests/{reference}");
        let response = self.0.ask((repo, DELETE), (Method::DELETE, &what)).await?;
        found(response).await.map(|found| found.is_some())
    }
}

impl Inner {
    async fn ask(
        &self,
        (repo, actions): (&str, &str),
        (method, what): (Method, &str),
    ) -> Result<Response, PushError> {
        let url = parse(&self.place.within(repo, what))?;
        let make = |client: &reqwest::Client| {
            let request = client.request(method.clone(), url.clone());
            request.header(ACCEPT, MANIFESTS)
        };
        self.send((&format!("repository:{repo}:{actions}"), None), &url, make)
            .await
    }

    async fn begin(&self, repo: &str, query: &[(&str, &str)]) -> Result<Response, PushError> {
        let mut url = parse(&self.place.within(repo, "blobs/uploads/"))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let make = |client: &reqwest::Client| client.post(url.clone()).header(CONTENT_LENGTH, 0);
        self.send((&format!("repository:{repo}:{WRITE}"), None), &url, make)
            .await
    }

    /// Sends a request with a right if its URL is of this registry: to no other host goes a password of it.
    async fn send(
        &self,
        (scope, bound): (&str, Option<Duration>),
        url: &Url,
        make: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, PushError> {
        if url.origin() == self.url.origin() {
            let asked = self.logins.send(&self.requests, (scope, bound), make);
            return Ok(asked.await?);
        }
        Ok(match bound {
            None => self.requests.send(make).await?,
            Some(bound) => {
                self.requests
                    .once(make(&self.requests.client), bound)
                    .await?
            }
        })
    }

    /// Where an upload goes on, according to an answer.
    fn upload(&self, response: &Response, at: u64) -> Result<Upload, PushError> {
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let location = header(LOCATION.as_str());
        let url = location.and_then(|it| response.url().join(it).ok());
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut url = url.ok_or(PushError::Broken("an upload without a place to go on"))?;
        // Behind a proxy that ends TLS, registries name themselves without.
        if url.scheme() == "http" && self.url.scheme() == "https" && url.host() == self.url.host() {
            let _ = url.set_scheme("https");
            let _ = url.set_port(self.url.port());
        }
        let min_chunk = header(MIN_CHUNK).and_then(|it| it.trim().parse().ok());
        Ok(Upload {
            url: url.into(),
            at,
            min_chunk: min_chunk.unwrap_or(0).min(MAX_CHUNK),
        })
    }
}

fn parse(url: &str) -> Result<Url, PushError> {
    Url::parse(url).map_err(|_| PushError::Broken("a URL that is none"))
}

/// The URL that ends an upload.
fn of_digest(url: &str, digest: Digest) -> Result<Url, PushError> {
    let mut url = parse(url)?;
    url.query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    Ok(url)
}

/// How many bytes are there: `0-99` are a hundred. Some say `0-0` of none, and nobody sends a single one.
fn ranged(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(RANGE)?.to_str().ok()?.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    let last: u64 = last.parse().ok()?;
    match (first, last) {
        ("0", 0) => Some(0),
        ("0", last) => last.checked_add(1),
        _ => None,
    }
}

/// The query of the next page out of a header `Link` (RFC 8288), as registries write it.
fn next_query(link: &str) -> Option<String> {
    let links = link.split(',').filter_map(|it| it.trim().strip_prefix('<'));
    let mut links = links.filter_map(|it| it.split_once('>'));
    let is_next = |it: &&str| it.trim() == "rel=\"next\"" || it.trim() == "rel=next";
    let (url, _) = links.find(|(_, about)| about.split(';').any(|it| is_next(&it)))?;
    url.split_once('?').map(|(_, query)| query.to_owned())
}

async fn found(response: Response) -> Result<Option<Response>, PushError> {
    match response.status() {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => Ok(Some(response)),
        _ => Err(refused(response).await),
    }
}

async fn done(response: Response) -> Result<(), PushError> {
    match response.status().is_success() {
        true => Ok(()),
        false => Err(refused(response).await),
    }
}

/// What a registry says is wrong.
async fn refused(response: Response) -> PushError {
    const MOST: usize = 16 << 10;
    let status = response.status();
    let (mut text, mut body) = (Vec::new(), response.bytes_stream());
    let reading = async {
        while let Some(Ok(chunk)) = body.next().await {
            text.extend_from_slice(&chunk);
            if text.len() > MOST {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
    let reason = match serde_json::from_slice::<Errors>(&text) {
        Ok(Errors { errors }) => {
            let reasons: Vec<_> = errors.iter().map(Reason::told).collect();
            reasons.join("; ")
        }
        Err(_) => String::from_utf8_lossy(&text).into_owned(),
    };
    PushError::Refused {
        status,
        reason: reason.chars().take(TOLD).collect(),
    }
}

impl Reason {
    fn told(&self) -> String {
        let detail = match self.detail.is_null() {
            true => String::new(),
            false => format!(" {}", self.detail),
        };
        format!("{}: {}{detail}", self.code, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_registry_says() {
        for (link, query) in [
            (
                "</v2/a/tags/list?last=v7&n=100>; rel=\"next\"",
                Some("last=v7&n=100"),
            ),
            ("<https://r.test/v2/a/tags/list?n=9>;rel=next", Some("n=9")),
            ("<?a=1>; rel=\"prev\", <?b=2>; rel=\"next\"", Some("b=2")),
            ("<?a=1>; rel=\"prev\"", None),
            ("</v2/a/tags/list>; rel=\"next\"", None),
            ("next", None),
        ] {
            assert_eq!(next_query(link).as_deref(), query, "{link}");
        }
    }

    #[test]
    fn what_registries_say_of_uploads_is_read() {
        for (text, at) in [
            ("0-0", Some(0)),
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("5-99", None),
            ("0-", None),
            ("0-18446744073709551615", None),
            ("many", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            assert_eq!(ranged(&headers), at, "{text}");
        }
        let digest = Digest::of(b"");
        let url = of_digest("http://a/v2/b/uploads/1?_state=x%3D", digest).unwrap();
        let query = format!("_state=x%3D&digest=sha256%3A{}", digest.hex());
        assert_eq!(url.query(), Some(query.as_str()));
    }
}
