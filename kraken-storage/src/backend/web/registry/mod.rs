//! Another registry: Docker Hub, ECR, Harbor, or any that speaks the OCI distribution protocol. Its blobs as
//! a backend, read-only; and where images are sent to.

mod challenge;
mod client;
mod login;
mod writer;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use http::StatusCode;
use http::header::{ACCEPT, ACCEPT_ENCODING, RANGE};
use kraken_proto::{Digest, Namespace};
use reqwest::{Method, Response, Url};
use serde::Deserialize;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use self::challenge::fuzz as fuzz_challenges;
pub use self::client::RegistryLogin;
use self::login::Logins;
pub use self::login::{Credentials, Right};
pub use self::writer::{PushError, Pushed, RegistryWriter, Started, Upload};
use super::requests::{Requests, length, refused};
use super::{client, resume};
use crate::backend::{Backend, BackendError, ByteStream};

/// Which registry, and who reads there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// The registry, such as `https://registry-1.docker.io`.
    pub url: String,
    /// The repository that a namespace's blobs are in; `{namespace}` stands for the namespace.
    #[serde(default = "own_name")]
    pub repository: String,
    /// What the namespace begins with and `{namespace}` does not, such as `docker.io/`.
    #[serde(default)]
    pub prefix: String,
    /// Who reads, or writes; nobody in particular when absent.
    #[serde(default)]
    pub credentials: Option<Credentials>,
    /// The authorities to trust instead of this host's: a PEM file.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

impl RegistryOptions {
    /// A registry, such as `https://registry-1.docker.io`, where a namespace's blobs are in the repository of its name.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            repository: own_name(),
            prefix: String::new(),
            credentials: None,
            ca: None,
        }
    }
}

fn own_name() -> String {
    NAMESPACE.into()
}

const NAMESPACE: &str = "{namespace}";

/// What a manifest may be. Registries answer 404 for a kind that the client does not name.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Says what a manifest's digest is.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Reads blobs, and manifests by their digest, from another registry. Clones share its connections
/// and tokens.
#[derive(Debug, Clone)]
pub struct RegistryBackend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    requests: Requests,
    logins: Logins,
}

/// Where the repositories of a registry are.
#[derive(Debug)]
struct Place {
    url: String,
    repository: String,
    prefix: String,
}

impl Place {
    /// As the configuration has it, and the registry's URL.
    fn new(options: &RegistryOptions) -> Result<(Self, Url), BackendError> {
        let wrong = |why: &dyn std::fmt::Display| {
            BackendError::Denied(format!("registry: the url {:?}: {why}", options.url))
        };
        let url = Url::parse(&options.url).map_err(|error| wrong(&error))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(&"it begins with http:// or https://"));
        }
        let place = Self {
            url: options.url.trim_end_matches('/').to_string(),
            repository: options.repository.clone(),
            prefix: options.prefix.clone(),
        };
        Ok((place, url))
    }

    /// The repository of a namespace.
    fn repository(&self, namespace: &Namespace) -> String {
        let name = namespace.as_str();
        let name = name.strip_prefix(&self.prefix).unwrap_or(name);
        self.repository.replace(NAMESPACE, name)
    }

    /// The URL of something in a repository, such as `manifests/v1`.
    fn within(&self, repository: &str, what: &str) -> String {
        format!("{}/v2/{repository}/{what}", self.url)
    }
}

impl RegistryBackend {
    /// A request's answer, and each part of a body, may take `timeout`.
    ///
    /// # Errors
    /// The URL is none, or the authorities cannot be read.
    pub fn new(options: RegistryOptions, timeout: Duration) -> Result<Self, BackendError> {
        let (place, url) = Place::new(&options)?;
        let requests = Requests::new(client(options.ca.as_deref())?, timeout);
        Ok(Self(Arc::new(Inner {
            place,
            requests,
            logins: Logins::new(url, options.credentials.into_iter().collect(), false),
        })))
    }
}

/// A blob as registries keep it: most are blobs, some are manifests.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Blob,
    Manifest,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Blob => "blobs",
            Self::Manifest => "manifests",
        }
    }
}

impl Inner {
    /// Asks for a blob, by its digest or a tag, with a token if one is wanted.
    async fn ask(
        &self,
        namespace: &Namespace,
        (kind, reference): (Kind, &str),
        (method, range): (Method, Option<&Range<u64>>),
    ) -> Result<Response, BackendError> {
        let repository = self.place.repository(namespace);
        let what = format!("{}/{reference}", kind.path());
        let url = self.place.within(&repository, &what);
        let make = |client: &reqwest::Client| {
            let mut request = client.request(method.clone(), &url);
            request = request.header(ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(RANGE, resume::header(range));
            }
            match kind {
                Kind::Blob => request,
                Kind::Manifest => request.header(ACCEPT, MANIFESTS),
            }
        };
        let scope = format!("repository:{repository}:pull");
        self.logins.send(&self.requests, (&scope, None), make).await
    }

    /// Asks for it as a blob, and if it is none as a manifest.
    async fn find(
        &self,
        namespace: &Namespace,
        digest: Digest,
        what: (Method, Option<&Range<u64>>),
    ) -> Result<Option<Response>, BackendError> {
        let digest = digest.to_string();
        for kind in [Kind::Blob, Kind::Manifest] {
            let response = self.ask(namespace, (kind, &digest), what.clone()).await?;
            match response.status() {
                StatusCode::NOT_FOUND => {}
                status if status.is_success() => return Ok(Some(response)),
                _ => return Err(refused(&response)),
            }
        }
        Ok(None)
    }

    /// What a tag points to; a registry that does not say so by a header shows its bytes.
    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        for method in [Method::HEAD, Method::GET] {
            let asked = self.ask(namespace, (Kind::Manifest, tag), (method.clone(), None));
            let response = asked.await?;
            match response.status() {
                StatusCode::NOT_FOUND => return Ok(None),
                status if !status.is_success() => return Err(refused(&response)),
                _ => {}
            }
            let said = response.headers().get(CONTENT_DIGEST);
            let said = said.and_then(|it| it.to_str().ok()?.parse().ok());
            if let Some(digest) = said.filter(|_| method == Method::HEAD) {
                return Ok(Some(digest));
            }
            if method == Method::GET {
                let bytes = self.requests.bytes(response).await?;
                return Ok(Some(Digest::of(&bytes)));
            }
        }
        Ok(None)
    }

    async fn open(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let found = self.find(namespace, digest, (Method::GET, Some(&range)));
        let response = found.await?.ok_or(BackendError::NotFound(digest))?;
        resume::from(&self.requests, response, range.start)
    }
}

impl Backend for RegistryBackend {
    async fn stat(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Option<u64>, BackendError> {
        let found = self.0.find(namespace, digest, (Method::HEAD, None)).await?;
        let Some(response) = found else {
            return Ok(None);
        };
        match length(response.headers()) {
            Some(length) => Ok(Some(length)),
            None => Err(BackendError::Other("the registry tells no length".into())),
        }
    }

    async fn read(
        &self,
        namespace: &Namespace,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, BackendError> {
        let length = self.stat(namespace, digest).await?;
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

    async fn resolve(
        &self,
        namespace: &Namespace,
        tag: &str,
    ) -> Result<Option<Digest>, BackendError> {
        self.0.resolve(namespace, tag).await
    }

    /// Whether the registry answers at all, be it to ask who we are.
    async fn ready(&self) -> Result<(), BackendError> {
        let url = format!("{}/v2/", self.0.place.url);
        let response = self.0.requests.send(|client| client.get(&url)).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(refused(&response)),
        }
    }
}
