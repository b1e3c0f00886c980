//! Paths: namespaces and digests in URLs, both ways.

use std::fmt::Write as _;

use axum::extract::{FromRequestParts, Path, Query};
use http::request::Parts;
use kraken_proto::{Digest, Namespace};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// `text` as one segment of a path: everything but RFC 3986's unreserved characters is escaped,
/// the slash included.
pub fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a String grows");
        }
    }
    escaped
}

/// The parts of a path, with errors of our shape.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S, T> FromRequestParts<S> for Params<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::BadRequest(error.body_text())),
        }
    }
}

/// The query of a URL, with errors of our shape.
#[derive(Debug)]
pub struct Asked<T>(pub T);

impl<S, T> FromRequestParts<S> for Asked<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::BadRequest(error.body_text())),
        }
    }
}

/// The digest in a path. The bare hexadecimal form is accepted where the original accepts it.
pub(crate) fn digest(text: &str) -> Result<Digest, ApiError> {
    let parsed = if text.contains(':') {
        text.parse()
    } else {
        Digest::from_hex(text)
    };
    parsed.map_err(|error| ApiError::BadRequest(error.to_string()))
}

/// The namespace in a path.
pub(crate) fn namespace(text: &str) -> Result<Namespace, ApiError> {
    text.parse()
        .map_err(|error: kraken_proto::NamespaceError| ApiError::BadRequest(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_holds_no_slash() {
        assert_eq!(segment("library/busybox"), "library%2Fbusybox");
        assert_eq!(segment("a b?%#ä"), "a%20b%3F%25%23%C3%A4");
        assert_eq!(segment("repo:1.0_x-y~z"), "repo:1.0_x-y~z");
    }

    #[test]
    fn digests_have_two_forms() {
        let it = Digest::of(b"x");
        assert_eq!(digest(&it.to_string()).unwrap(), it);
        assert_eq!(digest(&it.hex()).unwrap(), it);
        assert!(matches!(digest("abc"), Err(ApiError::BadRequest(_))));
        assert!(matches!(digest("md5:ab"), Err(ApiError::BadRequest(_))));
    }
}
