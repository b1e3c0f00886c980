//! How an upload is written into URLs and headers.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{CONTENT_RANGE, HeaderValue, LOCATION, RANGE};

use crate::error::{Code, RegistryError};
use crate::name::RepoName;
use crate::web::{UPLOAD_UUID, header, is_unreserved, value};

/// The id as one segment of a path. An id with characters that proxies and clients like to rewrite
/// (`host:port/7` and the like) travels as base64, marked by a tilde.
pub(super) fn token(id: &str) -> String {
    let plain = !id.is_empty() && !id.starts_with('~') && id.bytes().all(is_unreserved);
    // A segment of dots only would be taken for a step up.
    if plain && id.bytes().any(|byte| byte != b'.') {
        id.to_string()
    } else {
        format!("~{}", URL_SAFE_NO_PAD.encode(id))
    }
}

/// The id behind a segment of a path.
pub(super) fn id(token: &str) -> Result<String, RegistryError> {
    let Some(encoded) = token.strip_prefix('~') else {
        return Ok(token.to_string());
    };
    let bytes = URL_SAFE_NO_PAD.decode(encoded).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| RegistryError::new(Code::BlobUploadUnknown, "there is no such upload"))
}

/// The headers of every answer about a running upload of `len` bytes.
pub(super) fn headers(repo: &RepoName, id: &str, len: u64) -> HeaderMap {
    let token = token(id);
    let mut headers = HeaderMap::new();
    // Without a host: behind a load balancer or a TLS terminator we do not know our own name.
    headers.insert(LOCATION, value(format!("/v2/{repo}/blobs/uploads/{token}")));
    headers.insert(UPLOAD_UUID, value(token));
    headers.insert(RANGE, held(len));
    headers
}

/// `Range: 0-<last byte>`; clients expect `0-0` of an empty upload too.
fn held(len: u64) -> HeaderValue {
    value(format!("0-{}", len.saturating_sub(1)))
}

/// The `Content-Range` of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: u64,
    /// In bytes.
    pub(super) len: u64,
}

impl Chunk {
    /// None when the client streams without saying where it is.
    pub(super) fn parse(headers: &HeaderMap) -> Result<Option<Self>, RegistryError> {
        if !headers.contains_key(CONTENT_RANGE) {
            return Ok(None);
        }
        let chunk = header(headers, CONTENT_RANGE).and_then(Self::read);
        let wrong = || {
            RegistryError::new(
                Code::BlobUploadInvalid,
                "Content-Range is written <first byte>-<last byte>, both included",
            )
        };
        chunk.map(Some).ok_or_else(wrong)
    }

    /// `a-b` of the specification, or `bytes a-b/total` of HTTP, which some clients send.
    fn read(text: &str) -> Option<Self> {
        let text = text.strip_prefix("bytes ").unwrap_or(text).trim();
        let range = text.split_once('/').map_or(text, |(range, _)| range);
        let (first, last) = range.split_once('-')?;
        let (start, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        let len = last.checked_sub(start)?.checked_add(1)?;
        Some(Self { start, len })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_include_their_last_byte() {
        assert_eq!(Chunk::read("0-9"), Some(Chunk { start: 0, len: 10 }));
        assert_eq!(Chunk::read("5-5"), Some(Chunk { start: 5, len: 1 }));
        assert_eq!(
            Chunk::read("bytes 5-9/20"),
            Some(Chunk { start: 5, len: 5 })
        );
        for wrong in ["", "5", "9-5", "a-b", "-5", "5-", "0-18446744073709551615"] {
            assert_eq!(Chunk::read(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_id_survives_the_way_through_a_url(text in ".*") {
            let token = token(&text);
            prop_assert!(token.bytes().all(is_unreserved));
            prop_assert!(token.bytes().any(|byte| byte != b'.'));
            prop_assert_eq!(id(&token).unwrap(), text);
        }
    }
}
