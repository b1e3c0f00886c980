//! Pages of names: a repository's tags, and the repositories.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::LINK;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::PullState;
use crate::error::{Code, RegistryError};
use crate::name::RepoName;
use crate::source::BlobSource;
use crate::tags::{LinkService, TagService};
use crate::web::{encode, param, query, value};

/// `GET /v2/<name>/tags/list?n=&last=`
pub(super) async fn tags<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
    repo: &RepoName,
) -> Result<Response, RegistryError> {
    let page = Page::parse(parts)?;
    let mut tags = state.tags.list(repo, page.n + 1, page.last()).await?;
    if tags.is_empty() && !state.tags.is_known(repo).await? {
        let message = format!("there is no repository {repo}");
        return Err(RegistryError::new(Code::NameUnknown, message));
    }
    let link = page.cut(&mut tags, &format!("/v2/{repo}/tags/list"));
    Ok((link, Json(json!({ "name": repo.as_str(), "tags": tags }))).into_response())
}

/// `GET /v2/_catalog?n=&last=`
pub(super) async fn catalog<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
) -> Result<Response, RegistryError> {
    let page = Page::parse(parts)?;
    let mut repositories = state.tags.repositories(page.n + 1, page.last()).await?;
    let link = page.cut(&mut repositories, "/v2/_catalog");
    Ok((link, Json(json!({ "repositories": repositories }))).into_response())
}

/// The longest page. A longer list goes on behind a `Link`, which clients follow unasked.
const MAX_PAGE: usize = 10_000;

struct Page {
    n: usize,
    last: Option<String>,
}

impl Page {
    fn parse(parts: &Parts) -> Result<Self, RegistryError> {
        let pairs = query(&parts.uri);
        let n = match param(&pairs, "n") {
            None => MAX_PAGE,
            Some(text) => text
                .parse::<u64>()
                .map_or(None, |n| usize::try_from(n).ok())
                .ok_or_else(|| {
                    RegistryError::new(
                        Code::SizeInvalid,
                        "n is the number of names in a page: a whole number, zero or more",
                    )
                    .with_status(StatusCode::BAD_REQUEST)
                })?,
        };
        Ok(Self {
            n: n.min(MAX_PAGE),
            last: param(&pairs, "last").map(str::to_string),
        })
    }

    fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Cuts a list that was asked for with one name too many, and links to the rest if there is
    /// one. An empty page has no last name to go on from, hence no link.
    fn cut(&self, names: &mut Vec<String>, path: &str) -> HeaderMap {
        let more = names.len() > self.n;
        names.truncate(self.n);
        let mut headers = HeaderMap::new();
        if let (true, Some(last)) = (more, names.last()) {
            let (n, last) = (self.n, encode(last));
            let link = format!("<{path}?n={n}&last={last}>; rel=\"next\"");
            headers.insert(LINK, value(link));
        }
        headers
    }
}
