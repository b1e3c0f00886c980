//! Requests as parts of traces: where one begins, and how it goes on in the next process.
//!
//! Members of the cluster say by `traceparent` that a trace is collected, and are believed. What
//! strangers say makes nobody collect more: each of their requests begins a trace of its own, as often as
//! the configuration says, whatever they sent; theirs is noted as a link.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use hyper::body::{Frame, SizeHint};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::trace::{self, Bridge, TARGET, TraceContext};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// What is asked all the time, and says nothing about anybody's pull.
const QUIET: [&str; 3] = ["/health", "/metrics", "/readiness"];
/// The longest text out of a request that a span tells, in bytes.
const LONGEST: usize = 200;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TracedFrom {
    /// Processes of the cluster, with its certificates: their traces go on here, and none begins.
    Members,
    /// Anybody: a trace begins with as many of their requests as the configuration says.
    Strangers,
}

/// Lets requests at a router be parts of traces. To be laid around all that may refuse strangers, and
/// within [`admit`](super::admit), so that none is believed to be a member. Where no [`Bridge`] is set by
/// then, it stays as it is.
pub fn traced(router: Router, from: TracedFrom) -> Router {
    if trace::bridge().is_none() {
        return router;
    }
    router.layer(from_fn(move |request, next| answer(from, request, next)))
}

/// The headers by which another process of the cluster goes on with the trace that is under way here;
/// none outside of a trace.
pub fn trace_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    inject(&mut headers);
    headers
}

pub(super) fn inject(headers: &mut HeaderMap) {
    let value = trace::current().map(|it| HeaderValue::from_str(&it.to_string()));
    if let Some(Ok(value)) = value {
        headers.insert(TRACEPARENT, value);
    }
}

async fn answer(from: TracedFrom, request: Request, next: Next) -> Response {
    let span = match trace::bridge() {
        Some(bridge) => begin(bridge, from, &request),
        None => Span::none(),
    };
    if span.is_disabled() {
        return next.run(request).await;
    }
    let response = next.run(request).instrument(span.clone()).await;
    span.record(
        "http.response.status_code",
        i64::from(response.status().as_u16()),
    );
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let digest = response.headers().get(CONTENT_DIGEST);
    if let Some(digest) = digest.and_then(|it| it.to_str().ok()) {
        span.record("kraken.digest", cut(digest));
    }
    response.map(|body| Body::new(Told { body, span }))
}

fn begin(bridge: &dyn Bridge, from: TracedFrom, request: &Request) -> Span {
    if QUIET.contains(&request.uri().path()) {
        return Span::none();
    }
    let given = given(request.headers());
    match from {
        TracedFrom::Members => match given.filter(|it| it.is_sampled) {
            Some(parent) => {
                let span = span_of(request);
                bridge.follow(&span, parent);
                span
            }
            None => Span::none(),
        },
        TracedFrom::Strangers if bridge.begins() => {
            let span = span_of(request);
            if let Some(other) = given {
                bridge.link(&span, other);
            }
            span
        }
        TracedFrom::Strangers => Span::none(),
    }
}

/// What the request says of its trace, if that is one value that makes sense.
fn given(headers: &HeaderMap) -> Option<TraceContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next().filter(|_| values.next().is_none());
    value?.to_str().ok()?.parse().ok()
}

fn span_of(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>();
    let asked = Asked::of(request.uri(), route.map(MatchedPath::as_str));
    let method = known(request.method());
    let span = info_span!(
        target: TARGET,
        parent: None,
        "request",
        otel.name = format!("{method} {}", asked.kind),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        kraken.namespace = Empty,
        kraken.repository = Empty,
        kraken.reference = Empty,
        kraken.digest = Empty,
    );
    for (key, value) in [
        ("kraken.namespace", &asked.namespace),
        ("kraken.repository", &asked.repository),
        ("kraken.reference", &asked.reference),
    ] {
        if let Some(value) = value {
            span.record(key, value.as_str());
        }
    }
    span
}

/// A method by its name; what is none of HTTP's is not told.
pub(super) fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// A word for what a request asks, `manifests`, `metainfo`, `announce`: out of its path or the route that
/// it matched, and never the client's.
pub(super) fn kind_of<'a>(path: &str, route: Option<&'a str>) -> &'a str {
    if let Some(rest) = path.strip_prefix("/v2/") {
        return in_registry(rest).map_or("registry", |(_, kind, _)| kind);
    }
    let words = route.unwrap_or_default().split('/');
    let mut fixed = words.filter(|it| !it.is_empty() && !it.starts_with('{'));
    fixed.next_back().unwrap_or("other")
}

/// The parts of `REPOSITORY/manifests/REFERENCE` and its like.
fn in_registry(rest: &str) -> Option<(&str, &'static str, &str)> {
    const KINDS: [&str; 4] = ["manifests", "blobs", "referrers", "tags"];
    let found = KINDS.into_iter().filter_map(|kind| {
        let at = rest.rfind(&format!("/{kind}/"))?;
        Some((at, kind))
    });
    let (at, kind) = found.max()?;
    let reference = &rest[at + kind.len() + 2..];
    let is_upload = kind == "blobs" && reference.starts_with("uploads");
    let kind = if is_upload { "uploads" } else { kind };
    Some((&rest[..at], kind, reference))
}

/// What a request is about, as far as its path says. Queries are not told: they may hold secrets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    /// As of [`kind_of`].
    kind: String,
    namespace: Option<String>,
    repository: Option<String>,
    /// A tag or a digest.
    reference: Option<String>,
}

impl Asked {
    fn of(uri: &Uri, route: Option<&str>) -> Self {
        let path = uri.path();
        let kind = kind_of(path, route).to_owned();
        if let Some(rest) = path.strip_prefix("/v2/") {
            return Self::of_registry(kind, rest);
        }
        let mut words = path.split('/').skip(1);
        let (place, name) = (words.next(), words.next());
        let mut asked = Self {
            kind,
            ..Self::default()
        };
        match place {
            Some("namespace") => {
                asked.namespace = name.map(cut);
                // Not the ids of uploads.
                let is_blob = words.next() == Some("blobs");
                asked.reference = words.next().filter(|_| is_blob).map(cut);
            }
            Some("tags") => asked.reference = name.map(cut),
            _ => {}
        }
        asked
    }

    fn of_registry(kind: String, rest: &str) -> Self {
        let mut asked = Self {
            kind,
            ..Self::default()
        };
        if let Some((repository, kind, reference)) = in_registry(rest) {
            asked.repository = Some(cut(repository));
            // What names an upload is what it may be gone on with.
            let is_told = !["uploads", "tags"].contains(&kind);
            asked.reference = is_told.then(|| cut(reference));
        }
        asked
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST)].to_owned()
}

/// A body that ends its request's span when it ends.
struct Told {
    body: Body,
    span: Span,
}

impl HttpBody for Told {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, span } = &mut *self;
        // A span ends when it was left for the last time.
        let _within = span.enter();
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &'static str, route: Option<&str>) -> Asked {
        Asked::of(&Uri::from_static(path), route)
    }

    #[test]
    fn spans_are_named_by_what_is_asked_and_not_by_whom() {
        let manifest = asked("/v2/a/b/manifests/v1?ns=docker.io", None);
        assert_eq!(manifest.kind, "manifests");
        assert_eq!(manifest.repository.as_deref(), Some("a/b"));
        assert_eq!(manifest.reference.as_deref(), Some("v1"));
        let upload = asked("/v2/a/blobs/uploads/secret?state=x", None);
        assert_eq!((upload.kind.as_str(), upload.reference), ("uploads", None));
        assert_eq!(asked("/v2/tags/blobs/tags/list", None).kind, "tags");
        assert_eq!(asked("/v2/", None).kind, "registry");
        let route = Some("/namespace/{namespace}/blobs/{digest}/metainfo");
        let metainfo = asked("/namespace/a%2Fb/blobs/sha256:00/metainfo?known=3", route);
        assert_eq!(metainfo.kind, "metainfo");
        assert_eq!(metainfo.namespace.as_deref(), Some("a%2Fb"));
        assert_eq!(metainfo.reference.as_deref(), Some("sha256:00"));
        let route = Some("/namespace/{namespace}/uploads/{id}");
        let upload = asked("/namespace/a/uploads/secret", route);
        assert_eq!((upload.kind.as_str(), upload.reference), ("uploads", None));
        assert_eq!(asked("/anything/at/all", None).kind, "other");
    }

    #[test]
    fn two_values_are_none() {
        let value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let value = HeaderValue::from_static(value);
        let mut headers = HeaderMap::new();
        assert_eq!(given(&headers), None);
        headers.append(TRACEPARENT, value.clone());
        assert!(given(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert_eq!(given(&headers), None);
    }

    #[test]
    fn what_a_client_sends_is_told_in_part_only() {
        let long = format!("{}é", "x".repeat(LONGEST - 1));
        assert_eq!(cut(&long).len(), LONGEST - 1);
        let method = Method::from_bytes(b"SECRET").unwrap();
        assert_eq!((known(&method), known(&Method::PUT)), ("OTHER", "PUT"));
    }
}
