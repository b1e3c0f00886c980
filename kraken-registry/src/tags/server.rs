//! The build-index over HTTP.
//!
//! | method and path | answer |
//! |---|---|
//! | `PUT /tags/{repo:tag}/digest/{digest}` | 200 once most owners have it on disk; 404 or 400 when the image is incomplete or unfit; 409 when the tag is immutable; 412 |
//! | `GET`, `HEAD /tags/{repo:tag}` | the digest as text, `Kraken-Tag-Version`, `ETag` |
//! | `GET /tags/{repo:tag}/history` | what it is and was, the latest first |
//! | `DELETE /tags/{repo:tag}` | 200, 404 |
//! | `GET /list/{prefix}?limit=&offset=` | a page of `repo:tag` |
//! | `GET /repositories/{repo}/tags?limit=&offset=` | a page of tags |
//! | `GET /repositories?limit=&offset=` | a page of repositories |
//!
//! `{repo:tag}` and `{repo}` are one escaped segment. A page is
//! `{"Links":{"next","self"},"size","result":[…]}`; `offset` is the last name of the page before,
//! so that pages stay right while tags come and go. Errors are
//! `{"error":{"code","message","detail"}}`.
//!
//! The version of a tag is its `ETag`: with `If-Match: "version"` a tag is changed or removed only as
//! long as it is at that version, with `If-None-Match: *` only when it does not exist; otherwise the
//! answer is 412. With `Kraken-Tag-At: version`, 0 for one that was never set, it is changed only as long
//! as nobody else has changed or removed it since: a request that comes late, after its client
//! has asked another build-index, then changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use kraken_proto::Digest;
use kraken_proto::tags::record::{Condition, Version};
use serde::{Deserialize, Serialize};

use super::TagService;
use super::check::{self, CheckError};
use super::error::{IndexError, LINK_REMOVED, TAG_UNKNOWN};
use super::owner;
use super::page::{Asked, Page};
pub use super::policy::TagPolicy;
use super::ring::TagRing;
use super::upstream::Upstreams;
use crate::link::{Link, LinkKind, Linked};
use crate::memory::MemoryBlobs;
use crate::name::{NameError, RepoName, TagName};
use crate::source::BlobSource;
use crate::web::{self, encode, value};

/// The routes of a build-index which takes a tag only when `blobs` has everything that it needs,
/// for an index down to the layers of every image.
pub fn router<B: BlobSource>(tags: TagRing, policy: TagPolicy, blobs: B) -> Router {
    let blobs = Arc::new(blobs);
    let source = blobs.clone();
    let check = move |repo: RepoName, digest: Digest| {
        let blobs = blobs.clone();
        async move { check::complete(&*blobs, &repo.namespace(), digest).await }
    };
    routes(tags, policy, source, check)
}

/// The same without the check, for tags whose blobs live elsewhere.
pub fn unchecked_router(tags: TagRing, policy: TagPolicy) -> Router {
    let source = Arc::new(MemoryBlobs::default());
    routes(tags, policy, source, |_, _| {
        std::future::ready(Ok(BTreeSet::new()))
    })
}

/// The header with a tag's version.
pub(super) const TAG_VERSION: &str = "kraken-tag-version";
/// The header of an answer that could not be made as fresh as it should be.
pub(crate) const TAG_STALE: &str = "kraken-tag-stale";
/// The header by which a client says at which version a tag is to be changed, 0 if never set.
pub(super) const TAG_AT: &str = "kraken-tag-at";

fn routes<B: BlobSource, F, Checked>(
    tags: TagRing,
    policy: TagPolicy,
    blobs: Arc<B>,
    check: F,
) -> Router
where
    F: Fn(RepoName, Digest) -> Checked + Clone + Send + Sync + 'static,
    Checked: Future<Output = Result<BTreeSet<Digest>, CheckError>> + Send,
{
    let upstreams = Arc::new(Upstreams::new(policy.clone()));
    let get_tag = move |State(tags): State<TagRing>, Path(name): Path<String>| {
        let (upstreams, blobs) = (upstreams.clone(), blobs.clone());
        async move { get_tag(&tags, (&upstreams, &*blobs), &name).await }
    };
    let set = move |State(tags): State<TagRing>,
                    Path((name, digest)): Path<(String, String)>,
                    headers: HeaderMap| {
        let (check, policy) = (check.clone(), policy.clone());
        async move { set_tag(&tags, (&policy, check), (&name, &digest), &headers).await }
    };
    let internal = owner::router(&tags);
    Router::new()
        .route("/tags/{tag}/digest/{digest}", put(set))
        .route("/tags/{tag}", get(get_tag).delete(delete_tag))
        .route("/tags/{tag}/history", get(history))
        .route("/list", get(list_all))
        .route("/list/", get(list_all))
        .route("/list/{*prefix}", get(list))
        .route("/repositories", get(list_repositories))
        .route("/repositories/{repo}", get(know))
        .route("/repositories/{repo}/tags", get(list_tags))
        .route("/repositories/{repo}/tags-of/{digest}", get(tags_of))
        .route("/repositories/{repo}/links", get(list_links))
        .route(
            "/repositories/{repo}/links/{*link}",
            get(get_link).put(hold_link).delete(remove_link),
        )
        .with_state(tags)
        .merge(internal)
}

async fn set_tag<F, Checked>(
    tags: &TagRing,
    (policy, check): (&TagPolicy, F),
    (name, digest): (&str, &str),
    headers: &HeaderMap,
) -> Result<Response, IndexError>
where
    F: Fn(RepoName, Digest) -> Checked,
    Checked: Future<Output = Result<BTreeSet<Digest>, CheckError>>,
{
    let name: TagName = name.parse()?;
    // The original takes bare digits here too.
    let digest = if digest.contains(':') {
        digest.parse()
    } else {
        Digest::from_hex(digest)
    };
    let digest = digest.map_err(NameError::from)?;
    let asked = (condition(headers)?, policy.is_immutable(&name));
    let mut manifests = check(name.repo().clone(), digest).await?;
    manifests.insert(digest);
    let register = name.clone().into();
    let state = tags.set_by(&register, Some(digest), asked).await?;
    let until = Version::new(u64::MAX);
    tags.revive(name.repo(), (manifests, until)).await?;
    // Others may have changed it since.
    let made = state.iter().flat_map(|state| state.records());
    let made = made
        .into_iter()
        .find(|record| record.digest == Some(digest));
    let version = made.map_or(Version::ZERO, |record| record.version);
    tracing::info!(tag = %name, %digest, version = version.get(), "tag set");
    Ok((versioned(version), ()).into_response())
}

/// What a client asks of a tag before it changes it.
fn condition(headers: &HeaderMap) -> Result<Condition, IndexError> {
    let bad = |text: &str| {
        let message = format!(
            "{text:?} is no condition: write If-Match: \"version\" with the number in ETag, or \
             If-None-Match: *"
        );
        IndexError::new(StatusCode::BAD_REQUEST, "CONDITION_INVALID", message)
    };
    let read = |name| {
        headers
            .contains_key(&name)
            .then(|| web::header(headers, name).unwrap_or(""))
    };
    match (read(IF_MATCH), read(IF_NONE_MATCH)) {
        (None, None) => match read(HeaderName::from_static(TAG_AT)) {
            None => Ok(Condition::Any),
            Some(text) => {
                let number = text.parse().map_err(|_| bad(text))?;
                Ok(Condition::At(Version::new(number)))
            }
        },
        (None, Some("*")) => Ok(Condition::Absent),
        (Some(text), None) => {
            let number = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
            let number = number.and_then(|it| it.parse().ok());
            let number = number.ok_or_else(|| bad(text))?;
            Ok(Condition::Version(Version::new(number)))
        }
        (_, Some(text)) => Err(bad(text)),
    }
}

fn versioned(version: Version) -> [(HeaderName, HeaderValue); 2] {
    let number = version.get();
    [
        (
            HeaderName::from_static(TAG_VERSION),
            value(number.to_string()),
        ),
        (ETAG, value(format!("\"{number}\""))),
    ]
}

async fn get_tag<B: BlobSource>(
    tags: &TagRing,
    (upstreams, blobs): (&Upstreams, &B),
    name: &str,
) -> Result<Response, IndexError> {
    let name: TagName = name.parse()?;
    let is_stale = upstreams.refresh(tags, blobs, &name).await?;
    let mut response = told(tags, &name).await?;
    if is_stale {
        let mark = HeaderName::from_static(TAG_STALE);
        response
            .headers_mut()
            .insert(mark, HeaderValue::from_static("true"));
    }
    Ok(response)
}

async fn told(tags: &TagRing, name: &TagName) -> Result<Response, IndexError> {
    let state = tags.state(name).await?;
    let version = state.as_ref().map_or(Version::ZERO, |it| it.now.version);
    Ok(match state.and_then(|state| state.now.digest) {
        Some(digest) => (versioned(version), digest.to_string()).into_response(),
        // When it was removed: who wants to set it says so.
        None => {
            let number = HeaderName::from_static(TAG_VERSION);
            let version = [(number, value(version.get().to_string()))];
            (version, IndexError::unknown(name)).into_response()
        }
    })
}

/// One state of a tag, as clients are told it.
#[derive(Debug, Serialize)]
struct Told {
    /// Nothing once it was removed.
    digest: Option<Digest>,
    /// As text: it is larger than the numbers that all readers of JSON keep exactly.
    version: String,
    /// Milliseconds since 1970.
    time_ms: u64,
    cluster: String,
}

async fn history(
    State(tags): State<TagRing>,
    Path(name): Path<String>,
) -> Result<Response, IndexError> {
    let name: TagName = name.parse()?;
    let state = tags.state(&name).await?;
    let state = state.ok_or_else(|| IndexError::unknown(&name))?;
    let told = state.records().map(|record| Told {
        digest: record.digest,
        version: record.version.get().to_string(),
        time_ms: record.version.millis(),
        cluster: record.cluster.clone(),
    });
    Ok(Json(told.collect::<Vec<_>>()).into_response())
}

async fn delete_tag(
    State(tags): State<TagRing>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, IndexError> {
    let name: TagName = name.parse()?;
    let condition = condition(&headers)?;
    let before = tags.state(&name).await?;
    if before.is_none_or(|state| state.now.digest.is_none()) {
        return Err(IndexError::unknown(&name));
    }
    tags.set(&name, None, condition).await?;
    tracing::info!(tag = %name, "tag deleted");
    Ok(StatusCode::OK.into_response())
}

async fn list_all(tags: State<TagRing>, window: Asked) -> Result<Json<Page>, IndexError> {
    list(tags, Path(String::new()), window).await
}

async fn list(
    State(tags): State<TagRing>,
    Path(prefix): Path<String>,
    Asked(window): Asked,
) -> Result<Json<Page>, IndexError> {
    let names = tags
        .page(&prefix, window.limit() + 1, window.offset())
        .await?;
    Ok(window.page(&format!("/list/{}", encode(&prefix)), names))
}

async fn list_tags(
    State(tags): State<TagRing>,
    Path(repo): Path<String>,
    Asked(window): Asked,
) -> Result<Json<Page>, IndexError> {
    let repo: RepoName = repo.parse()?;
    let names = tags
        .list(&repo, window.limit() + 1, window.offset())
        .await?;
    let path = format!("/repositories/{}/tags", encode(repo.as_str()));
    Ok(window.page(&path, names))
}

/// Whether there is such a repository, or was.
async fn know(
    State(tags): State<TagRing>,
    Path(repo): Path<String>,
) -> Result<&'static str, IndexError> {
    let repo: RepoName = repo.parse()?;
    if tags.is_known(&repo).await? {
        return Ok("");
    }
    let message = format!("there is no repository {repo}");
    Err(IndexError::new(StatusCode::NOT_FOUND, TAG_UNKNOWN, message))
}

async fn tags_of(
    State(tags): State<TagRing>,
    Path((repo, digest)): Path<(String, String)>,
) -> Result<Json<Vec<String>>, IndexError> {
    let digest = digest.parse().map_err(NameError::from)?;
    let found = tags.tags_of(&repo.parse()?, digest).await?;
    Ok(Json(found.iter().map(ToString::to_string).collect()))
}

/// 200 when the repository holds it; 404 with one code when it was removed, and another when it never
/// was there.
async fn get_link(
    State(tags): State<TagRing>,
    Path((repo, link)): Path<(String, String)>,
) -> Result<Response, IndexError> {
    let (repo, link): (RepoName, Link) = (repo.parse()?, link.parse()?);
    let (known, version) = tags.link(&repo, link).await?;
    let code = match known {
        Linked::Held => return Ok((versioned(version), ()).into_response()),
        Linked::Removed => LINK_REMOVED,
        Linked::Never => TAG_UNKNOWN,
    };
    let message = format!("{repo} does not hold {link}");
    let error = IndexError::new(StatusCode::NOT_FOUND, code, message);
    Ok((versioned(version), error).into_response())
}

async fn hold_link(
    State(tags): State<TagRing>,
    Path((repo, link)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, IndexError> {
    let asked = (true, condition(&headers)?);
    let version = tags.set_link(&repo.parse()?, link.parse()?, asked).await?;
    Ok((versioned(version), ()).into_response())
}

async fn remove_link(
    State(tags): State<TagRing>,
    Path((repo, link)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, IndexError> {
    let asked = (false, condition(&headers)?);
    let version = tags.set_link(&repo.parse()?, link.parse()?, asked).await?;
    Ok((versioned(version), ()).into_response())
}

#[derive(Debug, Deserialize)]
struct OfKind {
    #[serde(default)]
    kind: String,
}

/// `?kind=manifests`, `blobs` or `referrers/<hex of the subject>`.
async fn list_links(
    State(tags): State<TagRing>,
    Path(repo): Path<String>,
    Query(OfKind { kind }): Query<OfKind>,
    Asked(window): Asked,
) -> Result<Json<Page>, IndexError> {
    let (repo, of): (RepoName, LinkKind) = (repo.parse()?, kind.parse()?);
    let after = window.offset().map(Digest::from_hex);
    let after = after.transpose().map_err(NameError::from)?;
    let found = tags.links(&repo, of, window.limit() + 1, after).await?;
    let path = format!(
        "/repositories/{}/links?kind={}",
        encode(repo.as_str()),
        encode(&kind)
    );
    Ok(window.page(&path, found.iter().map(Digest::hex).collect()))
}

async fn list_repositories(
    State(tags): State<TagRing>,
    Asked(window): Asked,
) -> Result<Json<Page>, IndexError> {
    let names = tags
        .repositories(window.limit() + 1, window.offset())
        .await?;
    Ok(window.page("/repositories", names))
}
