//! Blob uploads: in one request, streamed, or in chunks.

use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use http::header::{CONTENT_LENGTH, LOCATION};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use kraken_proto::Digest;

use super::session::{self, Chunk};
use super::{PushState, drain, hold_blob, is_kept};
use crate::error::{Code, RegistryError};
use crate::link::Link;
use crate::name::{NameError, RepoName};
use crate::sink::{BlobSink, BodyError};
use crate::source::BlobSource;
use crate::stream::exact;
use crate::tags::{LinkService, TagService};
use crate::web::{CONTENT_DIGEST, header, param, query, value};

/// `POST`: an upload begins, unless the blob can be mounted or came along with the request.
pub(super) async fn start<B: BlobSource, S: BlobSink, T: TagService + LinkService>(
    state: &PushState<B, S, T>,
    parts: &Parts,
    body: Body,
    repo: &RepoName,
) -> Result<Response, RegistryError> {
    let pairs = query(&parts.uri);
    if let Some(digest) = param(&pairs, "mount") {
        let digest = parse(digest)?;
        let from = param(&pairs, "from").and_then(|from| from.parse::<RepoName>().ok());
        // What may not be read is not mounted; it may be pushed all the same.
        let from = match from {
            Some(from) if state.pull.access.check_pull(parts, &from).await.is_ok() => Some(from),
            _ => None,
        };
        if is_mountable(state, repo, from.as_ref(), digest).await {
            hold_blob(state, repo, (digest, is_kept(parts))).await?;
            return Ok(created(repo, digest));
        }
    }
    let whole = param(&pairs, "digest").map(parse).transpose()?;
    let Some(digest) = whole else {
        if let Some(algorithm) = param(&pairs, "digest-algorithm").filter(|it| *it != "sha256") {
            let message = format!("{algorithm:?} is not supported: blobs are named by sha256");
            return Err(RegistryError::new(Code::DigestInvalid, message));
        }
        let id = state.sink.upload_start(&repo.namespace()).await?;
        return Ok((StatusCode::ACCEPTED, session::headers(repo, &id, 0)).into_response());
    };
    monolithic(state, body, repo, digest).await?;
    hold_blob(state, repo, (digest, is_kept(parts))).await?;
    Ok(created(repo, digest))
}

/// `GET`: how far the upload is.
pub(super) async fn status<B, S: BlobSink, T>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    token: &str,
) -> Result<Response, RegistryError> {
    let id = session::id(token)?;
    let len = state.sink.upload_len(&id).await?;
    Ok((StatusCode::NO_CONTENT, session::headers(repo, &id, len)).into_response())
}

/// `PATCH`: more bytes, as one stream or as a chunk that says where it belongs.
pub(super) async fn patch<B, S: BlobSink, T>(
    state: &PushState<B, S, T>,
    parts: &Parts,
    body: Body,
    repo: &RepoName,
    token: &str,
) -> Result<Response, RegistryError> {
    let id = session::id(token)?;
    let len = append(state, &parts.headers, body, &id).await?;
    Ok((StatusCode::ACCEPTED, session::headers(repo, &id, len)).into_response())
}

/// `PUT`: the last bytes, if any, and the digest of all.
pub(super) async fn finish<B, S: BlobSink, T: LinkService>(
    state: &PushState<B, S, T>,
    parts: &Parts,
    body: Body,
    repo: &RepoName,
    token: &str,
) -> Result<Response, RegistryError> {
    let id = session::id(token)?;
    let pairs = query(&parts.uri);
    let Some(digest) = param(&pairs, "digest") else {
        drain(body).await;
        return Err(RegistryError::new(
            Code::DigestInvalid,
            "the upload ends with the blob's digest: add ?digest=sha256:…",
        ));
    };
    let digest = parse(digest)?;
    let unplaced = Chunk::parse(&parts.headers)?.is_none();
    if unplaced && large(&body).is_some() && state.sink.upload_len(&id).await? == 0 {
        // All of it comes at once. Others can have it meanwhile where they look for it, which is
        // not where this upload was begun.
        monolithic(state, body, repo, digest).await?;
        hold_blob(state, repo, (digest, is_kept(parts))).await?;
        give_up(state, &id).await;
        return Ok(created(repo, digest));
    }
    if !body.is_end_stream() {
        append(state, &parts.headers, body, &id).await?;
    }
    let ns = repo.namespace();
    state.sink.upload_commit(&id, &ns, digest).await?;
    hold_blob(state, repo, (digest, is_kept(parts))).await?;
    Ok(created(repo, digest))
}

/// `DELETE`: the upload is given up.
pub(super) async fn cancel<B, S: BlobSink, T>(
    state: &PushState<B, S, T>,
    token: &str,
) -> Result<Response, RegistryError> {
    let id = session::id(token)?;
    // Some give up what is not there without a word.
    state.sink.upload_len(&id).await?;
    state.sink.upload_abort(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// 201 for a blob that is there now.
fn created(repo: &RepoName, digest: Digest) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(LOCATION, value(format!("/v2/{repo}/blobs/{digest}")));
    headers.insert(CONTENT_DIGEST, value(digest.to_string()));
    (StatusCode::CREATED, headers).into_response()
}

/// Blobs live in one space, so mounting is finding: here, in the other repository's backend, or
/// anywhere when the client names none. What cannot be asked is not mounted: the specification lets
/// a mount that does not work fall back to an upload.
async fn is_mountable<B: BlobSource, S, T: LinkService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    from: Option<&RepoName>,
    digest: Digest,
) -> bool {
    for repo in [Some(repo), from].into_iter().flatten() {
        let found = state.pull.blobs.stat(&repo.namespace(), digest).await;
        let is_removed = state.pull.is_removed(repo, Link::Blob(digest)).await;
        if matches!(found, Ok(Some(_))) && !is_removed {
            return true;
        }
    }
    false
}

/// A blob that comes in one request.
async fn monolithic<B, S: BlobSink, T>(
    state: &PushState<B, S, T>,
    body: Body,
    repo: &RepoName,
    digest: Digest,
) -> Result<(), RegistryError> {
    let ns = repo.namespace();
    let id = match large(&body) {
        Some(length) => state.sink.upload_start_known(&ns, digest, length).await?,
        None => state.sink.upload_start(&ns).await?,
    };
    let taken = async {
        if !body.is_end_stream() {
            state.sink.upload_append(&id, 0, data(body)).await?;
        }
        state.sink.upload_commit(&id, &ns, digest).await
    };
    let taken = taken.await;
    if taken.is_err() {
        give_up(state, &id).await;
    }
    Ok(taken?)
}

async fn give_up<B, S: BlobSink, T>(state: &PushState<B, S, T>, id: &str) {
    if let Err(error) = state.sink.upload_abort(id).await {
        tracing::debug!(%error, "an upload that was to be given up is gone already");
    }
}

/// The length of a body that is known to be so long that others should not wait for its end.
fn large(body: &Body) -> Option<u64> {
    body.size_hint().exact().filter(|length| *length >= LARGE)
}

/// Bytes from which on a blob of known digest is announced before it is whole: what takes a tenth of
/// a second and more.
const LARGE: u64 = 16 << 20;

/// Adds a request's body to the upload; its new length.
async fn append<B, S: BlobSink, T>(
    state: &PushState<B, S, T>,
    headers: &HeaderMap,
    body: Body,
    id: &str,
) -> Result<u64, RegistryError> {
    let len = state.sink.upload_len(id).await?;
    let chunk = Chunk::parse(headers)?;
    let body = match chunk {
        Some(chunk) if chunk.start != len => {
            drain(body).await;
            return Err(RegistryError::chunk(len));
        }
        // `a-b` cannot say "no bytes": an empty last chunk comes with some range or other.
        Some(_) if header(headers, CONTENT_LENGTH) == Some("0") => return Ok(len),
        Some(chunk) => exact(data(body), chunk.len, |want, seen| BodyError::Length {
            want,
            seen,
        }),
        None => data(body),
    };
    Ok(state.sink.upload_append(id, len, body).await?)
}

fn data(body: Body) -> BoxStream<'static, Result<Bytes, BodyError>> {
    body.into_data_stream()
        .map_err(|error| BodyError::Broken(error.to_string()))
        .boxed()
}

fn parse(digest: &str) -> Result<Digest, RegistryError> {
    Ok(digest.parse().map_err(NameError::Digest)?)
}
