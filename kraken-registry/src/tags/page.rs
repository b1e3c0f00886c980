//! Pages of names: what is asked for, and what is answered.

use axum::Json;
use axum::extract::{FromRequestParts, Query};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};

use super::error::IndexError;
use crate::web::encode;

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

#[derive(Debug, Deserialize)]
pub(super) struct Window {
    limit: Option<usize>,
    offset: Option<String>,
}

/// The window of a query, or an error in this server's own form.
pub(super) struct Asked(pub(super) Window);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = IndexError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, IndexError> {
        let query = Query::from_request_parts(parts, state).await;
        let Query(window) = query.map_err(|error| {
            let message = format!("{}: limit is a number, offset a name", error.body_text());
            IndexError::new(StatusCode::BAD_REQUEST, "PAGINATION_INVALID", message)
        })?;
        Ok(Self(window))
    }
}

impl Window {
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
    }

    pub(super) fn offset(&self) -> Option<&str> {
        self.offset.as_deref().filter(|offset| !offset.is_empty())
    }

    /// Cuts a list that was asked for with one name too many.
    pub(super) fn page(&self, path: &str, mut result: Vec<String>) -> Json<Page> {
        let limit = self.limit();
        let more = result.len() > limit;
        result.truncate(limit);
        let joint = if path.contains('?') { '&' } else { '?' };
        let link = |offset: &str| format!("{path}{joint}limit={limit}&offset={}", encode(offset));
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
