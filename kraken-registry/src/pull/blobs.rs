//! Blobs: whole or a range, streamed as they arrive.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use kraken_proto::Digest;

use super::range::{Asked, Span};
use super::{PullState, content, etag, not_modified};
use crate::error::{Code, RegistryError};
use crate::link::Link;
use crate::name::RepoName;
use crate::source::{BlobBody, BlobSource, SourceError};
use crate::stream::exact;
use crate::tags::LinkService;
use crate::web::{header, value};

/// Answers from the length alone: asking whether a blob exists never downloads it.
pub(super) async fn head<B: BlobSource, T: LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
    repo: &RepoName,
    digest: Digest,
) -> Result<Response, RegistryError> {
    let total = stat(state, repo, digest).await?;
    if let Some(response) = not_modified(parts, digest) {
        return Ok(response);
    }
    Ok((describe(digest, total), Body::empty()).into_response())
}

pub(super) async fn get<B: BlobSource, T: LinkService>(
    state: &PullState<B, T>,
    parts: &Parts,
    repo: &RepoName,
    digest: Digest,
) -> Result<Response, RegistryError> {
    if parts.headers.contains_key(http::header::IF_NONE_MATCH) {
        stat(state, repo, digest).await?;
        if let Some(response) = not_modified(parts, digest) {
            return Ok(response);
        }
    }
    match asked(&parts.headers, digest) {
        None => whole(state, repo, digest).await,
        Some(asked) => part(state, repo, digest, asked).await,
    }
}

async fn whole<B: BlobSource, T: LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    digest: Digest,
) -> Result<Response, RegistryError> {
    let body = open(state, repo, digest, 0..u64::MAX).await?;
    let total = body.total;
    answer(
        StatusCode::OK,
        describe(digest, total),
        body,
        (repo, digest, total),
    )
    .await
}

async fn part<B: BlobSource, T: LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    digest: Digest,
    asked: Asked,
) -> Result<Response, RegistryError> {
    let total = stat(state, repo, digest).await?;
    let span = asked
        .within(total)
        .ok_or_else(|| RegistryError::range(total))?;
    let Span {
        start,
        end,
        is_rest,
    } = span;
    let wanted = start..if is_rest { u64::MAX } else { end };
    let body = open(state, repo, digest, wanted).await?;
    let mut headers = describe(digest, end - start);
    headers.insert(
        CONTENT_RANGE,
        value(format!("bytes {start}-{}/{total}", end - 1)),
    );
    let status = StatusCode::PARTIAL_CONTENT;
    answer(status, headers, body, (repo, digest, end - start)).await
}

async fn answer(
    status: StatusCode,
    headers: HeaderMap,
    body: BlobBody,
    (repo, digest, length): (&RepoName, Digest, u64),
) -> Result<Response, RegistryError> {
    let BlobBody { stream, file, .. } = body;
    let body = guard(stream, digest, length).await;
    let body = body.map_err(|error| refuse(error, repo, digest))?;
    let mut response = (status, headers, body).into_response();
    if let Some(file) = file {
        response.extensions_mut().insert(file);
    }
    Ok(response)
}

async fn stat<B: BlobSource, T: LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    digest: Digest,
) -> Result<u64, RegistryError> {
    let ns = repo.namespace();
    let length = state.blobs.stat(&ns, digest);
    let removed = state.is_removed(repo, Link::Blob(digest));
    let (length, is_removed) = futures::join!(length, removed);
    let length = length?.filter(|_| !is_removed);
    length.ok_or_else(|| unknown(repo, digest))
}

async fn open<B: BlobSource, T: LinkService>(
    state: &PullState<B, T>,
    repo: &RepoName,
    digest: Digest,
    range: std::ops::Range<u64>,
) -> Result<BlobBody, RegistryError> {
    let ns = repo.namespace();
    let opened = state.blobs.open(&ns, digest, range);
    let removed = state.is_removed(repo, Link::Blob(digest));
    let (opened, is_removed) = futures::join!(opened, removed);
    if is_removed {
        return Err(unknown(repo, digest));
    }
    opened.map_err(|error| refuse(error, repo, digest))
}

fn refuse(error: SourceError, repo: &RepoName, digest: Digest) -> RegistryError {
    match error {
        SourceError::NotFound => unknown(repo, digest),
        error => error.into(),
    }
}

/// A body of exactly `length` bytes: an error or a wrong length breaks the connection, so that no
/// client takes a part for the whole.
///
/// Waits for the first bytes. What fails before them becomes a status, which sends a runtime to
/// the next host; a body that breaks off fails some runtimes' pull for good.
async fn guard(
    stream: BoxStream<'static, Result<Bytes, SourceError>>,
    digest: Digest,
    length: u64,
) -> Result<Body, SourceError> {
    let wrong =
        |want, seen| SourceError::Unavailable(format!("{seen} bytes came instead of {want}"));
    let mut stream = exact(stream, length, wrong).inspect(move |chunk| {
        if let Err(error) = chunk {
            tracing::warn!(%digest, %error, "a blob's body broke off");
        }
    });
    let Some(first) = stream.next().await.transpose()? else {
        return Ok(Body::empty());
    };
    let first = stream::once(std::future::ready(Ok(first)));
    Ok(Body::from_stream(first.chain(stream)))
}

fn describe(digest: Digest, length: u64) -> HeaderMap {
    let mut headers = content(digest);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers
}

/// The range to serve, unless the client asked for it only of another version.
fn asked(headers: &HeaderMap, digest: Digest) -> Option<Asked> {
    let range = Asked::parse(header(headers, RANGE)?)?;
    match header(headers, IF_RANGE) {
        Some(version) if version != etag(digest) => None,
        _ => Some(range),
    }
}

fn unknown(repo: &RepoName, digest: Digest) -> RegistryError {
    let message = format!("{repo} has no blob {digest}");
    RegistryError::new(Code::BlobUnknown, message)
}
