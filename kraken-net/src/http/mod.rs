//! HTTP inside a cluster: one client, one way to serve, one shape of errors.

mod bounded;
pub mod caller;
pub mod client;
pub mod error;
pub(crate) mod health;
pub(crate) mod idle;
pub mod outside;
pub(crate) mod path;
mod patience;
mod plain;
pub mod probe;
mod requests;
mod sent;
pub mod server;
mod traced;
pub mod trust;

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use futures::stream::BoxStream;

/// What [`serve`] takes and the routers of the services are made with.
pub use axum;
/// What ends [`serve`].
pub use tokio_util::sync::CancellationToken;

pub use self::path::{Asked, Params, segment};
pub use caller::{Caller, admit};
pub use client::{HttpBody, HttpClient, HttpResponse};
pub use error::ApiError;
pub use outside::{OutsideTls, TlsClient, serve_outside};
pub use plain::FileBody;
pub use requests::Requests;
pub use sent::{Sent, SentBytes};
pub use server::{HttpServer, ServeError, serve, serve_on, with_health};
pub use traced::{TracedFrom, trace_headers, traced};
pub use trust::OutsideTrust;

/// A body in pieces, as they come.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// Where a service lives: scheme, host and port, and maybe a path in front of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// The text, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL of `path`, which begins with a slash and is escaped where it must be.
    pub(crate) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(text: &str) -> Result<Self, BaseUrlError> {
        let wrong = |why: &str| BaseUrlError {
            text: text.to_string(),
            why: why.to_string(),
        };
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        let is_http = |scheme: &str| {
            ["http", "https"]
                .iter()
                .any(|it| scheme.eq_ignore_ascii_case(it))
        };
        if !scheme.is_some_and(is_http) {
            return Err(wrong("it begins with http:// or https://"));
        }
        let url = reqwest::Url::parse(text).map_err(|error| match error.to_string().as_str() {
            "empty host" => wrong("it names no host"),
            "invalid port number" => wrong("its port is no number up to 65535"),
            why => wrong(why),
        })?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has no query and no fragment"));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_string()))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text is not the URL of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the URL of a service, such as https://tracker-1:7601: {why}")]
pub struct BaseUrlError {
    text: String,
    why: String,
}

impl BaseUrlError {
    /// What is wrong with it, without the text.
    pub fn why(&self) -> &str {
        &self.why
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod url_tests {
    use super::*;

    #[test]
    fn base_urls_are_checked_when_read() {
        let url: BaseUrl = "https://[::1]:7601/".parse().unwrap();
        assert_eq!(url.join("/announce"), "https://[::1]:7601/announce");
        let url: BaseUrl = "http://a/prefix".parse().unwrap();
        assert_eq!(url.join("/x"), "http://a/prefix/x");
        for (wrong, why) in [
            ("tracker:7601", "it begins with http:// or https://"),
            ("", "it begins with"),
            ("ftp://a", "it begins with"),
            ("http://a/?b=c", "no query"),
            ("http://", "it names no host"),
            ("https://a:70000", "its port is no number up to 65535"),
        ] {
            let error = wrong.parse::<BaseUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
