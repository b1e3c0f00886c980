//! Errors of HTTP calls: the same type on both sides, and how it travels.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

/// Carries the code beside the body, because the answer to a HEAD has none.
const CODE: HeaderName = HeaderName::from_static("kraken-error");

/// Why a call did not do what was asked.
///
/// It travels as a status, the header `kraken-error` and the body
/// `{"error": {"code", "message"}}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// Looked everywhere, and it is not there (404).
    #[error("not found")]
    NotFound,
    /// The request breaks a rule; the same request fails again (400).
    #[error("{0}")]
    BadRequest(String),
    /// It is not allowed, whoever asks (403).
    #[error("{0}")]
    Forbidden(String),
    /// The state of things does not allow it: present already, or still needed (409).
    #[error("{0}")]
    Conflict(String),
    /// A range or an offset outside of what is there (416).
    #[error("the range lies outside of the {len} bytes that are there")]
    RangeInvalid {
        /// How many bytes are there.
        len: u64,
    },
    /// The blob is in the storage, and its bytes do not have its digest (502).
    #[error("{0}")]
    Damaged(String),
    /// Whoever asks does so too often (429); later it may work.
    #[error("{0}")]
    TooMany(String),
    /// Somebody who is needed could not be asked; later it may work (503).
    #[error("{0}")]
    Unavailable(String),
    /// What is behind the other side, such as a registry, does not answer (504).
    #[error("{what}")]
    Behind {
        /// What is away.
        what: String,
        /// For how long it wants no request, if it says so.
        wait: Option<Duration>,
    },
    /// There is no room for it (507); elsewhere, or later, there may be.
    #[error("{0}")]
    Full(String),
    /// The other side is at fault (500).
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// Whether asking again, here or elsewhere, may help.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::TooMany(_)
                | Self::Unavailable(_)
                | Self::Behind { .. }
                | Self::Full(_)
                | Self::Internal(_)
        )
    }

    /// The status that it travels with.
    pub fn status(&self) -> StatusCode {
        self.wire().0
    }

    fn wire(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BAD_REQUEST"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "FORBIDDEN"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "CONFLICT"),
            Self::RangeInvalid { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
            Self::Damaged(_) => (StatusCode::BAD_GATEWAY, "DAMAGED"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Self::Behind { .. } => (StatusCode::GATEWAY_TIMEOUT, "BEHIND"),
            Self::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, "FULL"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
        }
    }

    /// Reads an answer that is no success. A 404 that does not say `NOT_FOUND` in our own words
    /// comes from something else at that address: it does not prove that a blob is missing.
    pub(crate) fn from_answer(
        from: &str,
        status: StatusCode,
        head: &HeaderMap,
        body: &[u8],
    ) -> Self {
        let told = serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.error.message);
        let known = head.get(&CODE).map(HeaderValue::as_bytes);
        let message = told.unwrap_or_else(|_| match known {
            // An answer to HEAD has no body.
            Some(b"BEHIND") => format!("the storage behind {from} does not answer"),
            _ => format!("{from} answered {status}"),
        });
        match (status, known) {
            (StatusCode::NOT_FOUND, Some(b"NOT_FOUND")) => Self::NotFound,
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => Self::Unavailable(
                format!("{from} does not know this call ({message}): is it the right service?"),
            ),
            (StatusCode::BAD_GATEWAY, Some(b"DAMAGED")) => Self::Damaged(message),
            (StatusCode::GATEWAY_TIMEOUT, Some(b"BEHIND")) => {
                let wait = head.get(header::RETRY_AFTER);
                let wait = wait.and_then(|it| it.to_str().ok()?.parse().ok());
                let wait = wait.map(Duration::from_secs);
                Self::Behind {
                    what: message,
                    wait,
                }
            }
            (StatusCode::INSUFFICIENT_STORAGE, _) => Self::Full(message),
            (StatusCode::FORBIDDEN, Some(b"FORBIDDEN")) => Self::Forbidden(message),
            (StatusCode::CONFLICT, _) => Self::Conflict(message),
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Self::RangeInvalid {
                len: total_of(head).unwrap_or(0),
            },
            (StatusCode::TOO_MANY_REQUESTS, _) => Self::TooMany(message),
            (StatusCode::REQUEST_TIMEOUT, _) => Self::Unavailable(message),
            (status, _) if status.is_client_error() => Self::BadRequest(message),
            (
                StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT,
                _,
            ) => Self::Unavailable(message),
            _ => Self::Internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.wire();
        let mut response = shaped(status, code, &self.to_string());
        if let Self::RangeInvalid { len } = self {
            let value = HeaderValue::try_from(format!("bytes */{len}")).expect("digits");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        if let Self::Behind {
            wait: Some(wait), ..
        } = self
        {
            // A second begun is a second to wait.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// An answer in the shape of an error: for what has no [`ApiError`] of its own.
pub(crate) fn shaped(status: StatusCode, code: &'static str, message: &str) -> Response {
    let error = Told {
        code: code.to_string(),
        message: message.to_string(),
    };
    let mut response = (status, Json(Envelope { error })).into_response();
    let code = HeaderValue::from_static(code);
    response.headers_mut().insert(CODE, code);
    response
}

/// The answer to a path that the service does not have.
pub(crate) async fn unknown_path(uri: http::Uri) -> Response {
    let message = format!("there is nothing at {}", uri.path());
    shaped(StatusCode::NOT_FOUND, "UNKNOWN_PATH", &message)
}

/// The answer to a method that the path does not have.
pub(crate) async fn unknown_method(method: http::Method, uri: http::Uri) -> Response {
    let message = format!("{} cannot be asked for with {method}", uri.path());
    shaped(StatusCode::METHOD_NOT_ALLOWED, "UNKNOWN_METHOD", &message)
}

/// The total in a `Content-Range`, as in `bytes 0-9/100` or `bytes */100`.
pub(crate) fn total_of(head: &HeaderMap) -> Option<u64> {
    let value = head.get(header::CONTENT_RANGE)?.to_str().ok()?;
    value.rsplit_once('/')?.1.parse().ok()
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    error: Told,
}

#[derive(Serialize, Deserialize)]
struct Told {
    code: String,
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_survive_the_way() {
        let errors = [
            ApiError::NotFound,
            ApiError::BadRequest("a digest has 64 digits".into()),
            ApiError::Forbidden("read-only".into()),
            ApiError::Conflict("present".into()),
            ApiError::RangeInvalid { len: 7 },
            ApiError::Damaged("the bytes have another digest".into()),
            ApiError::Unavailable("the backend does not answer".into()),
            ApiError::Behind {
                what: "the registry does not answer".into(),
                wait: None,
            },
            ApiError::Behind {
                what: "the registry wants no request".into(),
                wait: Some(Duration::from_secs(30)),
            },
            ApiError::Internal("the disk is full".into()),
        ];
        for error in errors {
            let (head, body) = error.clone().into_response().into_parts();
            let body = axum::body::to_bytes(body, 1 << 10).await.unwrap();
            let read = ApiError::from_answer("origin", head.status, &head.headers, &body);
            assert_eq!(read, error);
        }
    }

    #[test]
    fn a_strangers_404_proves_nothing() {
        let head = HeaderMap::new();
        let error = ApiError::from_answer("http://a", StatusCode::NOT_FOUND, &head, b"<html>");
        assert!(error.is_retryable(), "{error}");
        let error = ApiError::from_answer("http://a", StatusCode::BAD_GATEWAY, &head, b"");
        assert!(matches!(error, ApiError::Unavailable(_)), "{error}");
        let error = ApiError::from_answer("http://a", StatusCode::FORBIDDEN, &head, b"");
        assert!(matches!(error, ApiError::BadRequest(_)), "{error}");
    }
}
