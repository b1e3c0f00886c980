//! Manifests: by tag or digest, with the type they were pushed with.

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::{PullState, content, not_modified};
use crate::error::{Code, RegistryError};
use crate::link::Link;
use crate::name::{Reference, RepoName};
use crate::reader::ReadError;
use crate::source::BlobSource;
use crate::tags::server::TAG_STALE;
use crate::tags::{Found, LinkService, TagService};
use crate::web::value;

/// `GET` and `HEAD` alike: the type stands in the bytes, so both read them, and hyper leaves the
/// body out for `HEAD`.
pub(super) async fn get<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
    repo: &RepoName,
    reference: Reference,
) -> Result<Response, RegistryError> {
    let Found { digest, is_stale } = resolve(state, repo, &reference).await?;
    if state.is_mirror() && !is_stale && matches!(reference, Reference::Tag(_)) {
        state.removals.note(repo, digest).await;
    }
    let ns = repo.namespace();
    let read = state.manifests.read(&state.blobs, &ns, digest);
    let by_digest = matches!(reference, Reference::Digest(_));
    let removed = async { by_digest && state.is_removed(repo, Link::Manifest(digest)).await };
    // What is remembered may have gone as garbage since.
    let gone = async {
        let asks = by_digest && !state.is_mirror();
        asks && matches!(state.blobs.stat(&ns, digest).await, Ok(None))
    };
    let (read, is_removed, is_gone) = futures::join!(read, removed, gone);
    if is_removed || is_gone {
        return Err(unknown(repo, &reference));
    }
    let stored = read.map_err(|error| match error {
        ReadError::Unavailable(_) => state.manifest_unavailable(&error.to_string()),
        // A layer is a blob of the same space; asked for as a manifest it does not exist.
        ReadError::NotFound | ReadError::Refused(_) => unknown(repo, &reference),
    })?;
    if is_stale {
        state.stale.note();
    }
    let stale = is_stale.then(|| (HeaderName::from_static(TAG_STALE), value("true")));
    if let Some(mut response) = not_modified(parts, digest) {
        response.headers_mut().extend(stale);
        return Ok(response);
    }
    let mut headers = content(digest);
    headers.extend(stale);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(stored.media_type.as_str()),
    );
    Ok((headers, stored.bytes).into_response())
}

async fn resolve<B: BlobSource, T: TagService + LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    reference: &Reference,
) -> Result<Found, RegistryError> {
    match reference {
        Reference::Digest(digest) => Ok(Found {
            digest: *digest,
            is_stale: false,
        }),
        Reference::Tag(tag) => match state.tags.find(repo, tag).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(unknown(repo, reference)),
            Err(error) => Err(state.manifest_unavailable(&error.to_string())),
        },
    }
}

fn unknown(repo: &RepoName, reference: &Reference) -> RegistryError {
    let message = format!("{repo} has no manifest {reference}");
    RegistryError::new(Code::ManifestUnknown, message)
}
