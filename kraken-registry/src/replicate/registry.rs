//! Another registry, which knows no versions and no links: its manifests, tags, and lists of referrers.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use kraken_core::storage::BackendError;
use kraken_core::storage::backend::web::{PushError, RegistryWriter, Started};
use kraken_proto::{Digest, Namespace};
use moka::future::Cache;
use serde_json::{Value, json};

use super::SendError;
use super::traffic::Traffic;
use crate::manifest::{Manifest, MediaType};
use crate::name::{RepoName, TagName};
use crate::reader::Stored;

/// Blobs of which it is known in which repository there they are.
const PLACES: u64 = 100_000;
/// What a tag points to for a moment before it is removed where registries remove manifests only.
const REMOVED: &str = "io.kraken.removed";
/// The empty configuration of manifests without one (OCI image specification, "Guidance for an empty descriptor").
const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// Another registry.
pub(super) struct Registry {
    name: String,
    pub(super) writer: RegistryWriter,
    pub(super) traffic: Arc<Traffic>,
    /// A repository there that has a blob, which others may share.
    pub(super) places: Cache<Digest, String>,
    /// One changes a list of referrers at a time.
    pub(super) listing: tokio::sync::Mutex<()>,
}

/// What a registry lists as being about a manifest.
pub(super) enum Listed {
    /// By itself.
    Api(BTreeSet<Digest>),
    /// In an index under a tag that is named after the manifest, kept by those who push.
    Tag(Vec<Value>),
}

impl Listed {
    /// All of them.
    pub(super) fn digests(&self) -> BTreeSet<Digest> {
        match self {
            Self::Api(listed) => listed.clone(),
            Self::Tag(listed) => listed.iter().filter_map(digest_of).collect(),
        }
    }

    pub(super) fn has(&self, digest: Digest) -> bool {
        match self {
            Self::Api(listed) => listed.contains(&digest),
            Self::Tag(listed) => listed.iter().any(|it| digest_of(it) == Some(digest)),
        }
    }
}

impl Registry {
    pub(super) fn new((name, writer): (String, RegistryWriter)) -> Self {
        Self {
            name,
            writer,
            traffic: Arc::new(Traffic::new()),
            places: Cache::new(PLACES),
            listing: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn repository(&self, repo: &RepoName) -> String {
        self.writer.repository(&repo.namespace())
    }

    /// What a tag points to there.
    pub(super) async fn tag(&self, tag: &TagName) -> Result<Option<Digest>, SendError> {
        let repo = self.repository(tag.repo());
        Ok(self.writer.resolve(&repo, &tag.tag().to_string()).await?)
    }

    /// Whether it has a manifest.
    pub(super) async fn has(&self, repo: &RepoName, digest: Digest) -> Result<bool, SendError> {
        let repo = self.repository(repo);
        let found = self.writer.resolve(&repo, &digest.to_string()).await?;
        Ok(found == Some(digest))
    }

    /// Puts a manifest under a tag or its digest.
    pub(super) async fn put(
        &self,
        (repo, reference): (&RepoName, &str),
        stored: &Stored,
    ) -> Result<(), SendError> {
        self.traffic.check()?;
        let repo = self.repository(repo);
        let manifest = (stored.media_type.as_str(), stored.bytes.clone());
        let put = self.writer.put_manifest((&repo, reference), manifest).await;
        put.map(drop).map_err(|error| refused(error, reference))
    }

    /// Removes a tag, and nothing else.
    ///
    /// Where it cannot be removed by its name, it is first made to point to a manifest that nothing else
    /// points to, and this is removed. If that fails, it points to what it `was` again.
    pub(super) async fn remove_tag(
        &self,
        tag: &TagName,
        was: Option<Digest>,
    ) -> Result<(), SendError> {
        let (repo, name) = (self.repository(tag.repo()), tag.tag().to_string());
        match self.writer.delete(&repo, &name).await {
            // Some say so of what they do not do.
            Ok(_) if self.tag(tag).await?.is_none() => return Ok(()),
            Ok(_) => {}
            Err(error) if will_not(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let namespace = tag.repo().namespace();
        self.put_small(&namespace, Bytes::from_static(EMPTY))
            .await?;
        let was = match was {
            Some(was) => self.manifest(&repo, was).await?,
            None => None,
        };
        let removal = Removal {
            writer: self.writer.clone(),
            at: (repo, name),
            removed: Self::removed(tag),
            was,
        };
        // Who is stopped in the midst of it would leave the tag at nothing that anybody wants.
        let removed = tokio::spawn(removal.run()).await;
        removed.unwrap_or_else(|_| Err(SendError::Failed("the build-index stops".into())))
    }

    /// The bytes of a manifest there, if it is.
    pub(super) async fn bytes(
        &self,
        repo: &str,
        digest: Digest,
    ) -> Result<Option<Bytes>, SendError> {
        let bytes = self
            .writer
            .get(repo, &format!("manifests/{digest}"))
            .await?;
        match bytes.map(Bytes::from) {
            Some(bytes) if Digest::of(&bytes) != digest => {
                let what = format!("it has other bytes for {digest}");
                Err(SendError::Failed(what))
            }
            bytes => Ok(bytes),
        }
    }

    /// A manifest as it is there; nothing of what is none.
    async fn manifest(&self, repo: &str, digest: Digest) -> Result<Option<Stored>, SendError> {
        let bytes = self.bytes(repo, digest).await?;
        Ok(bytes.and_then(|bytes| {
            let media_type = Manifest::parse(&bytes).ok()?.media_type();
            Some(Stored { bytes, media_type })
        }))
    }

    /// What a tag points to while it is removed.
    pub(super) fn removed(tag: &TagName) -> (Digest, Bytes) {
        let empty =
            json!({"mediaType": EMPTY_TYPE, "digest": Digest::of(EMPTY), "size": EMPTY.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str(),
            "artifactType": EMPTY_TYPE, "config": empty, "layers": [empty],
            "annotations": {REMOVED: tag.to_string()},
        });
        let bytes = Bytes::from(manifest.to_string());
        (Digest::of(&bytes), bytes)
    }

    async fn put_small(&self, namespace: &Namespace, bytes: Bytes) -> Result<(), SendError> {
        let (repo, digest) = (self.writer.repository(namespace), Digest::of(&bytes));
        if self.writer.has_blob(&repo, digest).await? {
            return Ok(());
        }
        match self.writer.start(&repo, digest, None).await? {
            Started::There => Ok(()),
            Started::At(upload) => Ok(self.writer.finish((&repo, digest), &upload, bytes).await?),
        }
    }

    /// Removes a manifest that is about another one. Whether that is done wherever it was listed.
    pub(super) async fn remove_referrer(
        &self,
        repo: &RepoName,
        (subject, manifest): (Digest, Digest),
        stays: bool,
    ) -> Result<(), SendError> {
        let _turn = self.listing.lock().await;
        let listed = self.listed(repo, subject).await?;
        if let Listed::Tag(mut all) = listed {
            if all.iter().any(|it| digest_of(it) == Some(manifest)) {
                all.retain(|it| digest_of(it) != Some(manifest));
                self.put_list(repo, subject, all).await?;
            }
            if !stays {
                // It is listed nowhere any more; that it takes room there harms nobody.
                let _ = self.delete(repo, manifest).await;
            }
            return Ok(());
        }
        if stays || !listed.has(manifest) {
            return Ok(());
        }
        self.delete(repo, manifest).await
    }

    async fn delete(&self, repo: &RepoName, manifest: Digest) -> Result<(), SendError> {
        let repo = self.repository(repo);
        let deleted = self.writer.delete(&repo, &manifest.to_string()).await;
        deleted
            .map(drop)
            .map_err(|error| refused(error, "it is not removed"))
    }

    /// What it lists as being about a manifest.
    pub(super) async fn listed(
        &self,
        repo: &RepoName,
        subject: Digest,
    ) -> Result<Listed, SendError> {
        let there = self.repository(repo);
        let by_itself = self
            .writer
            .get(&there, &format!("referrers/{subject}"))
            .await;
        match by_itself {
            Ok(Some(bytes)) => {
                let listed = entries(&bytes);
                return Ok(Listed::Api(listed.iter().filter_map(digest_of).collect()));
            }
            Ok(None) => {}
            // Some know no such path.
            Err(error)
                if error
                    .status()
                    .is_some_and(|it| it.is_client_error() && !is_denied(it)) => {}
            Err(error) => return Err(error.into()),
        }
        let what = format!("manifests/{}", list_tag(subject));
        let listed = self.writer.get(&there, &what).await?;
        Ok(Listed::Tag(
            listed.map_or_else(Vec::new, |bytes| entries(&bytes)),
        ))
    }

    /// Adds manifests to the list under a tag of those about another one, and drops what is not there.
    pub(super) async fn list(
        &self,
        repo: &RepoName,
        subject: Digest,
        described: Vec<Value>,
    ) -> Result<(), SendError> {
        let _turn = self.listing.lock().await;
        let Listed::Tag(before) = self.listed(repo, subject).await? else {
            return Ok(());
        };
        let new: BTreeSet<_> = described.iter().filter_map(digest_of).collect();
        let mut all = Vec::new();
        for entry in before {
            match digest_of(&entry) {
                Some(digest) if !new.contains(&digest) && self.has(repo, digest).await? => {
                    all.push(entry);
                }
                _ => {}
            }
        }
        all.extend(described);
        self.put_list(repo, subject, all).await
    }

    async fn put_list(
        &self,
        repo: &RepoName,
        subject: Digest,
        all: Vec<Value>,
    ) -> Result<(), SendError> {
        let media_type = MediaType::OciIndex;
        let index = json!({
            "schemaVersion": 2, "mediaType": media_type.as_str(), "manifests": all,
        });
        let bytes = Bytes::from(index.to_string());
        let stored = Stored { bytes, media_type };
        self.put((repo, &list_tag(subject)), &stored).await
    }
}

/// A tag that is removed together with a manifest of its own.
struct Removal {
    writer: RegistryWriter,
    /// The repository there, and the tag.
    at: (String, String),
    /// The manifest.
    removed: (Digest, Bytes),
    /// What the tag points to before.
    was: Option<Stored>,
}

impl Removal {
    async fn run(self) -> Result<(), SendError> {
        let Err(error) = self.remove().await else {
            return Ok(());
        };
        let (repo, tag) = (&self.at.0, &self.at.1);
        // Not what somebody else has put there since.
        let there = self.writer.resolve(repo, tag).await;
        if let (Ok(Some(there)), Some(was)) = (there, &self.was)
            && there == self.removed.0
        {
            let manifest = (was.media_type.as_str(), was.bytes.clone());
            let put = self.writer.put_manifest((repo, tag), manifest).await;
            if let Err(error) = put {
                tracing::warn!(repo, tag, %error, "a tag that is not removed is not what it was");
            }
        }
        Err(error)
    }

    async fn remove(&self) -> Result<(), SendError> {
        let (repo, tag) = (&self.at.0, &self.at.1);
        let (digest, bytes) = &self.removed;
        // Where nothing can be removed, the tag had better stay what it is.
        let deleted = self.writer.delete(repo, &digest.to_string()).await;
        deleted.map_err(|error| refused(error, "it removes nothing"))?;
        let manifest = (MediaType::OciManifest.as_str(), bytes.clone());
        let put = self.writer.put_manifest((repo, tag), manifest).await;
        put.map_err(|error| refused(error, tag))?;
        let what = "the manifest that stands for what is removed stays";
        let deleted = self.writer.delete(repo, &digest.to_string()).await;
        deleted.map_err(|error| refused(error, what))?;
        // Some say so of what they do not do.
        match self.writer.resolve(repo, tag).await? {
            Some(there) if there == *digest => Err(SendError::Refused(what.into())),
            _ => Ok(()),
        }
    }
}

/// The tag of a list of referrers (OCI distribution specification, "Referrers Tag Schema").
fn list_tag(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn entries(bytes: &[u8]) -> Vec<Value> {
    let index: Value = serde_json::from_slice(bytes).unwrap_or_default();
    index["manifests"].as_array().cloned().unwrap_or_default()
}

fn digest_of(entry: &Value) -> Option<Digest> {
    entry["digest"].as_str()?.parse().ok()
}

fn is_denied(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Whether it says that it does not do such a thing at all.
fn will_not(error: &PushError) -> bool {
    error.status().is_some_and(|it| {
        let unknown = [
            StatusCode::BAD_REQUEST,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::NOT_IMPLEMENTED,
        ];
        unknown.contains(&it)
    })
}

/// An error about something that another try will hardly change.
fn refused(error: PushError, what: &str) -> SendError {
    match &error {
        PushError::Refused { status, .. } if status.is_client_error() && !is_denied(*status) => {
            SendError::Refused(format!("{what}: {error}"))
        }
        _ => error.into(),
    }
}

impl From<PushError> for SendError {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Backend(
                error @ (BackendError::Unavailable(_) | BackendError::Paused(_)),
            ) => Self::Away(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::time::Duration;

    use axum::Router;
    use axum::extract::{Path, State};
    use axum::response::{IntoResponse, Response};
    use axum::routing::{get, head};
    use http::Method;
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;

    /// A registry that removes no tags, and says this of manifests that are there.
    struct Fake {
        says: StatusCode,
        removes: bool,
        manifests: Mutex<HashMap<String, Bytes>>,
        /// How often a manifest was to be removed that is there.
        asked: Semaphore,
        /// How often it may answer that.
        answers: Semaphore,
    }

    async fn manifest(
        State(fake): State<Arc<Fake>>,
        method: Method,
        Path(reference): Path<String>,
        body: Bytes,
    ) -> Response {
        let found = fake.manifests.lock().unwrap().get(&reference).cloned();
        if method == Method::PUT {
            let digest = Digest::of(&body).to_string();
            let mut all = fake.manifests.lock().unwrap();
            all.insert(digest, body.clone());
            all.insert(reference, body);
            return StatusCode::CREATED.into_response();
        }
        if method == Method::DELETE && !reference.starts_with("sha256:") {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        let Some(found) = found else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if method == Method::DELETE {
            fake.asked.add_permits(1);
            fake.answers.acquire().await.unwrap().forget();
            if fake.removes {
                fake.manifests.lock().unwrap().retain(|_, it| *it != found);
            }
            return fake.says.into_response();
        }
        let digest = Digest::of(&found).to_string();
        ([("docker-content-digest", digest)], found).into_response()
    }

    async fn registry(says: StatusCode, removes: bool) -> (Arc<Registry>, Arc<Fake>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fake = Arc::new(Fake {
            says,
            removes,
            manifests: Mutex::default(),
            asked: Semaphore::new(0),
            answers: Semaphore::new(100),
        });
        let of_any = get(manifest).put(manifest).delete(manifest);
        let app = Router::new()
            .route("/v2/app/manifests/{reference}", of_any)
            .route("/v2/app/blobs/{digest}", head(|| async {}))
            .with_state(fake.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let options = json!({"url": url, "repository": "{namespace}"});
        let options = serde_json::from_value(options).unwrap();
        let writer = RegistryWriter::new(options, Duration::from_secs(30)).unwrap();
        (Arc::new(Registry::new(("other".into(), writer))), fake)
    }

    /// A tag that points to an image there.
    fn tagged(fake: &Fake) -> (TagName, Digest) {
        let kind = MediaType::OciManifest.as_str();
        let config = json!({"digest": Digest::of(EMPTY), "size": EMPTY.len()});
        let image = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []});
        let (tag, bytes) = ("app:v1".parse().unwrap(), Bytes::from(image.to_string()));
        let digest = Digest::of(&bytes);
        let mut all = fake.manifests.lock().unwrap();
        all.insert(digest.to_string(), bytes.clone());
        all.insert("v1".into(), bytes);
        (tag, digest)
    }

    #[tokio::test]
    async fn a_tag_that_is_not_removed_is_what_it_was() {
        for says in [
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::FORBIDDEN,
            // It says so, and does nothing.
            StatusCode::ACCEPTED,
        ] {
            let (registry, fake) = registry(says, false).await;
            let (tag, digest) = tagged(&fake);
            let removed = registry.remove_tag(&tag, Some(digest)).await;
            assert!(removed.is_err(), "{says}");
            assert_eq!(registry.tag(&tag).await, Ok(Some(digest)), "{says}");
            // The same from where one that died has left it.
            let (empty, bytes) = Registry::removed(&tag);
            let manifest = (MediaType::OciManifest.as_str(), bytes);
            let put = registry.writer.put_manifest(("app", "v1"), manifest).await;
            put.unwrap();
            assert_eq!(registry.tag(&tag).await, Ok(Some(empty)));
            let removed = registry.remove_tag(&tag, Some(digest)).await;
            assert!(removed.is_err(), "{says}");
            assert_eq!(registry.tag(&tag).await, Ok(Some(digest)), "{says}");
        }
        let (registry, fake) = registry(StatusCode::ACCEPTED, true).await;
        let (tag, digest) = tagged(&fake);
        assert_eq!(registry.remove_tag(&tag, Some(digest)).await, Ok(()));
        assert_eq!(registry.tag(&tag).await, Ok(None));
        assert_eq!(registry.has(tag.repo(), digest).await, Ok(true));
    }

    #[tokio::test]
    async fn a_removal_that_nobody_waits_for_any_more_comes_to_its_end() {
        let (registry, fake) = registry(StatusCode::FORBIDDEN, false).await;
        let (tag, digest) = tagged(&fake);
        fake.answers.acquire_many(100).await.unwrap().forget();
        let removing = (registry.clone(), tag.clone());
        let removing =
            tokio::spawn(async move { removing.0.remove_tag(&removing.1, Some(digest)).await });
        fake.asked.acquire().await.unwrap().forget();
        removing.abort();
        assert!(removing.await.unwrap_err().is_cancelled());
        assert_ne!(registry.tag(&tag).await, Ok(Some(digest)));
        fake.answers.add_permits(100);
        let put_back = async {
            while registry.tag(&tag).await != Ok(Some(digest)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let put_back = tokio::time::timeout(Duration::from_secs(30), put_back).await;
        put_back.expect("the tag is what it was");
    }
}
