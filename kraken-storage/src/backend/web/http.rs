//! Any HTTP server, read-only.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use http::StatusCode;
use http::header::{ACCEPT_ENCODING, RANGE};
use kraken_proto::{Digest, Namespace};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;

use super::requests::{Requests, length, ranged, refused};
use super::{client, resume};
use crate::backend::{Backend, BackendError, ByteStream, Secret};

/// Where blobs are downloaded from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpOptions {
    /// The URL of a blob, with `{hex}` or `{digest}` (with `sha256:` in front) in it, and maybe
    /// `{shard}` (the first two hex digits) and `{namespace}`.
    pub url: String,
    /// A user's name, with `password`.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A bearer token, instead.
    #[serde(default)]
    pub token: Option<Secret>,
    /// The authorities to trust instead of this host's: a PEM file.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

impl HttpOptions {
    /// The URL of a blob, with what stands for the blob in it, as in [`HttpOptions::url`].
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            username: None,
            password: None,
            token: None,
            ca: None,
        }
    }
}

/// Reads blobs from any HTTP server. Clones share its connections.
#[derive(Debug, Clone)]
pub struct HttpBackend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: HttpOptions,
    requests: Requests,
}

impl HttpBackend {
    /// A request's answer, and each part of a body, may take `timeout`.
    ///
    /// # Errors
    /// The URL names no blob or is none, or the authorities cannot be read.
    pub fn new(options: HttpOptions, timeout: Duration) -> Result<Self, BackendError> {
        let url = &options.url;
        if !url.contains("{hex}") && !url.contains("{digest}") {
            return Err(BackendError::Denied(format!(
                "http: the url {url:?} is the same for all blobs: put {{hex}} or {{digest}} in it"
            )));
        }
        let example = fill(url, &Namespace::default(), Digest::of(b""));
        if let Some(open) = example.find('{') {
            return Err(BackendError::Denied(format!(
                "http: nothing is known for {:?} in the url: {{hex}}, {{digest}}, {{shard}} and \
                 {{namespace}} are",
                &example[open..]
            )));
        }
        reqwest::Url::parse(&example)
            .map_err(|error| BackendError::Denied(format!("http: the url {url:?}: {error}")))?;
        let requests = Requests::new(client(options.ca.as_deref())?, timeout);
        Ok(Self(Arc::new(Inner { options, requests })))
    }
}

fn fill(url: &str, namespace: &Namespace, digest: Digest) -> String {
    let hex = digest.hex();
    url.replace("{hex}", &hex)
        .replace("{digest}", &digest.to_string())
        .replace("{shard}", &hex[..2])
        .replace("{namespace}", namespace.as_str())
}

impl Inner {
    /// Makes requests for one blob. The secrets are read each time, so that they can be renewed.
    fn request(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<impl Fn(&reqwest::Client, Method) -> RequestBuilder + use<>, BackendError> {
        let url = fill(&self.options.url, namespace, digest);
        let reveal = |secret: &Option<Secret>| secret.as_ref().map(Secret::reveal).transpose();
        let (password, token) = (
            reveal(&self.options.password)?,
            reveal(&self.options.token)?,
        );
        let username = self.options.username.clone();
        Ok(move |client: &reqwest::Client, method: Method| {
            let request = client.request(method, &url);
            let request = request.header(ACCEPT_ENCODING, "identity");
            match (&token, &username) {
                (Some(token), _) => request.bearer_auth(token),
                (None, Some(username)) => request.basic_auth(username, password.as_ref()),
                (None, None) => request,
            }
        })
    }

    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        let request = self.request(namespace, digest)?;
        let head = |client: &_| request(client, Method::HEAD);
        let mut response = self.requests.send(head).await?;
        let headless = [StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
        if headless.contains(&response.status()) {
            let first = |client: &_| request(client, Method::GET).header(RANGE, "bytes=0-0");
            response = self.requests.send(first).await?;
        }
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            // An empty blob has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE => match ranged(response.headers()) {
                Some(length) => Ok(Some(length)),
                None => Err(refused(&response)),
            },
            status if status.is_success() => match length(response.headers()) {
                Some(length) => Ok(Some(length)),
                None => Err(BackendError::Other("the server tells no length".into())),
            },
            _ => Err(refused(&response)),
        }
    }

    async fn open(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let request = self.request(namespace, digest)?;
        let wanted = resume::header(&range);
        let get = |client: &_| request(client, Method::GET).header(RANGE, &wanted);
        let response = self.requests.send(get).await?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(BackendError::NotFound(digest)),
            status if status.is_success() => resume::from(&self.requests, response, range.start),
            _ => Err(refused(&response)),
        }
    }
}

impl Backend for HttpBackend {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        self.0.stat(namespace, digest).await
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let length = self.0.stat(namespace, digest).await?;
        let length = length.ok_or(BackendError::NotFound(digest))?;
        let (inner, namespace) = (Arc::clone(&self.0), namespace.clone());
        let open = move |range| {
            let (inner, namespace) = (Arc::clone(&inner), namespace.clone());
            async move { inner.open(&namespace, digest, range).await }.boxed()
        };
        resume::resuming(range, length, Box::new(open)).await
    }

    async fn write(
        &self,
        namespace: &Namespace,
        _: Digest,
        _: u64,
        _: ByteStream,
    ) -> Result<(), BackendError> {
        Err(BackendError::ReadOnly(namespace.clone()))
    }

    async fn delete(&self, namespace: &Namespace, _: Digest) -> Result<(), BackendError> {
        Err(BackendError::ReadOnly(namespace.clone()))
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<(), BackendError> {
        Err(BackendError::ReadOnly(namespace.clone()))
    }

    async fn ready(&self) -> Result<(), BackendError> {
        let asked = self.stat(&Namespace::default(), Digest::of(b"")).await;
        asked.map(drop)
    }
}
