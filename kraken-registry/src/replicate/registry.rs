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
use crate::manifest::MediaType;
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
    /// points to, and this is removed.
    pub(super) async fn remove_tag(&self, tag: &TagName) -> Result<(), SendError> {
        let (repo, name) = (self.repository(tag.repo()), tag.tag().to_string());
        match self.writer.delete(&repo, &name).await {
            // Some say so of what they do not do.
            Ok(_) if self.tag(tag).await?.is_none() => return Ok(()),
            Ok(_) => {}
            Err(error) if will_not(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let (digest, manifest) = Self::removed(tag);
        // Where nothing can be removed, the tag had better stay what it is.
        if let Err(error) = self.writer.delete(&repo, &digest.to_string()).await {
            return Err(refused(error, "it removes nothing"));
        }
        let namespace = tag.repo().namespace();
        self.put_small(&namespace, Bytes::from_static(EMPTY))
            .await?;
        let media_type = MediaType::OciManifest.as_str();
        let put = self
            .writer
            .put_manifest((&repo, &name), (media_type, manifest));
        put.await.map_err(|error| refused(error, &name))?;
        self.writer.delete(&repo, &digest.to_string()).await?;
        Ok(())
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
