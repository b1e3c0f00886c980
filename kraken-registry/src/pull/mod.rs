//! The read-only registry: what agents serve to container runtimes, and proxies to everybody.

mod blobs;
mod hosts;
mod lists;
mod manifests;
mod range;
mod referrers;
mod removed;
mod stale;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use kraken_proto::Digest;
use tokio::time::timeout;

use crate::access::Access;
use crate::error::{Code, RegistryError};
use crate::link::{Link, Linked};
use crate::name::{Host, RepoName};
use crate::reader::ManifestReader;
use crate::route::Route;
use crate::source::BlobSource;
use crate::tags::{LinkService, TagService};
use crate::web::{API_VERSION, CONTENT_DIGEST, OCI_NAMESPACE, header, value};
use hosts::{Hosts, Meant};
use removed::Removals;

pub use stale::StaleTags;

/// What the read-only registry works with.
#[derive(Debug)]
pub struct PullState<B, T> {
    pub(crate) blobs: B,
    pub(crate) tags: T,
    pub(crate) manifests: ManifestReader,
    mirror: bool,
    hosts: Hosts,
    pub(crate) access: Arc<Access>,
    stale: StaleTags,
    removals: Removals,
}

impl<B: BlobSource, T: TagService + LinkService> PullState<B, T> {
    /// A registry: what could not be asked is 503.
    pub fn new(blobs: B, tags: T) -> Self {
        Self {
            blobs,
            tags,
            manifests: ManifestReader::new(MANIFEST_CACHE),
            mirror: false,
            hosts: Hosts::default(),
            access: Arc::default(),
            stale: StaleTags::default(),
            removals: Removals::default(),
        }
    }

    /// Counts there how often a tag was told that may be out of date.
    #[must_use]
    pub fn count_stale(mut self, stale: StaleTags) -> Self {
        self.stale = stale;
        self
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
    pub fn access(mut self, access: impl Into<Arc<Access>>) -> Self {
        self.access = access.into();
        self
    }

    /// Other registries that this one mirrors, such as `docker.io`. A request that names one of them by
    /// `?ns=`, as containerd does, is for its repository, which is kept here behind the host's name:
    /// `docker.io/library/busybox`. A port is set off by an underscore there.
    #[must_use]
    pub fn upstreams(mut self, hosts: impl IntoIterator<Item = Host>) -> Self {
        self.hosts.upstreams = hosts.into_iter().collect();
        self
    }

    /// The names of the cluster's own registry: a request to a mirror that names one of them is for the
    /// repository as it stands in the path, and one that names neither these nor an upstream is for none.
    #[must_use]
    pub fn own_names(mut self, hosts: impl IntoIterator<Item = Host>) -> Self {
        self.hosts.own = hosts.into_iter().collect();
        self
    }

    /// The registry that is meant where a request names none, as dockerd's do.
    #[must_use]
    pub fn usual_upstream(mut self, host: Host) -> Self {
        self.hosts.usual = Some(host);
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

impl<B, T: LinkService> PullState<B, T> {
    /// Whether it is another registry's stand-in.
    pub(crate) const fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Whether it is known that the repository does not hold something any more. A mirror serves blobs
    /// by their digests, and so does everybody else while nobody can be asked.
    pub(crate) async fn is_removed(&self, repo: &RepoName, link: Link) -> bool {
        if self.mirror {
            return match link {
                Link::Manifest(digest) => self.removals.has(&self.tags, repo, digest).await,
                _ => false,
            };
        }
        let known = timeout(PATIENCE, self.tags.link(repo, link)).await;
        matches!(known, Ok(Ok(Linked::Removed)))
    }
}

/// The routes below `/v2/` for `GET` and `HEAD`; writing methods are answered with 405.
pub fn router<B: BlobSource, T: TagService + LinkService>(state: PullState<B, T>) -> Router {
    let state = Arc::new(state);
    routes(state.access.clone(), move |parts, _body| {
        let state = state.clone();
        async move { serve(&state, &parts).await }
    })
}

/// One handler for all paths, as a repository's slashes are beyond axum's matcher. Adds what every
/// answer carries.
pub(crate) fn routes<F, Answer>(access: Arc<Access>, handler: F) -> Router
where
    F: Fn(Parts, Body) -> Answer + Clone + Send + Sync + 'static,
    Answer: Future<Output = Result<Response, RegistryError>> + Send,
{
    let answer = move |request: Request| {
        let handler = handler.clone();
        async move {
            let (parts, body) = request.into_parts();
            let mut response = handler(parts, body).await.into_response();
            let headers = response.headers_mut();
            headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
            response
        }
    };
    // Whether tokens are given may change.
    let others = answer.clone();
    let token = move |request: Request| async move {
        match access.issues() {
            true => issue(access, request).await,
            false => others(request).await,
        }
    };
    Router::new()
        .route(TOKENS, any(token))
        .route("/v2", any(answer.clone()))
        .route("/v2/", any(answer.clone()))
        .route("/v2/{*rest}", any(answer))
}

/// Where tokens are given.
const TOKENS: &str = "/v2/token";

async fn issue(access: Arc<Access>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    access.issue(parts, body).await.into_response()
}

async fn serve<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
) -> Result<Response, RegistryError> {
    let route = Route::parse(parts.uri.path())?;
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(RegistryError::method(
            "this registry is read-only: push to the proxy",
            "GET, HEAD",
        ));
    }
    let Meant {
        route,
        named,
        is_upstream,
    } = state.hosts.meant(parts, route)?;
    // Rules are about repositories as they are kept here.
    state.access.check(parts, &route).await?;
    if is_upstream && matches!(route, Route::Referrers(..) | Route::Tags(_)) {
        // What is here of them is not all there is: clients go to the registry itself.
        let what = "the lists of other registries are not mirrored";
        let error = RegistryError::new(Code::Unsupported, what);
        return Err(error.with_status(StatusCode::NOT_FOUND));
    }
    let mut response = read(state, parts, route).await.into_response();
    if let Some(named) = named {
        let headers = response.headers_mut();
        headers.insert(OCI_NAMESPACE, value(named.as_str()));
    }
    Ok(response)
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

/// How long a build-index is waited for to say that something was removed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Manifests in memory, in bytes: some thousands.
const MANIFEST_CACHE: u64 = 32 << 20;

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
