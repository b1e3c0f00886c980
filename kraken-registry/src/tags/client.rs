//! Asks a build-index for tags.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use kraken_proto::Digest;
use kraken_proto::tags::record::Refusal;
use reqwest::{Client, Response};
use serde::Deserialize;

use super::server::{Page, TAG_IMMUTABLE, TAG_UNKNOWN};
use super::{TagError, TagService};
use crate::name::{RepoName, Tag};
use crate::web::{chain, encode};

/// How long one build-index may take to answer; a put waits for the check of all layers.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A [`TagService`] over the build-indexes of one cluster, any of which can answer for all.
///
/// An answer is taken from the first that gives one, beginning with the one that answered last. A
/// connection that fails, a server error, and a 404 that is not a build-index's own count as no
/// answer; when nobody answers, the result is [`TagError::Unavailable`].
#[derive(Debug)]
pub struct TagClient {
    http: Client,
    hosts: Vec<String>,
    preferred: AtomicUsize,
}

impl TagClient {
    /// A client for the build-indexes at `hosts`, base URLs such as `https://index-1:7604`. A
    /// host that hangs is passed over after 15 s.
    pub fn new(http: Client, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let trim = |host: String| host.trim_end_matches('/').to_string();
        Self {
            http,
            hosts: hosts.into_iter().map(Into::into).map(trim).collect(),
            preferred: AtomicUsize::new(0),
        }
    }

    /// Asks one host after the other until one answers.
    async fn ask(&self, method: Method, path: &str) -> Result<Answer, TagError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        for turn in 0..self.hosts.len() {
            let at = (first + turn) % self.hosts.len();
            match self.ask_host(&self.hosts[at], method.clone(), path).await {
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(reason) => {
                    let host = &self.hosts[at];
                    tracing::debug!(host, reason, "build-index gave no answer");
                    reasons.push(format!("{host}: {reason}"));
                }
            }
        }
        Err(TagError::Unavailable(if reasons.is_empty() {
            "no build-index is configured".to_string()
        } else {
            reasons.join("; ")
        }))
    }

    async fn ask_host(&self, host: &str, method: Method, path: &str) -> Result<Answer, String> {
        let request = self
            .http
            .request(method, format!("{host}{path}"))
            .timeout(TIMEOUT);
        let response = request.send().await.map_err(|error| chain(&error))?;
        let status = response.status();
        if status.is_success() {
            let body = response.text().await.map_err(|error| chain(&error))?;
            return Ok(Answer::Body(body));
        }
        if !is_verdict(status) {
            return Err(format!("status {status}"));
        }
        match failure(response).await {
            Some(failure) if failure.code == TAG_UNKNOWN => Ok(Answer::Unknown),
            Some(failure) if failure.code == TAG_IMMUTABLE => Ok(Answer::Immutable),
            Some(failure) => Ok(Answer::Refused(failure.message)),
            // Some other server answered in its place.
            None => Err(format!(
                "status {status}, which is not a build-index's answer"
            )),
        }
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
            let query = format!("{path}?limit={limit}&offset={}", encode(offset));
            let Some(body) = self.ask(Method::GET, &query).await?.body()? else {
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
        let body = self.ask(Method::GET, &tag_path(repo, tag)).await?.body()?;
        let digest = body.map(|body| body.trim().parse().map_err(|it| unreadable(&it)));
        digest.transpose()
    }

    async fn put(&self, repo: &RepoName, tag: &Tag, digest: Digest) -> Result<(), TagError> {
        let path = format!(
            "{}/digest/{}",
            tag_path(repo, tag),
            encode(&digest.to_string())
        );
        match self.ask(Method::PUT, &path).await?.body()? {
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

    async fn delete(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagError> {
        let answer = self.ask(Method::DELETE, &tag_path(repo, tag)).await?;
        Ok(answer.body()?.is_some())
    }
}

/// What a build-index said.
#[derive(Debug)]
enum Answer {
    Body(String),
    Unknown,
    Immutable,
    Refused(String),
}

impl Answer {
    /// What it says of something that was asked for: a body, or that there is none.
    fn body(self) -> Result<Option<String>, TagError> {
        match self {
            Self::Body(body) => Ok(Some(body)),
            Self::Unknown => Ok(None),
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
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::CONFLICT
    )
}

async fn failure(response: Response) -> Option<Failure> {
    let envelope: Envelope = response.json().await.ok()?;
    Some(envelope.error)
}

fn tag_path(repo: &RepoName, tag: &Tag) -> String {
    format!("/tags/{}", encode(&format!("{repo}:{tag}")))
}

fn unreadable(error: &dyn std::error::Error) -> TagError {
    TagError::Unavailable(format!("the build-index's answer cannot be read: {error}"))
}
