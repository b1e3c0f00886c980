//! What a registry answers when it cannot do as asked: a status and the OCI error document.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_RANGE, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::source::SourceError;
use crate::tags::TagError;
use crate::web::value;

/// The error codes of the OCI distribution specification, and two for what it has no code for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// No such blob.
    BlobUnknown,
    /// The upload broke or does not fit what was said of it.
    BlobUploadInvalid,
    /// No such upload, or it timed out.
    BlobUploadUnknown,
    /// A digest is missing, malformed, or not that of the bytes.
    DigestInvalid,
    /// A manifest refers to a blob that is not here.
    ManifestBlobUnknown,
    /// Not a manifest that this registry understands.
    ManifestInvalid,
    /// No such manifest.
    ManifestUnknown,
    /// A malformed repository name.
    NameInvalid,
    /// No such repository.
    NameUnknown,
    /// A length that does not fit.
    SizeInvalid,
    /// Credentials are needed.
    Unauthorized,
    /// These credentials do not suffice.
    Denied,
    /// The operation does not exist here.
    Unsupported,
    /// The client asks too often.
    TooManyRequests,
    /// What the answer depends on could not be asked. Not of the specification: registries use it.
    Unavailable,
    /// The registry's own fault. Not of the specification: registries use it.
    Unknown,
}

impl Code {
    /// The code's text in the error document.
    pub fn as_str(self) -> &'static str {
        self.parts().0
    }

    /// The status that goes with the code, unless an answer overrides it.
    pub fn status(self) -> StatusCode {
        self.parts().1
    }

    fn parts(self) -> (&'static str, StatusCode) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", StatusCode::BAD_REQUEST),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("UNAUTHORIZED", StatusCode::UNAUTHORIZED),
            Self::Denied => ("DENIED", StatusCode::FORBIDDEN),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED),
            Self::TooManyRequests => ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable => ("UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE),
            Self::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// An answer that is an error.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct RegistryError {
    code: Code,
    status: StatusCode,
    message: String,
    detail: Option<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl RegistryError {
    /// An error with the status of its code. The message says what the user can do.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut headers = Vec::new();
        if code == Code::TooManyRequests {
            headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
        }
        Self {
            code,
            status: code.status(),
            message: message.into(),
            detail: None,
            headers,
        }
    }

    /// Another status than the code's own.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// More for machines: any JSON.
    #[must_use]
    pub fn with_detail(mut self, detail: Value) -> Self {
        self.detail = Some(detail);
        self
    }

    /// The error's code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn with_header(mut self, name: HeaderName, header: HeaderValue) -> Self {
        self.headers.push((name, header));
        self
    }

    /// 405, with the methods that exist.
    pub(crate) fn method(message: &str, allowed: &'static str) -> Self {
        Self::new(Code::Unsupported, message).with_header(ALLOW, HeaderValue::from_static(allowed))
    }

    /// 416 for a range of a blob of `total` bytes.
    pub(crate) fn range(total: u64) -> Self {
        Self::new(
            Code::SizeInvalid,
            format!("the range lies outside the blob's {total} bytes"),
        )
        .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
        .with_header(CONTENT_RANGE, value(format!("bytes */{total}")))
    }

    /// 416 for a chunk that does not follow the `len` bytes which an upload holds.
    pub(crate) fn chunk(len: u64) -> Self {
        Self::new(
            Code::BlobUploadInvalid,
            format!("chunks come in order: the next one begins at {len}"),
        )
        .with_status(StatusCode::RANGE_NOT_SATISFIABLE)
        .with_header(RANGE, value(format!("0-{}", len.saturating_sub(1))))
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let mut entry = json!({ "code": self.code.as_str(), "message": self.message });
        if let Some(detail) = self.detail {
            entry["detail"] = detail;
        }
        let headers: HeaderMap = self.headers.into_iter().collect();
        let body = Json(json!({ "errors": [entry] }));
        (self.status, headers, body).into_response()
    }
}

impl From<SourceError> for RegistryError {
    fn from(error: SourceError) -> Self {
        let code = match error {
            SourceError::NotFound => Code::BlobUnknown,
            SourceError::Unavailable(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<TagError> for RegistryError {
    fn from(error: TagError) -> Self {
        let code = match error {
            TagError::Unavailable(_) => Code::Unavailable,
            TagError::Refused(_) => Code::ManifestInvalid,
            TagError::Conflict(_) => Code::Denied,
        };
        let status = match error {
            TagError::Conflict(_) => StatusCode::CONFLICT,
            _ => code.status(),
        };
        Self {
            status,
            ..Self::new(code, error.to_string())
        }
    }
}
