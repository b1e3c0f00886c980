//! An origin's HTTP face: uploads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{patch, post};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::api::{Copies, OriginApi};
use super::body::Portions;
use super::range::declared;
use super::{UPLOAD_ID, UPLOAD_OFFSET};
use crate::announce::server::metainfo_response;
use crate::http::client::READ_IDLE;
use crate::http::idle::until_idle;
use crate::http::path::{self, Asked, Params, segment};
use crate::http::{ApiError, ByteStream};

/// The longest id of an upload.
const MAX_ID: usize = 128;

pub(super) fn routes<O: OriginApi>() -> Router<Arc<O>> {
    Router::new()
        .route("/namespace/{namespace}/uploads", post(start::<O>))
        .route(
            "/namespace/{namespace}/uploads/{id}",
            patch(append_to::<O>)
                .get(progress::<O>)
                .put(commit_as::<O>)
                .delete(abort::<O>),
        )
        .route(
            "/namespace/{namespace}/blobs/{digest}/uploads",
            post(start_known::<O>),
        )
        .route(
            "/namespace/{namespace}/blobs/{digest}/uploads/{id}",
            patch(append_known::<O>).put(commit_known::<O>),
        )
        .route("/internal/blobs/{digest}/uploads", post(start_replica::<O>))
        .route(
            "/internal/blobs/{digest}/uploads/{id}",
            patch(append_replica::<O>).put(commit_replica::<O>),
        )
}

async fn start<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params(namespace): Params<String>,
) -> Result<Response, ApiError> {
    let namespace = path::namespace(&namespace)?;
    api.check_uploads()?;
    let id = api.upload_start().await?;
    let location = format!("/namespace/{}/uploads/{id}", segment(namespace.as_str()));
    started(&id, location)
}

#[derive(Deserialize)]
struct Known {
    /// In bytes.
    size: Option<u64>,
}

/// As in the original, `Location` is the bare id here. With `size`, the blob is there for others
/// while it comes.
async fn start_known<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
    Asked(Known { size }): Asked<Known>,
) -> Result<Response, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    if api.stat(&namespace, digest, Copies::Here).await?.is_some() {
        return Err(ApiError::Conflict(format!("{digest} is here already")));
    }
    api.check_uploads()?;
    let id = match size {
        Some(size) => api.upload_start_known(&namespace, digest, size).await?,
        None => api.upload_start().await?,
    };
    started(&id, id.clone())
}

async fn start_replica<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params(digest): Params<String>,
) -> Result<Response, ApiError> {
    path::digest(&digest)?;
    let id = api.upload_start().await?;
    started(&id, id.clone())
}

fn started(id: &str, location: String) -> Result<Response, ApiError> {
    let text = |text: String| {
        HeaderValue::try_from(text)
            .map_err(|_| ApiError::Internal("the upload's id is not plain text".to_string()))
    };
    let mut response = StatusCode::ACCEPTED.into_response();
    let head = response.headers_mut();
    head.insert(header::LOCATION, text(location)?);
    head.insert(UPLOAD_ID, text(id.to_string())?);
    Ok(response)
}

async fn append_to<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, id)): Params<(String, String)>,
    head: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    path::namespace(&namespace)?;
    append(&*api, &id, &head, body).await
}

async fn append_known<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest, id)): Params<(String, String, String)>,
    head: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    path::namespace(&namespace)?;
    path::digest(&digest)?;
    append(&*api, &id, &head, body).await
}

async fn append_replica<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((digest, id)): Params<(String, String)>,
    head: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    path::digest(&digest)?;
    append(&*api, &id, &head, body).await
}

/// Whatever arrives is kept, also in front of a break: the upload goes on at its new length.
async fn append<O: OriginApi>(
    api: &O,
    id: &str,
    head: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = checked_id(id)?;
    let (start, end) = match declared(head)? {
        Some(declared) => declared,
        None => (api.upload_len(id).await?, None),
    };
    let mut portions = Portions::new(received(body));
    // Also an empty body learns whether the upload and its offset are right.
    let mut offset = api.upload_append(id, start, bytes::Bytes::new()).await?;
    let broken = |error: io::Error| ApiError::BadRequest(format!("the body broke off: {error}"));
    while let Some(portion) = portions.next().await.map_err(broken)? {
        let after = offset.saturating_add(portion.len() as u64);
        if let Some(end) = end.filter(|end| after > *end) {
            return Err(ApiError::BadRequest(format!(
                "the body goes on past {end}, where its Content-Range ends"
            )));
        }
        offset = api.upload_append(id, offset, portion).await?;
    }
    if let Some(end) = end.filter(|end| offset < *end) {
        return Err(ApiError::BadRequest(format!(
            "the body ended at {offset}, its Content-Range at {end}"
        )));
    }
    Ok(at(StatusCode::ACCEPTED, offset))
}

fn received(body: Body) -> ByteStream {
    let stream = body.into_data_stream().map_err(io::Error::other).boxed();
    until_idle(stream, READ_IDLE)
}

async fn progress<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((_, id)): Params<(String, String)>,
) -> Result<Response, ApiError> {
    let offset = api.upload_len(checked_id(&id)?).await?;
    Ok(at(StatusCode::NO_CONTENT, offset))
}

fn at(status: StatusCode, offset: u64) -> Response {
    (status, [(UPLOAD_OFFSET, HeaderValue::from(offset))]).into_response()
}

async fn abort<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((_, id)): Params<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.upload_abort(checked_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct As {
    digest: String,
}

async fn commit_as<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, id)): Params<(String, String)>,
    Asked(As { digest }): Asked<As>,
) -> Result<Response, ApiError> {
    commit(&*api, &namespace, &digest, &id).await
}

async fn commit_known<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest, id)): Params<(String, String, String)>,
) -> Result<Response, ApiError> {
    commit(&*api, &namespace, &digest, &id).await
}

async fn commit<O: OriginApi>(
    api: &O,
    namespace: &str,
    digest: &str,
    id: &str,
) -> Result<Response, ApiError> {
    let (namespace, digest) = (path::namespace(namespace)?, path::digest(digest)?);
    let meta = api
        .upload_commit(checked_id(id)?, &namespace, digest)
        .await?;
    Ok((StatusCode::CREATED, metainfo_response(&meta, None)).into_response())
}

#[derive(Deserialize)]
struct Replica {
    namespace: String,
    #[serde(default)]
    write_back_delay_ms: u64,
}

async fn commit_replica<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((digest, id)): Params<(String, String)>,
    Asked(replica): Asked<Replica>,
) -> Result<StatusCode, ApiError> {
    let (namespace, digest) = (path::namespace(&replica.namespace)?, path::digest(&digest)?);
    let delay = Duration::from_millis(replica.write_back_delay_ms);
    api.upload_commit_replica(checked_id(&id)?, &namespace, digest, delay)
        .await?;
    Ok(StatusCode::CREATED)
}

/// An id that no origin can have given is unknown. So an implementation may put ids into file
/// names.
fn checked_id(id: &str) -> Result<&str, ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(plain) {
        Ok(id)
    } else {
        Err(ApiError::NotFound)
    }
}
