//! The build-index over HTTP.
//!
//! | method and path | answer |
//! |---|---|
//! | `PUT /tags/{repo:tag}/digest/{digest}` | 200 once durable; 404 or 400 when the image is incomplete or unfit |
//! | `GET`, `HEAD /tags/{repo:tag}` | the digest as text, `Kraken-Tag-Version` |
//! | `DELETE /tags/{repo:tag}` | 200, 404 |
//! | `GET /list/{prefix}?limit=&offset=` | a page of `repo:tag` |
//! | `GET /repositories/{repo}/tags?limit=&offset=` | a page of tags |
//! | `GET /repositories?limit=&offset=` | a page of repositories |
//!
//! `{repo:tag}` and `{repo}` are one escaped segment. A page is
//! `{"Links":{"next","self"},"size","result":[…]}`; `offset` is the last name of the page before,
//! so that pages stay right while tags come and go. Errors are
//! `{"error":{"code","message","detail"}}`.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::StatusCode;
use kraken_proto::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::TagService;
use super::check::{self, CheckError};
use super::store::{TagStore, TagStoreError};
use crate::name::{NameError, RepoName, split_tag};
use crate::source::BlobSource;
use crate::web::{encode, value};

/// The routes of a build-index which takes a tag only when `blobs` has everything that it needs,
/// for an index down to the layers of every image.
pub fn router<B: BlobSource>(store: TagStore, blobs: B) -> Router {
    let blobs = Arc::new(blobs);
    let check = move |repo: RepoName, digest: Digest| {
        let blobs = blobs.clone();
        async move { check::complete(&*blobs, &repo.namespace(), digest).await }
    };
    routes(store, check)
}

/// The same without the check, for tags whose blobs live elsewhere.
pub fn unchecked_router(store: TagStore) -> Router {
    routes(store, |_, _| std::future::ready(Ok(())))
}

/// A page of names.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Page {
    #[serde(rename = "Links")]
    pub(super) links: Links,
    pub(super) size: usize,
    pub(super) result: Vec<String>,
}

/// Where a page and the one behind it are; empty when there is none behind it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Links {
    pub(super) next: String,
    #[serde(rename = "self")]
    pub(super) this: String,
}

/// The header with a tag's version.
pub(super) const TAG_VERSION: &str = "kraken-tag-version";
/// The code that says for sure that a tag does not exist.
pub(super) const TAG_UNKNOWN: &str = "TAG_UNKNOWN";

fn routes<F, Checked>(store: TagStore, check: F) -> Router
where
    F: Fn(RepoName, Digest) -> Checked + Clone + Send + Sync + 'static,
    Checked: Future<Output = Result<(), CheckError>> + Send,
{
    let set = move |State(store): State<TagStore>, Path((name, digest)): Path<(String, String)>| {
        let check = check.clone();
        async move { set_tag(&store, check, &name, &digest).await }
    };
    Router::new()
        .route("/tags/{tag}/digest/{digest}", put(set))
        .route("/tags/{tag}", get(get_tag).delete(delete_tag))
        .route("/list", get(list_all))
        .route("/list/", get(list_all))
        .route("/list/{*prefix}", get(list))
        .route("/repositories", get(list_repositories))
        .route("/repositories/{repo}/tags", get(list_tags))
        .with_state(store)
}

async fn set_tag<F, Checked>(
    store: &TagStore,
    check: F,
    name: &str,
    digest: &str,
) -> Result<Response, IndexError>
where
    F: Fn(RepoName, Digest) -> Checked,
    Checked: Future<Output = Result<(), CheckError>>,
{
    let (repo, tag) = split_tag(name)?;
    // The original takes bare digits here too.
    let digest = if digest.contains(':') {
        digest.parse()
    } else {
        Digest::from_hex(digest)
    };
    let digest = digest.map_err(NameError::from)?;
    check(repo.clone(), digest).await?;
    let record = store.set(&repo, &tag, digest).await?;
    tracing::info!(%repo, %tag, %digest, version = record.version, "tag set");
    Ok(([(TAG_VERSION, value(record.version.to_string()))], ()).into_response())
}

async fn get_tag(
    State(store): State<TagStore>,
    Path(name): Path<String>,
) -> Result<Response, IndexError> {
    let (repo, tag) = split_tag(&name)?;
    let record = store.lookup(&repo, &tag).await?;
    let record = record.ok_or_else(|| IndexError::unknown(&name))?;
    let version = value(record.version.to_string());
    Ok(([(TAG_VERSION, version)], record.digest.to_string()).into_response())
}

async fn delete_tag(
    State(store): State<TagStore>,
    Path(name): Path<String>,
) -> Result<Response, IndexError> {
    let (repo, tag) = split_tag(&name)?;
    if !store.remove(&repo, &tag).await? {
        return Err(IndexError::unknown(&name));
    }
    tracing::info!(%repo, %tag, "tag deleted");
    Ok(StatusCode::OK.into_response())
}

#[derive(Debug, Deserialize)]
struct Window {
    limit: Option<usize>,
    offset: Option<String>,
}

impl Window {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(MAX_PAGE).min(MAX_PAGE)
    }

    fn offset(&self) -> Option<&str> {
        self.offset.as_deref().filter(|offset| !offset.is_empty())
    }

    /// Cuts a list that was asked for with one name too many.
    fn page(&self, path: &str, mut result: Vec<String>) -> Json<Page> {
        let limit = self.limit();
        let more = result.len() > limit;
        result.truncate(limit);
        let link = |offset: &str| format!("{path}?limit={limit}&offset={}", encode(offset));
        let next = result.last().filter(|_| more).map(|last| link(last));
        let links = Links {
            next: next.unwrap_or_default(),
            this: link(self.offset().unwrap_or_default()),
        };
        Json(Page {
            links,
            size: result.len(),
            result,
        })
    }
}

/// Names in one answer; the link leads to more.
const MAX_PAGE: usize = 1000;

async fn list_all(store: State<TagStore>, window: Query<Window>) -> Result<Json<Page>, IndexError> {
    list(store, Path(String::new()), window).await
}

async fn list(
    State(store): State<TagStore>,
    Path(prefix): Path<String>,
    Query(window): Query<Window>,
) -> Result<Json<Page>, IndexError> {
    let names = store
        .page(&prefix, window.limit() + 1, window.offset())
        .await?;
    Ok(window.page(&format!("/list/{}", encode(&prefix)), names))
}

async fn list_tags(
    State(store): State<TagStore>,
    Path(repo): Path<String>,
    Query(window): Query<Window>,
) -> Result<Json<Page>, IndexError> {
    let repo: RepoName = repo.parse()?;
    let names = TagService::list(&store, &repo, window.limit() + 1, window.offset()).await;
    let names = names.map_err(|error| IndexError::unavailable(error.to_string()))?;
    let path = format!("/repositories/{}/tags", encode(repo.as_str()));
    Ok(window.page(&path, names))
}

async fn list_repositories(
    State(store): State<TagStore>,
    Query(window): Query<Window>,
) -> Result<Json<Page>, IndexError> {
    let names = store
        .page_repositories(window.limit() + 1, window.offset())
        .await?;
    Ok(window.page("/repositories", names))
}

/// An answer that is an error.
#[derive(Debug)]
struct IndexError {
    status: StatusCode,
    code: &'static str,
    message: String,
    detail: Value,
}

impl IndexError {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self {
            status,
            code,
            message,
            detail: Value::Null,
        }
    }

    fn unknown(name: &str) -> Self {
        let message = format!("there is no tag {name}");
        Self::new(StatusCode::NOT_FOUND, TAG_UNKNOWN, message)
    }

    fn unavailable(message: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
    }
}

impl From<NameError> for IndexError {
    fn from(error: NameError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
    }
}

impl From<TagStoreError> for IndexError {
    fn from(error: TagStoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "tag store");
        Self::unavailable(super::TagError::from(error).to_string())
    }
}

impl From<CheckError> for IndexError {
    fn from(error: CheckError) -> Self {
        let message = error.to_string();
        match error {
            CheckError::Missing(digest) => Self {
                detail: json!({ "digest": digest }),
                ..Self::new(StatusCode::NOT_FOUND, "DEPENDENCY_MISSING", message)
            },
            CheckError::Refused(_) => {
                Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
            }
            CheckError::Unavailable(_) => Self::unavailable(message),
        }
    }
}

impl IntoResponse for IndexError {
    fn into_response(self) -> Response {
        let error = json!({ "code": self.code, "message": self.message, "detail": self.detail });
        (self.status, Json(json!({ "error": error }))).into_response()
    }
}
