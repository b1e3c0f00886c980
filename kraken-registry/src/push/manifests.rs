//! Manifests: checked, stored as blobs, then named by tags.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kraken_proto::{Digest, Namespace};
use serde_json::json;
use tokio::time::timeout;

use super::{PushState, drain, hold};
use crate::error::{Code, RegistryError};
use crate::link::Link;
use crate::manifest::{Manifest, ManifestError, MediaType};
use crate::name::{Reference, RepoName, Tag};
use crate::sink::{BlobSink, BodyError};
use crate::source::BlobSource;
use crate::tags::check::{self, CheckError};
use crate::tags::{LinkService, TagService};
use crate::web::{CONTENT_DIGEST, OCI_SUBJECT, OCI_TAG, header, query, value};

/// `PUT`: the tag moves only after everything that the manifest needs is there.
pub(super) async fn put<B: BlobSource, S: BlobSink, T: TagService + LinkService>(
    state: &PushState<B, S, T>,
    parts: &Parts,
    body: Body,
    repo: &RepoName,
    reference: Reference,
) -> Result<Response, RegistryError> {
    let bytes = collect(parts, body).await?;
    let digest = Digest::of(&bytes);
    let tags = tags(parts, &reference)?;
    if let Reference::Digest(named) = &reference
        && *named != digest
    {
        let message = format!("the manifest was pushed as {named}, but its digest is {digest}");
        return Err(RegistryError::new(Code::DigestInvalid, message));
    }
    let manifest = Manifest::parse(&bytes)?;
    check_type(parts, manifest.media_type())?;
    check_references(state, repo, &manifest).await?;
    store(state, repo, digest, bytes.clone()).await?;
    let media_type = manifest.media_type();
    state
        .pull
        .manifests
        .remember(digest, bytes, media_type)
        .await;
    let subject = manifest.subject().map(|subject| subject.digest);
    let referrer = subject.map(|subject| Link::Referrer {
        subject,
        manifest: digest,
    });
    let links = referrer.into_iter().chain([Link::Manifest(digest)]);
    for link in links.clone() {
        hold(state, repo, link).await?;
    }
    for tag in &tags {
        state.pull.tags.put(repo, tag, digest).await?;
    }
    // A deletion that began in between may have looked for tags before this one was there. One that
    // comes later finds it.
    for link in links {
        hold(state, repo, link).await?;
    }
    let mut response = created(repo, &reference, digest, &tags);
    if let Some(subject) = subject {
        response
            .headers_mut()
            .insert(OCI_SUBJECT, value(subject.to_string()));
    }
    Ok(response)
}

impl From<ManifestError> for RegistryError {
    fn from(error: ManifestError) -> Self {
        let message = error.to_string();
        match error {
            ManifestError::TooLarge => {
                Self::new(Code::SizeInvalid, message).with_status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            _ => Self::new(Code::ManifestInvalid, message),
        }
    }
}

/// How long a manifest may take: it is held in memory, and the longest has 4 MiB.
const TIME: Duration = Duration::from_secs(120);

/// The body, held in memory up to the limit.
async fn collect(parts: &Parts, body: Body) -> Result<Bytes, RegistryError> {
    let announced =
        header(&parts.headers, CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > Manifest::MAX_LEN as u64) {
        drain(body).await;
        return Err(ManifestError::TooLarge.into());
    }
    let whole = timeout(TIME, Limited::new(body, Manifest::MAX_LEN).collect()).await;
    let late = || {
        let message = format!("the manifest did not come within {} s", TIME.as_secs());
        RegistryError::new(Code::ManifestInvalid, message).with_status(StatusCode::REQUEST_TIMEOUT)
    };
    match whole.map_err(|_| late())? {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ManifestError::TooLarge.into()),
        Err(error) => Err(RegistryError::new(
            Code::ManifestInvalid,
            BodyError::Broken(error.to_string()).to_string(),
        )),
    }
}

/// The tags to set: the reference itself, or those of `?tag=` beside a digest.
fn tags(parts: &Parts, reference: &Reference) -> Result<Vec<Tag>, RegistryError> {
    if let Reference::Tag(tag) = reference {
        return Ok(vec![tag.clone()]);
    }
    let pairs = query(&parts.uri);
    let tags = pairs.iter().filter(|(key, _)| key == "tag");
    let tags = tags
        .map(|(_, tag)| tag.parse())
        .collect::<Result<Vec<Tag>, _>>()?;
    if tags.len() > MAX_TAGS {
        let message = format!("a push sets up to {MAX_TAGS} tags: push again for more");
        return Err(
            RegistryError::new(Code::Unsupported, message).with_status(StatusCode::URI_TOO_LONG)
        );
    }
    Ok(tags)
}

const MAX_TAGS: usize = 16;

/// A `Content-Type` of a manifest must agree with the manifest: a pull answers with the latter.
fn check_type(parts: &Parts, found: MediaType) -> Result<(), RegistryError> {
    let Some(given) = header(&parts.headers, CONTENT_TYPE) else {
        return Ok(());
    };
    let given = given.split(';').next().unwrap_or(given).trim();
    if matches!(
        given,
        "" | "application/json" | "application/octet-stream" | "text/plain"
    ) {
        return Ok(());
    }
    if given.parse::<MediaType>()? == found {
        return Ok(());
    }
    let message = format!("pushed as {given}, but the manifest is of the type {found}");
    Err(RegistryError::new(Code::ManifestInvalid, message))
}

/// Whatever a pull would need exists. A subject may be missing: it is often pushed later.
async fn check_references<B: BlobSource, S, T: LinkService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    manifest: &Manifest,
) -> Result<(), RegistryError> {
    let ns = &repo.namespace();
    let blobs = manifest.blobs().map(|blob| Link::Blob(blob.digest));
    let children = manifest
        .manifests()
        .map(|child| Link::Manifest(child.digest));
    let needed: BTreeSet<Link> = blobs.chain(children).collect();
    let missing: Vec<Digest> = stream::iter(needed)
        .map(async |link| {
            let digest = link.digest();
            let length = state.pull.blobs.stat(ns, digest);
            let removed = state.pull.is_removed(repo, link);
            let (length, is_removed) = futures::join!(length, removed);
            let is_missing = length?.is_none() || is_removed;
            Ok::<_, RegistryError>(is_missing.then_some(digest))
        })
        .buffer_unordered(STATS)
        .try_filter_map(async |missing| Ok(missing))
        .try_collect()
        .await?;
    let Some(first) = missing.first() else {
        return children_are_whole(state, ns, manifest).await;
    };
    let message = format!(
        "the manifest refers to {first}, which {repo} does not have ({} missing): push blobs and \
         child manifests before the manifest",
        missing.len()
    );
    let named: Vec<_> = missing
        .iter()
        .take(MAX_NAMED)
        .map(Digest::to_string)
        .collect();
    Err(RegistryError::new(Code::ManifestBlobUnknown, message)
        .with_detail(json!({ "digests": named })))
}

/// Whether the manifests that an index lists have all that they need: what was there when they were
/// pushed may have been deleted since.
async fn children_are_whole<B: BlobSource, S, T>(
    state: &PushState<B, S, T>,
    ns: &Namespace,
    manifest: &Manifest,
) -> Result<(), RegistryError> {
    for child in manifest.manifests() {
        let code = match check::complete(&state.pull.blobs, ns, child.digest).await {
            Ok(_) => continue,
            Err(error) => (
                error.to_string(),
                matches!(error, CheckError::Unavailable(_)),
            ),
        };
        let (message, is_away) = code;
        let code = if is_away {
            Code::Unavailable
        } else {
            Code::ManifestBlobUnknown
        };
        return Err(RegistryError::new(code, message));
    }
    Ok(())
}

/// Questions to the source at once.
const STATS: usize = 16;
/// Missing digests named in an answer.
const MAX_NAMED: usize = 64;

async fn store<B, S: BlobSink, T>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    digest: Digest,
    bytes: Bytes,
) -> Result<(), RegistryError> {
    let ns = repo.namespace();
    let id = state.sink.upload_start(&ns).await?;
    let body = stream::iter([Ok(bytes)]).boxed();
    state.sink.upload_append(&id, 0, body).await?;
    Ok(state.sink.upload_commit(&id, &ns, digest).await?)
}

fn created(repo: &RepoName, reference: &Reference, digest: Digest, tags: &[Tag]) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(LOCATION, value(format!("/v2/{repo}/manifests/{digest}")));
    headers.insert(CONTENT_DIGEST, value(digest.to_string()));
    if matches!(reference, Reference::Digest(_)) {
        for tag in tags {
            headers.append(OCI_TAG, value(tag.as_str()));
        }
    }
    (StatusCode::CREATED, headers).into_response()
}
