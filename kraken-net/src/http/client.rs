//! The HTTP client of every process, plain or with the cluster's mutual TLS.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Method, Request, StatusCode};
use reqwest::ClientBuilder;
use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;

use super::ByteStream;
use super::error::ApiError;
use super::idle::{Pulse, until_idle};
use super::traced::inject;
use super::trust::OutsideTrust;
use crate::identity::{Identity, IdentityError, provider};
use crate::roles::{Callers, Role};

/// How long a connection may take, its TLS handshake included: a host that is gone is noticed
/// within one breath of a waiting pull.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer may stand still, from the request on. No time bounds a whole body.
pub const READ_IDLE: Duration = Duration::from_secs(60);
/// The longest error body that is read, in bytes.
const MAX_ERROR: usize = 16 << 10;

/// An HTTP client. Clones share its connections.
///
/// It speaks HTTP/1.1: blobs then travel on connections of their own and do not wait for each
/// other in one window. It follows no redirects and knows no proxies. Other members of the cluster are told
/// of the [trace](crate::trace) that a request belongs to, and nobody else.
#[derive(Clone)]
pub struct HttpClient {
    client: reqwest::Client,
    identity: Option<Identity>,
}

impl HttpClient {
    /// A client that shows `identity` and trusts its authority; or, without one, a client for
    /// plain HTTP in a lab.
    ///
    /// # Errors
    /// The identity cannot be used for TLS 1.3.
    pub fn new(identity: Option<&Identity>) -> Result<Self, IdentityError> {
        Self::to(identity, Callers::Anyone)
    }

    /// The same, for calls at processes of these roles only: others are not believed, whatever
    /// certificate of the cluster they have.
    ///
    /// # Errors
    /// As of [`HttpClient::new`].
    pub fn calling(&self, roles: &'static [Role]) -> Result<Self, IdentityError> {
        Self::to(self.identity.as_ref(), Callers::Roles(roles))
    }

    fn to(identity: Option<&Identity>, roles: Callers) -> Result<Self, IdentityError> {
        let tls = match identity {
            Some(identity) => identity.named_client_config(b"http/1.1", roles)?,
            None => plain()?,
        };
        Self::build(tls, identity, |client| client)
    }

    /// A client of services outside of the cluster, over TLS 1.2 and 1.3, or plain HTTP.
    ///
    /// # Errors
    /// A file cannot be read or used, or this host trusts nobody and `trust` does not say whom to.
    pub fn outside(trust: &OutsideTrust) -> Result<Self, IdentityError> {
        Self::build(trust.config()?, None, |client| client)
    }

    /// A client of the service that answers plain HTTP at a Unix socket, whichever host a URL names.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    #[cfg(unix)]
    pub fn over_socket(path: &Path) -> Result<Self, IdentityError> {
        Self::build(plain()?, None, |client| client.unix_socket(path))
    }

    fn build(
        tls: ClientConfig,
        identity: Option<&Identity>,
        more: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Self, IdentityError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(15));
        let client = more(client).build();
        let client = client.map_err(|error| IdentityError::Tls(chain(&error)))?;
        let identity = identity.cloned();
        Ok(Self { client, identity })
    }

    /// The client underneath, for crates that speak to a service of their own. It has no timeout
    /// but for connecting.
    pub fn raw(&self) -> reqwest::Client {
        self.client.clone()
    }

    /// Sends a request with an absolute URL and waits for the head of the answer, whatever its
    /// status, as long as its body flows and then for [`READ_IDLE`].
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when there is no answer.
    pub async fn send(&self, request: Request<HttpBody>) -> Result<HttpResponse, ApiError> {
        self.send_within(request, READ_IDLE).await
    }

    /// [`HttpClient::send`] for a call that the other side may work on for `patience` before it
    /// answers.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when there is no answer.
    pub async fn send_within(
        &self,
        request: Request<HttpBody>,
        patience: Duration,
    ) -> Result<HttpResponse, ApiError> {
        let (mut head, body) = request.into_parts();
        if self.identity.is_some() {
            inject(&mut head.headers);
        }
        let from = origin_of(&head.uri);
        let outgoing = self
            .client
            .request(head.method, head.uri.to_string())
            .headers(head.headers);
        let pulse = Pulse::default();
        let outgoing = match body {
            HttpBody::Empty => outgoing,
            HttpBody::Bytes(bytes) => outgoing.body(bytes),
            HttpBody::Stream(stream) => {
                outgoing.body(reqwest::Body::wrap_stream(pulse.watch(stream)))
            }
        };
        let why = match pulse.wait(patience, outgoing.send()).await {
            Some(Ok(response)) => return Ok(HttpResponse { from, response }),
            Some(Err(error)) => chain(&error),
            None => format!("silence for {} s", patience.as_secs()),
        };
        Err(ApiError::Unavailable(format!(
            "{from} does not answer: {why}"
        )))
    }

    /// [`HttpClient::send`], and an answer that is no success becomes its error.
    ///
    /// # Errors
    /// No answer, or what the answer says.
    pub async fn ask(&self, request: Request<HttpBody>) -> Result<HttpResponse, ApiError> {
        self.send(request).await?.successful().await
    }
}

/// Trusts nobody, so that https:// without an identity fails instead of going out.
fn plain() -> Result<ClientConfig, IdentityError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| IdentityError::Tls(error.to_string()))?;
    let config = config.with_root_certificates(RootCertStore::empty());
    Ok(config.with_no_client_auth())
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

/// What a request carries.
pub enum HttpBody {
    /// Nothing.
    Empty,
    /// Bytes that are there.
    Bytes(Bytes),
    /// Bytes as they come; an error in the stream breaks the request off.
    Stream(ByteStream),
}

impl fmt::Debug for HttpBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct HttpResponse {
    from: String,
    response: reqwest::Response,
}

impl HttpResponse {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The text of a header, if it is there and is text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The answer itself if it is a success.
    ///
    /// # Errors
    /// What the answer says.
    pub async fn successful(self) -> Result<Self, ApiError> {
        if self.status().is_success() {
            return Ok(self);
        }
        let (status, head) = (self.status(), self.headers().clone());
        let from = self.from.clone();
        // The status counts even when its explanation is cut off.
        let body = self.bytes(MAX_ERROR).await.unwrap_or_default();
        Err(ApiError::from_answer(&from, status, &head, &body))
    }

    /// The whole body.
    ///
    /// # Errors
    /// It breaks off, or has more than `limit` bytes.
    pub async fn bytes(self, limit: usize) -> Result<Bytes, ApiError> {
        let from = self.from.clone();
        let mut stream = self.stream();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ApiError::Unavailable(error.to_string()))?;
            if bytes.len() + chunk.len() > limit {
                return Err(ApiError::Internal(format!(
                    "{from} answered with more than {limit} bytes"
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// The body, read as JSON.
    ///
    /// # Errors
    /// As [`HttpResponse::bytes`], or it is not the JSON that was expected.
    pub async fn json<T: DeserializeOwned>(self, limit: usize) -> Result<T, ApiError> {
        let from = self.from.clone();
        let bytes = self.bytes(limit).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::Internal(format!("{from} answered with unexpected JSON: {error}"))
        })
    }

    /// The body as it comes; an error when it stands still for [`READ_IDLE`].
    pub fn stream(self) -> ByteStream {
        let from = self.from;
        let stream = self.response.bytes_stream().map_err(move |error| {
            let told = format!("the answer of {from} broke off: {}", chain(&error));
            io::Error::new(io::ErrorKind::ConnectionAborted, told)
        });
        until_idle(stream.boxed(), READ_IDLE)
    }
}

/// A request without a body.
pub(crate) fn request(method: Method, url: String) -> Result<Request<HttpBody>, ApiError> {
    request_with(method, url, HttpBody::Empty)
}

/// A request with a body.
pub(crate) fn request_with(
    method: Method,
    url: String,
    body: HttpBody,
) -> Result<Request<HttpBody>, ApiError> {
    Request::builder()
        .method(method)
        .uri(url)
        .body(body)
        .map_err(|error| ApiError::BadRequest(format!("the request cannot be built: {error}")))
}

fn origin_of(uri: &http::Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("?", http::uri::Authority::as_str);
    format!("{scheme}://{authority}")
}

/// An error with its causes: the outermost alone says "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}
