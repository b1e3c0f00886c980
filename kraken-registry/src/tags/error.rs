//! What a build-index answers when it does not do what it was asked for.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use kraken_proto::tags::record::Refusal;
use serde_json::{Value, json};

use super::TagError;
use super::check::CheckError;
use crate::name::{NameError, TagName};

/// The code that says that a tag was changed in between.
pub(super) const TAG_CHANGED: &str = "TAG_CHANGED";
/// The code that says for sure that a tag does not exist.
pub(super) const TAG_UNKNOWN: &str = "TAG_UNKNOWN";
/// The code that says that a tag never changes.
pub(super) const TAG_IMMUTABLE: &str = "TAG_IMMUTABLE";
/// The code that says that something was removed from its repository.
pub(super) const LINK_REMOVED: &str = "LINK_REMOVED";

/// An answer that is an error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct IndexError {
    status: StatusCode,
    code: &'static str,
    message: String,
    detail: Value,
}

impl IndexError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self {
            status,
            code,
            message,
            detail: Value::Null,
        }
    }

    pub(crate) fn unknown(name: &TagName) -> Self {
        let message = format!("there is no tag {name}");
        Self::new(StatusCode::NOT_FOUND, TAG_UNKNOWN, message)
    }

    /// Whether what is there does not allow it, whoever asks again.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status == StatusCode::CONFLICT
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

impl From<TagError> for IndexError {
    fn from(error: TagError) -> Self {
        let message = error.to_string();
        match error {
            TagError::Unavailable(reason) => {
                tracing::error!(reason, "tags");
                Self::unavailable(message)
            }
            TagError::Refused(_) => Self::new(StatusCode::BAD_REQUEST, "TAG_INVALID", message),
            TagError::Conflict(Refusal::Immutable) => {
                Self::new(StatusCode::CONFLICT, TAG_IMMUTABLE, message)
            }
            TagError::Conflict(_) => {
                Self::new(StatusCode::PRECONDITION_FAILED, TAG_CHANGED, message)
            }
        }
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
