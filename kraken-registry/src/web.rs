//! Small parts of HTTP that several handlers share: escaping, queries, header values, links.

use axum::extract::Query;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// Undoes percent-escaping; none when an escape is broken or the text is not UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Escapes all but the unreserved characters, so that the text is one segment of a path or one
/// value of a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Characters that no proxy or client rewrites in a URL.
pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The pairs of a query, unescaped; none of them when the query is broken.
pub(crate) fn query(uri: &Uri) -> Vec<(String, String)> {
    Query::try_from_uri(uri).map_or_else(|_| Vec::new(), |Query(pairs)| pairs)
}

/// The first value of a parameter.
pub(crate) fn param<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = pairs.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

/// A header as text, trimmed.
pub(crate) fn header(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A header's value from text that we made ourselves.
pub(crate) fn value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(text.as_ref())
        .expect("names, digests, numbers and escaped text are visible ASCII")
}

/// `Docker-Content-Digest`: the digest of what is served.
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// `Docker-Upload-UUID`: the upload's id.
pub(crate) const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// `Docker-Distribution-Api-Version`: tells old clients that this is a registry.
pub(crate) const API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");
/// `OCI-Namespace`: the upstream host that a mirror answers for.
pub(crate) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// `OCI-Subject`: the manifest that the one just pushed is about.
pub(crate) const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// `OCI-Tag`: a tag that was set along with a manifest.
pub(crate) const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// An error with its causes: reqwest's own text leaves out why it could not connect.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn broken_escapes_are_refused() {
        assert_eq!(decode("a%2Fb").as_deref(), Some("a/b"));
        for broken in ["%", "%2", "%zz", "%ff", "a%+1"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(text in ".*") {
            let escaped = encode(&text);
            prop_assert!(escaped.bytes().all(|b| is_unreserved(b) || b == b'%'));
            prop_assert_eq!(decode(&escaped), Some(text));
        }
    }
}
