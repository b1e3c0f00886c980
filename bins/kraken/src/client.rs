//! A client of the registries: what `push`, `pull` and the demo speak.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{Method, Request, StatusCode};
use kraken_core::Digest;
use kraken_core::net::http::{ByteStream, HttpBody, HttpClient, HttpResponse, segment};
use sha2::{Digest as _, Sha256};

use crate::Failure;

/// A registry, by its address.
#[derive(Debug, Clone)]
pub struct Registry {
    http: HttpClient,
    base: String,
}

/// The media types of manifests that a pull accepts.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// How often an agent is asked whether it has a blob.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

/// Says that a blob is pushed for its own sake.
const KEEP: (&str, &str) = ("kraken-keep", "true");

/// The longest manifest, in bytes.
const MAX_MANIFEST: usize = 4 << 20;

impl Registry {
    /// The registry at `host:port`, over plain HTTP.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub fn new(host: &str) -> Result<Self, Failure> {
        let http = HttpClient::new(None).map_err(|error| Failure::Registry(error.to_string()))?;
        Ok(Self {
            http,
            base: format!("http://{host}"),
        })
    }

    /// Whether the registry has the blob.
    ///
    /// # Errors
    /// It does not answer, or with anything but yes or no.
    pub async fn has_blob(&self, repository: &str, digest: Digest) -> Result<bool, Failure> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let response = self.send(Method::HEAD, &path, HttpBody::Empty, &[]).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(response).await),
        }
    }

    /// Pushes a blob as it comes and gives its digest and length.
    ///
    /// # Errors
    /// The registry refuses.
    pub async fn push_blob(
        &self,
        repository: &str,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(Digest, u64), Failure> {
        self.push_with(repository, bytes, &[]).await
    }

    /// The same for a blob that is to stay although no manifest names it.
    ///
    /// # Errors
    /// The registry refuses.
    pub async fn push_kept_blob(
        &self,
        repository: &str,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(Digest, u64), Failure> {
        self.push_with(repository, bytes, &[KEEP]).await
    }

    async fn push_with(
        &self,
        repository: &str,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        finish_headers: &[(&str, &str)],
    ) -> Result<(Digest, u64), Failure> {
        let start = format!("/v2/{repository}/blobs/uploads/");
        let response = self
            .expect(
                Method::POST,
                &start,
                HttpBody::Empty,
                &[],
                StatusCode::ACCEPTED,
            )
            .await?;
        let location = self.location(&response)?;
        let (body, seen) = Seen::watch(bytes);
        let headers = [("content-type", "application/octet-stream")];
        let patch = self.expect(
            Method::PATCH,
            &location,
            HttpBody::Stream(body),
            &headers,
            StatusCode::ACCEPTED,
        );
        let location = self.location(&patch.await?)?;
        let (digest, length) = seen.so_far();
        let joint = if location.contains('?') { '&' } else { '?' };
        let finish = format!("{location}{joint}digest={digest}");
        self.expect(
            Method::PUT,
            &finish,
            HttpBody::Empty,
            finish_headers,
            StatusCode::CREATED,
        )
        .await?;
        Ok((digest, length))
    }

    /// Pushes a blob whose digest and length, in bytes, are known, as it comes: hosts can pull it
    /// meanwhile. One that is kept stays although no manifest names it.
    ///
    /// # Errors
    /// [`Failure::WrongBytes`], or the registry refuses.
    pub async fn push_known_blob(
        &self,
        repository: &str,
        (digest, length, is_kept): (Digest, u64, bool),
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Failure> {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let length_text = length.to_string();
        let mut headers = vec![
            ("content-type", "application/octet-stream"),
            ("content-length", length_text.as_str()),
        ];
        headers.extend(is_kept.then_some(KEEP));
        let (body, seen) = Seen::watch(bytes);
        let body = HttpBody::Stream(body);
        let posted = self
            .expect(Method::POST, &path, body, &headers, StatusCode::CREATED)
            .await;
        match seen.so_far() {
            // What the registry says of it is less clear.
            (found, sent) if posted.is_err() && sent == length && found != digest => {
                Err(Failure::WrongBytes {
                    what: "what was pushed".into(),
                    expected: digest,
                    found,
                })
            }
            _ => posted.map(drop),
        }
    }

    /// Pushes a manifest under a tag or its digest.
    ///
    /// # Errors
    /// The registry refuses: a blob is missing, or the manifest is wrong.
    pub async fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), Failure> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("content-type", media_type)];
        self.expect(
            Method::PUT,
            &path,
            HttpBody::Bytes(manifest),
            &headers,
            StatusCode::CREATED,
        )
        .await?;
        Ok(())
    }

    /// Pulls a manifest: its media type and its bytes.
    ///
    /// # Errors
    /// It is not there, or its bytes are not what the reference says.
    pub async fn manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<(String, Bytes), Failure> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("accept", MANIFESTS)];
        let response = self
            .expect(
                Method::GET,
                &path,
                HttpBody::Empty,
                &headers,
                StatusCode::OK,
            )
            .await?;
        let media_type = response
            .header("content-type")
            .unwrap_or_default()
            .to_string();
        let bytes = response
            .bytes(MAX_MANIFEST)
            .await
            .map_err(|error| self.failed(&path, &error))?;
        if let Ok(expected) = reference.parse::<Digest>() {
            let found = Digest::of(&bytes);
            if found != expected {
                return Err(Failure::WrongBytes {
                    what: path,
                    expected,
                    found,
                });
            }
        }
        Ok((media_type, bytes))
    }

    /// Pulls a blob: its length, and its bytes as they come. Check them with [`Checked`].
    ///
    /// # Errors
    /// It is not there.
    pub async fn blob(
        &self,
        repository: &str,
        digest: Digest,
    ) -> Result<(u64, ByteStream), Failure> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let response = self
            .expect(Method::GET, &path, HttpBody::Empty, &[], StatusCode::OK)
            .await?;
        let length = response
            .header("content-length")
            .and_then(|text| text.parse().ok());
        let length = length.ok_or_else(|| Failure::Registry(format!("{path}: no length")))?;
        Ok((length, response.stream()))
    }

    /// Lets an agent fetch a blob to its end, without reading it.
    ///
    /// # Errors
    /// It is not there.
    pub async fn fetch(&self, namespace: &str, digest: Digest) -> Result<(), Failure> {
        while !self.begin_to_fetch(namespace, digest).await? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Lets an agent begin to fetch a blob; whether it has all of it.
    ///
    /// # Errors
    /// It is not there.
    pub async fn begin_to_fetch(&self, namespace: &str, digest: Digest) -> Result<bool, Failure> {
        let namespace = segment(namespace);
        let path = format!("/namespace/{namespace}/blobs/{digest}/prefetch");
        let answer = self.send(Method::POST, &path, HttpBody::Empty, &[]).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::ACCEPTED => Ok(false),
            _ => Err(self.refusal(answer).await),
        }
    }

    async fn expect(
        &self,
        method: Method,
        path: &str,
        body: HttpBody,
        headers: &[(&str, &str)],
        status: StatusCode,
    ) -> Result<HttpResponse, Failure> {
        let response = self.send(method, path, body, headers).await?;
        if response.status() == status {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: HttpBody,
        headers: &[(&str, &str)],
    ) -> Result<HttpResponse, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // As docker and others send it: name and password.
        if let Ok(login) = std::env::var("KRAKEN_LOGIN") {
            let login = BASE64_STANDARD.encode(login);
            request = request.header("authorization", format!("Basic {login}"));
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::Argument(format!("{path}: {error}")))?;
        // A commit may wait for copies at several origins.
        let patience = std::time::Duration::from_secs(900);
        self.http
            .send_within(request, patience)
            .await
            .map_err(|error| self.failed(path, &error))
    }

    async fn refusal(&self, response: HttpResponse) -> Failure {
        let status = response.status();
        let said = response.bytes(16 << 10).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let what = format!("{} answers {status}: {}", self.base, said.trim());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            Failure::Away(what)
        } else {
            Failure::Registry(what)
        }
    }

    fn failed(&self, path: &str, error: &dyn std::fmt::Display) -> Failure {
        Failure::Away(format!("{}{path}: {error}", self.base))
    }

    /// The path in a `Location`, which may be relative.
    fn location(&self, response: &HttpResponse) -> Result<String, Failure> {
        let location = response
            .header("location")
            .ok_or_else(|| Failure::Registry("an upload without Location".into()))?;
        Ok(location
            .strip_prefix(&self.base)
            .unwrap_or(location)
            .to_string())
    }
}

/// What has passed of a body, hashed and counted.
struct Seen(Arc<Mutex<(Sha256, u64)>>);

impl Seen {
    fn watch(
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> (ByteStream, Self) {
        let seen = Arc::new(Mutex::new((Sha256::new(), 0)));
        let hashing = seen.clone();
        let body = bytes.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                let mut seen = hashing.lock().unwrap_or_else(PoisonError::into_inner);
                seen.0.update(chunk);
                seen.1 += chunk.len() as u64;
            }
        });
        (body.boxed(), Self(seen))
    }

    fn so_far(&self) -> (Digest, u64) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (Digest::from_bytes(seen.0.clone().finalize().into()), seen.1)
    }
}

/// Counts and hashes what passes, and knows at the end whether it was right.
#[derive(Debug)]
pub struct Checked {
    expected: Digest,
    hash: Sha256,
    /// Bytes that passed.
    pub bytes: u64,
}

impl Checked {
    /// Nothing has passed yet.
    pub fn new(expected: Digest) -> Self {
        Self {
            expected,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// A chunk passes.
    pub fn update(&mut self, chunk: &[u8]) {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
    }

    /// Everything has passed: was it the blob?
    ///
    /// # Errors
    /// [`Failure::WrongBytes`].
    pub fn finish(self) -> Result<u64, Failure> {
        let found = Digest::from_bytes(self.hash.finalize().into());
        if found == self.expected {
            Ok(self.bytes)
        } else {
            Err(Failure::WrongBytes {
                what: "a blob".into(),
                expected: self.expected,
                found,
            })
        }
    }
}
