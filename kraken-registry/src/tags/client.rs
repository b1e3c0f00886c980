//! Asks a build-index for tags.

mod versions;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{Method, StatusCode};
use kraken_core::net::http::trace_headers;
use kraken_core::net::trace_span;
use kraken_proto::Digest;
use kraken_proto::tags::record::{Refusal, TagState};
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

use super::error::{LINK_REMOVED, TAG_CHANGED, TAG_IMMUTABLE, TAG_UNKNOWN};
use super::page::Page;
use super::server::{TAG_AT, TAG_STALE, TAG_VERSION};
use super::{Found, LinkService, TagError, TagService};
use crate::link::{Link, LinkKind, Linked};
use crate::name::{RepoName, Tag};
use crate::web::{chain, encode};

pub use versions::{OnlyIf, TagVersion};

/// How long one build-index may take to answer; a put waits for the check of all layers.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long one may take before the next is asked as well.
const HEDGE_READ: Duration = Duration::from_millis(500);
const HEDGE_WRITE: Duration = Duration::from_secs(3);
/// How often a change is attempted while others change the same tag.
const TURNS: usize = 20;

/// A [`TagService`] over the build-indexes of one cluster, any of which can answer for all.
///
/// An answer is taken from the first that gives one, beginning with the one that answered last; when
/// that takes long, the next is asked as well. A connection that fails, a server error, and a 404 that is not a build-index's own count as no
/// answer; when nobody answers, the result is [`TagError::Unavailable`].
///
/// Clones share the memory of who answered last.
#[derive(Debug, Clone)]
pub struct TagClient {
    http: Client,
    hosts: Arc<RwLock<Arc<[String]>>>,
    preferred: Arc<AtomicUsize>,
}

impl TagClient {
    /// A client for the build-indexes at `hosts`, base URLs such as `https://index-1:7604`. A
    /// host that does not answer within 0.5 s, or a change within 3 s, is not waited for alone.
    pub fn new(http: Client, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let client = Self {
            http,
            hosts: Arc::default(),
            preferred: Arc::default(),
        };
        client.set(hosts);
        client
    }

    /// From now on these are the hosts.
    pub fn set(&self, hosts: impl IntoIterator<Item = impl Into<String>>) {
        let trim = |host: String| host.trim_end_matches('/').to_string();
        let hosts = hosts.into_iter().map(Into::into).map(trim).collect();
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    /// The base URLs of the build-indexes.
    pub fn urls(&self) -> Vec<String> {
        self.hosts().to_vec()
    }

    fn hosts(&self) -> Arc<[String]> {
        let hosts = self.hosts.read();
        hosts.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks one host after the other until one answers; the next also when one takes long. The first
    /// answer counts.
    async fn ask(&self, question: &Question<'_>) -> Result<Reply, TagError> {
        let (hosts, first) = (self.hosts(), self.preferred.load(Ordering::Relaxed));
        let mut left = (0..hosts.len()).map(|turn| (first + turn) % hosts.len());
        let ask = |at: usize| {
            let asking = self.ask_host(&hosts[at], question);
            async move { (at, asking.await) }
        };
        let (mut asked, mut reasons) = (FuturesUnordered::new(), Vec::new());
        asked.extend(left.next().map(ask));
        while !asked.is_empty() {
            let said = timeout(question.hedge(), asked.next()).await;
            match said {
                Ok(Some((at, Ok(reply)))) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(reply);
                }
                Ok(Some((at, Err(reason)))) => {
                    let host = &hosts[at];
                    tracing::debug!(host, reason, "build-index gave no answer");
                    reasons.push(format!("{host}: {reason}"));
                    if asked.is_empty() {
                        asked.extend(left.next().map(ask));
                    }
                }
                Ok(None) => break,
                Err(_) => asked.extend(left.next().map(ask)),
            }
        }
        Err(TagError::Unavailable(if reasons.is_empty() {
            "no build-index is configured".to_string()
        } else {
            reasons.join("; ")
        }))
    }

    async fn ask_host(&self, host: &str, question: &Question<'_>) -> Result<Reply, String> {
        let span = question.span(host);
        let asking = async {
            let url = format!("{host}{}", question.path);
            let request = self.http.request(question.method.clone(), url);
            let mut request = request.headers(trace_headers());
            if let Some(version) = question.at {
                request = request.header(TAG_AT, version);
            }
            reply(request.timeout(TIMEOUT)).await
        };
        asking.instrument(span).await
    }

    /// What a tag points to, and since which version; 0 when it was never set.
    async fn look(&self, path: &str) -> Result<(Option<String>, u64), TagError> {
        let reply = self.ask(&Question::get(path)).await?;
        Ok((reply.answer.body()?, reply.version))
    }

    /// Changes a tag, as long as nobody else does in between: a request that is still on its way when
    /// another host has been asked must not undo what was done since.
    async fn change(
        &self,
        method: Method,
        (tag, path): (&str, &str),
        digest: Option<Digest>,
    ) -> Result<Answer, TagError> {
        for _ in 0..TURNS {
            let (_, version) = self.look(tag).await?;
            let question = Question {
                method: method.clone(),
                path,
                at: Some(version),
            };
            match self.ask(&question).await?.answer {
                // By others; or by this client, through a host whose answer did not come.
                Answer::Changed if self.was_made(tag, digest, version).await? => {
                    return Ok(Answer::Body(String::new()));
                }
                Answer::Changed => {}
                answer => return Ok(answer),
            }
        }
        let reason = "others change the tag all the time";
        Err(TagError::Unavailable(reason.into()))
    }

    /// Whether a tag was made this since a version.
    async fn was_made(
        &self,
        tag: &str,
        digest: Option<Digest>,
        since: u64,
    ) -> Result<bool, TagError> {
        let path = format!("{tag}/history");
        let answer = self.ask(&Question::get(&path)).await?.answer;
        let Some(text) = answer.body()? else {
            return Ok(false);
        };
        let history: Vec<TagVersion> = serde_json::from_str(&text).map_err(|it| unreadable(&it))?;
        let mut later = history
            .iter()
            .filter(|it| it.number().is_some_and(|at| at > since));
        if later.any(|it| it.digest == digest) {
            return Ok(true);
        }
        let oldest = history.last().and_then(TagVersion::number);
        if history.len() > TagState::HISTORY && oldest.is_some_and(|oldest| oldest > since) {
            return Err(Refusal::Overtaken.into());
        }
        Ok(false)
    }

    async fn look_link(&self, path: &str) -> Result<(Linked, u64), TagError> {
        let Reply {
            answer, version, ..
        } = self.ask(&Question::get(path)).await?;
        let known = match answer {
            Answer::Removed => Linked::Removed,
            answer => match answer.body()? {
                Some(_) => Linked::Held,
                None => Linked::Never,
            },
        };
        Ok((known, version))
    }

    /// Follows pages until `n` names are there or no more exist.
    async fn names(
        &self,
        path: &str,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let mut names: Vec<String> = Vec::new();
        while names.len() < n {
            let offset = names
                .last()
                .map(String::as_str)
                .or(last)
                .unwrap_or_default();
            let limit = n - names.len();
            let joint = if path.contains('?') { '&' } else { '?' };
            let query = format!("{path}{joint}limit={limit}&offset={}", encode(offset));
            let Some(body) = self.ask(&Question::get(&query)).await?.answer.body()? else {
                break;
            };
            let page: Page = serde_json::from_str(&body).map_err(|error| unreadable(&error))?;
            let is_end = page.links.next.is_empty() || page.result.is_empty();
            names.extend(page.result);
            if is_end {
                break;
            }
        }
        names.truncate(n);
        Ok(names)
    }
}

impl TagService for TagClient {
    async fn get(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, TagError> {
        let found = self.find(repo, tag).await?;
        Ok(found.map(|found| found.digest))
    }

    async fn find(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Found>, TagError> {
        let reply = self.ask(&Question::get(&tag_path(repo, tag))).await?;
        let Some(body) = reply.answer.body()? else {
            return Ok(None);
        };
        let digest = body.trim().parse().map_err(|it| unreadable(&it))?;
        Ok(Some(Found {
            digest,
            is_stale: reply.is_stale,
        }))
    }

    async fn put(&self, repo: &RepoName, tag: &Tag, digest: Digest) -> Result<(), TagError> {
        let tag = tag_path(repo, tag);
        let path = format!("{tag}/digest/{}", encode(&digest.to_string()));
        match self
            .change(Method::PUT, (&tag, &path), Some(digest))
            .await?
            .body()?
        {
            Some(_) => Ok(()),
            None => Err(TagError::Refused("the tag does not exist".to_string())),
        }
    }

    async fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let path = format!("/repositories/{}/tags", encode(repo.as_str()));
        self.names(&path, n, last).await
    }

    async fn repositories(&self, n: usize, last: Option<&str>) -> Result<Vec<String>, TagError> {
        self.names("/repositories", n, last).await
    }

    async fn delete_at(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> Result<bool, TagError> {
        let path = tag_path(repo, tag);
        let (body, version) = self.look(&path).await?;
        if body.is_none_or(|body| body.trim() != digest.to_string()) {
            return Ok(false);
        }
        let question = Question {
            method: Method::DELETE,
            path: &path,
            at: Some(version),
        };
        match self.ask(&question).await?.answer {
            // Somebody else did something with it since.
            Answer::Changed => Ok(false),
            answer => Ok(answer.body()?.is_some()),
        }
    }

    async fn delete(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagError> {
        let tag = tag_path(repo, tag);
        let answer = self.change(Method::DELETE, (&tag, &tag), None).await?;
        Ok(answer.body()?.is_some())
    }
}

impl LinkService for TagClient {
    async fn link(&self, repo: &RepoName, link: Link) -> Result<Linked, TagError> {
        Ok(self.look_link(&link_path(repo, link)).await?.0)
    }

    async fn set_link(&self, repo: &RepoName, link: Link, is_held: bool) -> Result<(), TagError> {
        let path = link_path(repo, link);
        let (method, wanted) = match is_held {
            true => (Method::PUT, Linked::Held),
            false => (Method::DELETE, Linked::Removed),
        };
        for _ in 0..TURNS {
            let (known, version) = self.look_link(&path).await?;
            if known == wanted {
                return Ok(());
            }
            let question = Question {
                method: method.clone(),
                path: &path,
                at: Some(version),
            };
            match self.ask(&question).await?.answer {
                Answer::Changed => {}
                answer => return answer.body().map(drop),
            }
        }
        let reason = "others change the link all the time";
        Err(TagError::Unavailable(reason.into()))
    }

    async fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> Result<Vec<Digest>, TagError> {
        let repo = encode(repo.as_str());
        let kind = encode(&kind.to_string());
        let path = format!("/repositories/{repo}/links?kind={kind}");
        let after = after.map(|after| after.hex());
        let names = self.names(&path, n, after.as_deref()).await?;
        let digests = names.iter().map(|hex| Digest::from_hex(hex));
        let digests = digests.map(|it| it.map_err(|error| unreadable(&error)));
        digests.collect()
    }

    async fn tags_of(&self, repo: &RepoName, digest: Digest) -> Result<Vec<Tag>, TagError> {
        let (repo, digest) = (encode(repo.as_str()), encode(&digest.to_string()));
        let path = format!("/repositories/{repo}/tags-of/{digest}");
        let body = self.ask(&Question::get(&path)).await?.answer.body()?;
        let Some(body) = body else {
            return Ok(Vec::new());
        };
        let names: Vec<String> = serde_json::from_str(&body).map_err(|it| unreadable(&it))?;
        let tags = names.iter().map(|name| name.parse());
        tags.map(|it| it.map_err(|error| unreadable(&error)))
            .collect()
    }

    async fn is_known(&self, repo: &RepoName) -> Result<bool, TagError> {
        let path = format!("/repositories/{}", encode(repo.as_str()));
        let answer = self.ask(&Question::get(&path)).await?.answer;
        Ok(answer.body()?.is_some())
    }
}

/// What is asked of a build-index.
struct Question<'a> {
    method: Method,
    path: &'a str,
    /// Only as long as the tag is at this version.
    at: Option<u64>,
}

impl<'a> Question<'a> {
    const fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            at: None,
        }
    }

    fn span(&self, host: &str) -> Span {
        if self.method == Method::GET {
            trace_span!("tag lookup", otel.kind = "client", server.address = host)
        } else {
            trace_span!("tag change", otel.kind = "client", server.address = host)
        }
    }

    /// How long one may take before the next is asked as well.
    fn hedge(&self) -> Duration {
        if self.method == Method::GET {
            HEDGE_READ
        } else {
            HEDGE_WRITE
        }
    }
}

/// What a build-index said, and at which version the tag is.
struct Reply {
    answer: Answer,
    version: u64,
    /// A fresher answer could not be had.
    is_stale: bool,
}

async fn reply(request: RequestBuilder) -> Result<Reply, String> {
    let response = request.send().await.map_err(|error| chain(&error))?;
    let status = response.status();
    let version = response.headers().get(TAG_VERSION);
    let version = version.and_then(|it| it.to_str().ok()?.parse().ok());
    let version = version.unwrap_or_default();
    let is_stale = response.headers().contains_key(TAG_STALE);
    let answer = if status.is_success() {
        Answer::Body(response.text().await.map_err(|error| chain(&error))?)
    } else if is_verdict(status) {
        match failure(response).await {
            Some(failure) => Answer::of(failure),
            // Some other server answered in its place.
            None => {
                return Err(format!(
                    "status {status}, which is not a build-index's answer"
                ));
            }
        }
    } else {
        let why = failure(response).await.map(|it| it.message);
        return Err(why.unwrap_or_else(|| format!("status {status}")));
    };
    Ok(Reply {
        answer,
        version,
        is_stale,
    })
}

#[derive(Debug)]
enum Answer {
    Body(String),
    Unknown,
    Removed,
    Changed,
    Immutable,
    Refused(String),
}

impl Answer {
    fn of(failure: Failure) -> Self {
        match failure.code.as_str() {
            TAG_UNKNOWN => Self::Unknown,
            LINK_REMOVED => Self::Removed,
            TAG_IMMUTABLE => Self::Immutable,
            TAG_CHANGED => Self::Changed,
            _ => Self::Refused(failure.message),
        }
    }

    /// What it says of something that was asked for: a body, or that there is none.
    fn body(self) -> Result<Option<String>, TagError> {
        match self {
            Self::Body(body) => Ok(Some(body)),
            Self::Unknown | Self::Removed => Ok(None),
            Self::Changed => Err(TagError::Unavailable("the tag was changed".into())),
            Self::Immutable => Err(TagError::Conflict(Refusal::Immutable)),
            Self::Refused(message) => Err(TagError::Refused(message)),
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    error: Failure,
}

#[derive(Deserialize)]
struct Failure {
    code: String,
    message: String,
}

/// Statuses by which a build-index judges the request itself. Another host would say the same;
/// any other failure is of the host, or of something between.
fn is_verdict(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::PRECONDITION_FAILED
    )
}

async fn failure(response: Response) -> Option<Failure> {
    let envelope: Envelope = response.json().await.ok()?;
    Some(envelope.error)
}

fn tag_path(repo: &RepoName, tag: &Tag) -> String {
    format!("/tags/{}", encode(&format!("{repo}:{tag}")))
}

fn link_path(repo: &RepoName, link: Link) -> String {
    format!("/repositories/{}/links/{link}", encode(repo.as_str()))
}

fn unreadable(error: &dyn std::error::Error) -> TagError {
    TagError::Unavailable(format!("the build-index's answer cannot be read: {error}"))
}
