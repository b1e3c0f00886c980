//! What clients of a registry were told lately: the last answers, in memory.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::extract::{ConnectInfo, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::header::{CONTENT_LENGTH, RANGE, USER_AGENT};
use http::{HeaderMap, HeaderName, Uri};
use kraken_core::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Answers that are remembered: some 1 MB.
const MOST: usize = 2048;
/// Answers about one thing that are told.
const MOST_TOLD: usize = 64;
/// The longest text out of a request that is remembered, in bytes.
const LONGEST: usize = 200;
/// The longest error document that is read, in bytes.
const LONGEST_ERROR: u64 = 16 << 10;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One answer of a registry about a blob or a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// When it was asked, in milliseconds since 1970.
    pub at_ms: u64,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// What the client calls itself.
    pub user_agent: Option<String>,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The repository, behind the name of its registry if the client said one.
    pub repository: String,
    /// `blobs` or `manifests`.
    pub kind: String,
    /// What was asked for: a tag or a digest.
    pub reference: String,
    /// The part that was asked for, if it was one.
    pub range: Option<String>,
    /// What was answered.
    pub status: u16,
    /// The digest of what was answered.
    pub digest: Option<Digest>,
    /// The length of the body in bytes.
    pub bytes: Option<u64>,
    /// How long the client waited for the head of the answer, in milliseconds.
    pub waited_ms: u64,
    /// Why the client did not get what it wanted, as the answer told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Lets a registry remember what it answers.
pub(crate) fn noted(router: Router, answers: &Answers) -> Router {
    let answers = answers.clone();
    router.layer(from_fn(move |request, next| {
        answers.clone().note(request, next)
    }))
}

/// The last answers. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<VecDeque<Answer>>>);

impl Answers {
    /// Passes a request on, and remembers what was answered if it is about a blob or a manifest.
    pub(crate) async fn note(self, request: Request, next: Next) -> Response {
        let Some(mut answer) = asked(&request) else {
            return next.run(request).await;
        };
        let begun = Instant::now();
        let response = next.run(request).await;
        answer.waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        answer.status = response.status().as_u16();
        let head = response.headers();
        answer.digest = text(head, &CONTENT_DIGEST).and_then(|it| it.parse().ok());
        answer.bytes = text(head, &CONTENT_LENGTH).and_then(|it| it.parse().ok());
        let (response, why) = reason(response).await;
        answer.why = why;
        self.push(answer);
        response
    }

    fn push(&self, answer: Answer) {
        let mut answers = self.lock();
        if answers.len() >= MOST {
            answers.pop_front();
        }
        answers.push_back(answer);
    }

    /// The last answers about a digest, the oldest first.
    pub(crate) fn of(&self, digest: Digest) -> Vec<Answer> {
        let text = digest.to_string();
        self.last(|it| it.digest == Some(digest) || it.reference == text)
    }

    /// The last answers about a tag.
    pub(crate) fn of_tag(&self, repository: &str, tag: &str) -> Vec<Answer> {
        self.last(|it| it.repository == repository && it.reference == tag)
    }

    fn last(&self, is_it: impl Fn(&Answer) -> bool) -> Vec<Answer> {
        let answers = self.lock();
        let last = answers.iter().rev().filter(|it| is_it(it));
        let mut told: Vec<_> = last.take(MOST_TOLD).cloned().collect();
        told.reverse();
        told
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same answer, and what its error document says if it has one.
async fn reason(response: Response) -> (Response, Option<String>) {
    let (status, size) = (response.status(), response.body().size_hint().upper());
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || size.is_none_or(|size| size > LONGEST_ERROR) {
        return (response, None);
    }
    let (head, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(bytes) => {
            let why = message(&bytes);
            (Response::from_parts(head, Body::from(bytes)), why)
        }
        Err(error) => {
            let broken = futures::stream::iter([Err::<Bytes, _>(error)]);
            (Response::from_parts(head, Body::from_stream(broken)), None)
        }
    }
}

/// What an error document says, a registry's or one of ours.
fn message(document: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let error = document.pointer("/errors/0");
    let error = error.or_else(|| document.get("error"))?;
    error["message"].as_str().map(cut)
}

/// What a request asks for, if it is a blob or a manifest.
fn asked(request: &Request) -> Option<Answer> {
    let (repository, kind, reference) = named(request.uri())?;
    let head = request.headers();
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    Some(Answer {
        at_ms: u64::try_from(now).unwrap_or(u64::MAX),
        client: client.map(|info| info.0),
        user_agent: text(head, &USER_AGENT),
        method: request.method().to_string(),
        repository,
        kind,
        reference,
        range: text(head, &RANGE),
        status: 0,
        digest: None,
        bytes: None,
        waited_ms: 0,
        why: None,
    })
}

/// Repository, kind and reference of `/v2/REPOSITORY/KIND/REFERENCE`.
fn named(uri: &Uri) -> Option<(String, String, String)> {
    let rest = uri.path().strip_prefix("/v2/")?;
    let (rest, reference) = rest.rsplit_once('/')?;
    let (repository, kind) = rest.rsplit_once('/')?;
    if !matches!(kind, "blobs" | "manifests") {
        return None;
    }
    let mut pairs = uri.query().unwrap_or_default().split('&');
    let host = pairs.find_map(|pair| pair.strip_prefix("ns="));
    let repository = match host {
        Some(host) => format!("{host}/{repository}"),
        None => repository.to_string(),
    };
    Some((cut(&repository), kind.to_string(), cut(reference)))
}

fn text(head: &HeaderMap, name: &HeaderName) -> Option<String> {
    head.get(name)?.to_str().ok().map(cut)
}

fn cut(text: &str) -> String {
    let end = text
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| *at >= LONGEST);
    text[..end.unwrap_or(text.len())].to_string()
}

#[cfg(test)]
mod tests {
    use axum::routing::any;
    use http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn answers_about_blobs_and_manifests_are_remembered_and_no_others() {
        let answers = Answers::default();
        let digest = Digest::of(b"a");
        let head = [
            ("docker-content-digest", digest.to_string()),
            ("content-length", "7".into()),
        ];
        let answer = move || async move { (StatusCode::OK, head) };
        let app = Router::new().route("/v2/{*rest}", any(answer));
        let app = noted(app, &answers);
        for path in [
            "/v2/a/b/manifests/v1".to_string(),
            format!("/v2/a/b/blobs/{digest}?ns=docker.io"),
            "/v2/".into(),
            "/v2/a/tags/list".into(),
            format!("/v2/a/blobs/{}", "x".repeat(5000)),
        ] {
            let request = Request::get(path)
                .header("user-agent", "test/1")
                .body(Body::empty());
            app.clone().oneshot(request.unwrap()).await.unwrap();
        }
        assert_eq!(answers.lock().len(), 3);
        let [tag] = &answers.of_tag("a/b", "v1")[..] else {
            panic!("one tag")
        };
        assert_eq!((tag.status, tag.bytes), (200, Some(7)));
        assert_eq!(tag.user_agent.as_deref(), Some("test/1"));
        assert_eq!(answers.of(digest).len(), 3);
        assert!(
            answers
                .of(digest)
                .iter()
                .any(|it| it.repository == "docker.io/a/b")
        );
        assert!(
            answers
                .of(digest)
                .iter()
                .all(|it| it.reference.len() <= LONGEST)
        );
        for _ in 0..2 * MOST {
            answers.push(tag.clone());
        }
        assert_eq!(answers.lock().len(), MOST);
        assert_eq!(answers.of_tag("a/b", "v1").len(), MOST_TOLD);
    }

    #[tokio::test]
    async fn why_a_client_got_nothing_is_remembered_and_it_is_told_as_before() {
        for (document, why) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}"#,
                Some("no such tag"),
            ),
            (
                r#"{"error":{"code":"FULL","message":"no room"}}"#,
                Some("no room"),
            ),
            ("gone", None),
            ("", None),
        ] {
            let answers = Answers::default();
            let answer = move || async move { (StatusCode::NOT_FOUND, document) };
            let app = noted(Router::new().route("/v2/{*rest}", any(answer)), &answers);
            let request = Request::get("/v2/a/manifests/v1").body(Body::empty());
            let told = app.oneshot(request.unwrap()).await.unwrap();
            let told = to_bytes(told.into_body(), 1 << 10).await.unwrap();
            assert_eq!(told, document.as_bytes());
            assert_eq!(answers.of_tag("a", "v1")[0].why.as_deref(), why);
        }
    }
}
