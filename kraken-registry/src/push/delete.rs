//! Deletion: of a tag, a manifest, a blob, in one repository. What other repositories hold stays there,
//! and the bytes stay until nobody holds them.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use kraken_proto::Digest;

use super::PushState;
use crate::error::{Code, RegistryError};
use crate::link::{Link, Linked};
use crate::manifest::Manifest;
use crate::name::{RepoName, Tag};
use crate::reader::ReadError;
use crate::source::BlobSource;
use crate::tags::{LinkService, TagService};

/// `DELETE` of a tag: the manifest stays.
pub(super) async fn tag<B, S, T: TagService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    tag: &Tag,
) -> Result<Response, RegistryError> {
    if state.pull.tags.delete(repo, tag).await? {
        Ok(StatusCode::ACCEPTED.into_response())
    } else {
        let message = format!("{repo} has no tag {tag}");
        Err(RegistryError::new(Code::ManifestUnknown, message))
    }
}

/// `DELETE` of a manifest: the tags that point to it go as well, and it is in no list of referrers.
///
/// The link goes first. Whoever pushes the manifest meanwhile looks at the link again when the tag is
/// there. A deletion that broke off is ended by the next one.
pub(super) async fn manifest<B: BlobSource, S, T: TagService + LinkService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    digest: Digest,
) -> Result<Response, RegistryError> {
    let (link, tags) = (Link::Manifest(digest), &state.pull.tags);
    let known = tags.link(repo, link).await?;
    let ns = repo.namespace();
    let read = state.pull.manifests.read(&state.pull.blobs, &ns, digest);
    let stored = match read.await {
        Ok(stored) => Some(stored),
        Err(ReadError::NotFound | ReadError::Refused(_)) => None,
        Err(error) => return Err(RegistryError::new(Code::Unavailable, error.to_string())),
    };
    let is_here = known == Linked::Held || (known == Linked::Never && stored.is_some());
    if is_here {
        tags.set_link(repo, link, false).await?;
    }
    let manifest = stored.and_then(|stored| Manifest::parse(&stored.bytes).ok());
    if let Some(subject) = manifest.as_ref().and_then(Manifest::subject) {
        let (subject, manifest) = (subject.digest, digest);
        let link = Link::Referrer { subject, manifest };
        if tags.link(repo, link).await? == Linked::Held {
            tags.set_link(repo, link, false).await?;
        }
    }
    for tag in tags.tags_of(repo, digest).await? {
        tags.delete_at(repo, &tag, digest).await?;
    }
    if is_here {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let message = format!("{repo} has no manifest {digest}");
    Err(RegistryError::new(Code::ManifestUnknown, message))
}

/// `DELETE` of a blob.
pub(super) async fn blob<B: BlobSource, S, T: LinkService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    digest: Digest,
) -> Result<Response, RegistryError> {
    let (link, tags) = (Link::Blob(digest), &state.pull.tags);
    let ns = repo.namespace();
    let length = state.pull.blobs.stat(&ns, digest).await?;
    if length.is_none() || tags.link(repo, link).await? == Linked::Removed {
        let message = format!("{repo} has no blob {digest}");
        return Err(RegistryError::new(Code::BlobUnknown, message));
    }
    tags.set_link(repo, link, false).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}
