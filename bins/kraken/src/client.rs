//! A client of the registries: what `push`, `pull` and the demo speak.

mod checked;
mod send;

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use bytes::Bytes;
use futures::Stream;
use http::{Method, StatusCode};
use kraken_core::Digest;
use kraken_core::net::http::{ByteStream, HttpBody, OutsideTrust, segment};
use serde_json::{Value, json};

use crate::Failure;
use crate::caller::Caller;

pub use checked::Checked;
use checked::Seen;
pub use send::Registry;
use send::{Ask, pull, push};

/// The media types of manifests that a pull accepts.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// How often an agent is asked whether it has a blob.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

/// Says that a blob is pushed for its own sake.
const KEEP: (&str, &str) = ("kraken-keep", "true");

/// The longest answer of another kind, in bytes: it may name all manifests of an image.
const MAX_ANSWER: usize = 1 << 20;

/// The longest manifest, in bytes.
const MAX_MANIFEST: usize = 4 << 20;

impl Registry {
    /// The registry at `host:port` or at a URL, asked by whoever `KRAKEN_LOGIN`, or the files of docker and
    /// podman, say.
    ///
    /// # Errors
    /// The address makes no sense, or the TLS library refuses its own defaults.
    pub fn new(address: &str) -> Result<Self, Failure> {
        Self::of(address, &Caller::from_env(OutsideTrust::default())?)
    }

    /// Whether the registry has the blob.
    ///
    /// # Errors
    /// It does not answer, or with anything but yes or no.
    pub async fn has_blob(&self, repository: &str, digest: Digest) -> Result<bool, Failure> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let ask = Ask::new(Method::HEAD, &path, pull(repository));
        let response = self.send(ask, HttpBody::Empty).await?;
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
        let scope = || push(repository);
        let start = format!("/v2/{repository}/blobs/uploads/");
        let post = Ask::new(Method::POST, &start, scope());
        let posted = self.expect(post, HttpBody::Empty, StatusCode::ACCEPTED);
        let location = self.location(&posted.await?)?;
        let (body, seen) = Seen::watch(bytes);
        let headers = [("content-type", "application/octet-stream")];
        let patch = Ask::new(Method::PATCH, &location, scope()).headers(&headers);
        let patched = self.expect(patch, HttpBody::Stream(body), StatusCode::ACCEPTED);
        let location = self.location(&patched.await?)?;
        let (digest, length) = seen.so_far();
        let joint = if location.contains('?') { '&' } else { '?' };
        let finish = format!("{location}{joint}digest={digest}");
        let put = Ask::new(Method::PUT, &finish, scope()).headers(finish_headers);
        self.expect(put, HttpBody::Empty, StatusCode::CREATED)
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
        let post = Ask::new(Method::POST, &path, push(repository)).headers(&headers);
        let posted = self.expect(post, body, StatusCode::CREATED).await;
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
        let put = Ask::new(Method::PUT, &path, push(repository)).headers(&headers);
        self.expect(put, HttpBody::Bytes(manifest), StatusCode::CREATED)
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
        let get = Ask::new(Method::GET, &path, pull(repository)).headers(&headers);
        let response = self.expect(get, HttpBody::Empty, StatusCode::OK).await?;
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
        let get = Ask::new(Method::GET, &path, pull(repository));
        let response = self.expect(get, HttpBody::Empty, StatusCode::OK).await?;
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
        let path = format!("/namespace/{}/blobs/{digest}/prefetch", segment(namespace));
        let ask = Ask::new(Method::POST, &path, pull(namespace));
        let answer = self.send(ask, HttpBody::Empty).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::ACCEPTED => Ok(false),
            _ => Err(self.refusal(answer).await),
        }
    }

    /// Lets the origins behind a proxy fetch all that an image needs, told to fetch at most so many bytes
    /// per second; what the proxy says, and which manifests are known not to be in its cluster.
    ///
    /// # Errors
    /// The image does not exist, or nobody could be asked.
    pub async fn prefetch(
        &self,
        image: &str,
        at_most: Option<NonZeroU64>,
    ) -> Result<(String, BTreeSet<Digest>), Failure> {
        let body = json!({ "tag": image, "at_most": at_most }).to_string();
        let headers = [("content-type", "application/json")];
        // Preheating pulls whatever is named.
        let scope = "registry:catalog:*".to_owned();
        let path = "/proxy/v2/registry/prefetch";
        let ask = Ask::new(Method::POST, path, scope).headers(&headers);
        let answer = self.send(ask, HttpBody::Bytes(body.into())).await?;
        if matches!(
            answer.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        ) {
            return Err(self.refusal(answer).await);
        }
        let answer: Value = answer
            .json(MAX_ANSWER)
            .await
            .map_err(|error| self.failed(path, &error))?;
        let left_out = answer["left_out"].as_array().into_iter().flatten();
        let left_out = left_out.filter_map(|digest| digest.as_str()?.parse().ok());
        let left_out = left_out.collect();
        let message = answer["message"].as_str();
        let message = message
            .unwrap_or("the proxy's answer makes no sense")
            .to_owned();
        match answer["prefetched"] == true {
            true => Ok((message, left_out)),
            false => Err(Failure::Registry(message)),
        }
    }

    /// Whether an agent mirrors another registry.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn mirrors(&self, host: &str) -> Result<bool, Failure> {
        let path = format!("/v2/?ns={host}");
        let get = Ask::new(Method::GET, &path, String::new());
        let answer = self.expect(get, HttpBody::Empty, StatusCode::OK).await?;
        Ok(answer.header("oci-namespace") == Some(host))
    }
}
