//! The read-only registry: what agents serve to container runtimes, and proxies to everybody.

mod blobs;
mod lists;
mod manifests;
mod range;
mod referrers;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use kraken_proto::Digest;

use crate::access::Access;
use crate::error::{Code, RegistryError};
use crate::link::{Link, Linked};
use crate::name::RepoName;
use crate::reader::ManifestReader;
use crate::route::Route;
use crate::source::BlobSource;
use crate::tags::{LinkService, TagService};
use crate::web::{API_VERSION, CONTENT_DIGEST, OCI_NAMESPACE, header, param, query, value};

/// What the read-only registry works with.
#[derive(Debug)]
pub struct PullState<B, T> {
    pub(crate) blobs: B,
    pub(crate) tags: T,
    pub(crate) manifests: ManifestReader,
    mirror: bool,
    /// The hosts whose repositories are kept under the host's name.
    upstreams: Vec<String>,
    /// The host that is meant where none is named.
    usual: Option<String>,
    pub(crate) access: Access,
}

impl<B: BlobSource, T: TagService + LinkService> PullState<B, T> {
    /// A registry: what could not be asked is 503.
    pub fn new(blobs: B, tags: T) -> Self {
        Self {
            blobs,
            tags,
            manifests: ManifestReader::new(MANIFEST_CACHE),
            mirror: false,
            upstreams: Vec::new(),
            usual: None,
            access: Access::default(),
        }
    }

    /// A mirror: a manifest that cannot be served now is 404.
    ///
    /// Runtimes go on to the next host after a 404 on a manifest, but podman binds the whole pull
    /// to a mirror that answered and dockerd repeats a 503 instead of looking elsewhere. With a
    /// mirror that says 404, a pull is never worse than without one.
    pub fn mirror(blobs: B, tags: T) -> Self {
        Self {
            mirror: true,
            ..Self::new(blobs, tags)
        }
    }

    /// Who may do what; by default, whoever is on the same host everything, and nobody else anything.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Other registries that this one mirrors, such as `docker.io`. A request that names one of them by
    /// `?ns=`, as containerd does, is for its repository, which is kept here behind the host's name:
    /// `docker.io/library/busybox`. A port is set off by an underscore there. One that names any other host is
    /// for the repository as it stands in the path.
    #[must_use]
    pub fn upstreams(mut self, hosts: impl IntoIterator<Item = String>) -> Self {
        self.upstreams = hosts.into_iter().collect();
        self
    }

    /// The registry that is meant where a request names none, as dockerd's do.
    #[must_use]
    pub fn usual_upstream(mut self, host: impl Into<String>) -> Self {
        self.usual = Some(host.into());
        self
    }

    fn manifest_unavailable(&self, reason: &str) -> RegistryError {
        if self.mirror {
            RegistryError::new(
                Code::ManifestUnknown,
                format!("this mirror cannot serve the manifest now: {reason}"),
            )
        } else {
            RegistryError::new(Code::Unavailable, reason)
        }
    }
}

impl<B, T> PullState<B, T> {
    /// The other registry that a request is for.
    fn host(&self, parts: &Parts) -> Option<String> {
        let pairs = query(&parts.uri);
        match param(&pairs, "ns") {
            Some(named) => self.upstreams.iter().find(|host| *host == named).cloned(),
            None => self.usual.clone(),
        }
    }
}

impl<B, T: LinkService> PullState<B, T> {
    /// Whether it is known that the repository does not hold something any more. A mirror serves what
    /// its digest names, and so does everybody else while nobody can be asked.
    pub(crate) async fn is_removed(&self, repo: &RepoName, link: Link) -> bool {
        !self.mirror && matches!(self.tags.link(repo, link).await, Ok(Linked::Removed))
    }
}

/// The routes below `/v2/` for `GET` and `HEAD`; writing methods are answered with 405.
pub fn router<B: BlobSource, T: TagService + LinkService>(state: PullState<B, T>) -> Router {
    let state = Arc::new(state);
    routes(move |parts, _body| {
        let state = state.clone();
        async move { serve(&state, &parts).await }
    })
}

/// One handler for all paths, as a repository's slashes are beyond axum's matcher. Adds what every
/// answer carries.
pub(crate) fn routes<F, Answer>(handler: F) -> Router
where
    F: Fn(Parts, Body) -> Answer + Clone + Send + Sync + 'static,
    Answer: Future<Output = Result<Response, RegistryError>> + Send,
{
    let answer = move |request: Request| {
        let handler = handler.clone();
        async move {
            let (parts, body) = request.into_parts();
            let upstream = upstream(&parts);
            let mut response = handler(parts, body).await.into_response();
            let headers = response.headers_mut();
            headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
            if let Some(upstream) = upstream {
                headers.insert(OCI_NAMESPACE, upstream);
            }
            response
        }
    };
    Router::new()
        .route("/v2", any(answer.clone()))
        .route("/v2/", any(answer.clone()))
        .route("/v2/{*rest}", any(answer))
}

async fn serve<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
) -> Result<Response, RegistryError> {
    let mut route = Route::parse(parts.uri.path())?;
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(RegistryError::method(
            "this registry is read-only: push to the proxy",
            "GET, HEAD",
        ));
    }
    state.access.check(parts, &route).await?;
    if let Some(host) = state.host(parts) {
        route = route.behind(&host)?;
        if matches!(route, Route::Referrers(..)) {
            // What is here of them is not all there is: clients go to the registry itself.
            let what = "the lists of referrers of other registries are not mirrored";
            let error = RegistryError::new(Code::Unsupported, what);
            return Err(error.with_status(StatusCode::NOT_FOUND));
        }
    }
    read(state, parts, route).await
}

/// Answers a `GET` or `HEAD`.
pub(crate) async fn read<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
    route: Route,
) -> Result<Response, RegistryError> {
    match route {
        Route::Ping => Ok(axum::Json(serde_json::json!({})).into_response()),
        Route::Catalog => lists::catalog(state, parts).await,
        Route::Tags(repo) => lists::tags(state, parts, &repo).await,
        Route::Manifest(repo, reference) => manifests::get(state, parts, &repo, reference).await,
        Route::Blob(repo, digest) if parts.method == Method::HEAD => {
            blobs::head(state, parts, &repo, digest).await
        }
        Route::Blob(repo, digest) => blobs::get(state, parts, &repo, digest).await,
        Route::Referrers(repo, subject) => referrers::get(state, parts, &repo, subject).await,
        Route::Uploads(_) | Route::Upload(..) => Err(RegistryError::new(
            Code::BlobUploadUnknown,
            "there is no upload to read here: uploads are made at the proxy",
        )),
    }
}

/// Manifests in memory, in bytes: some thousands.
const MANIFEST_CACHE: u64 = 32 << 20;

/// The host that containerd would ask without this mirror.
fn upstream(parts: &Parts) -> Option<HeaderValue> {
    let pairs = query(&parts.uri);
    let ns = param(&pairs, "ns")?;
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
    let fits = (1..=255).contains(&ns.len()) && ns.bytes().all(is_host);
    fits.then(|| value(ns))
}

/// The headers that name content: its digest, twice.
fn content(digest: Digest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_DIGEST, value(digest.to_string()));
    headers.insert(ETAG, value(etag(digest)));
    headers
}

fn etag(digest: Digest) -> String {
    format!("\"{digest}\"")
}

/// 304, when the client says that it has the content.
fn not_modified(parts: &Parts, digest: Digest) -> Option<Response> {
    let known = header(&parts.headers, IF_NONE_MATCH)?;
    let etag = etag(digest);
    let same = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == etag;
    let hit = known.split(',').map(str::trim).any(same);
    hit.then(|| (StatusCode::NOT_MODIFIED, content(digest)).into_response())
}
