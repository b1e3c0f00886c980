//! An origin's HTTP face: reading.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use kraken_proto::{Digest, PeerInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api::{Copies, OriginApi, Prefetch};
use super::garbage::{GarbageAsked, Places};
use super::holdings::{Digests, Holdings, MOST};
use super::range::Asked as AskedRange;
use super::{CONTENT_DIGEST, LEAVING, LOCATIONS, uploads};
use crate::announce::server::{MetaInfoQuery, metainfo_response};
use crate::http::ApiError;
use crate::http::error::{unknown_method, unknown_path};
use crate::http::path::{self, Asked, Params};

/// Serves an origin.
///
/// | method, path | answer |
/// |---|---|
/// | GET `/blobs/{digest}/locations` | the header `Origin-Locations` |
/// | GET, HEAD `/namespace/{ns}/blobs/{digest}` | the blob; ranges |
/// | POST `/namespace/{ns}/blobs/{digest}/prefetch` | 200 present, 202 started |
/// | HEAD `/internal/namespace/{ns}/blobs/{digest}?local=` | its length |
/// | GET `/internal/namespace/{ns}/blobs/{digest}/metainfo` | its metainfo, whole; with `?open=true`, as much as is known; with `&after=` more than so many states, or after a while |
/// | GET `/internal/namespace/{ns}/blobs/{digest}/write-back` | 204 when this origin tries to write it to the backend, or has in vain, else 404 |
/// | PUT `/internal/namespace/{ns}/blobs/{digest}/write-back?delay_ms=` | 204: it is to write the blob to the backend, if nobody has by then |
/// | GET `/internal/namespace/{ns}/tags/{tag}` | the digest that a tag points to in the registry that the namespace's blobs come from |
/// | DELETE `/internal/blobs/{digest}` | 202 |
/// | GET `/internal/peercontext` | the origin as a peer; with the header `Origin-Leaving` when it hands its share over |
/// | POST `/internal/ring/holdings` | what it holds of another origin's share: [`HoldingsAsked`](super::HoldingsAsked) to [`Holdings`] |
/// | POST `/internal/ring/holds` | [`Digests`] to those of them that it holds |
/// | POST `/internal/garbage` | a step of a collector: [`GarbageAsked`] to [`Digests`] |
/// | POST `/internal/garbage/page` | blobs to find garbage among: [`GarbagePage`](super::GarbagePage) to [`Digests`] |
/// | POST `/internal/garbage/places` | [`Places`] to the numbers of their storages |
/// | POST `/namespace/{ns}/uploads` | 202, `Location` and `Upload-Id` |
/// | PATCH, GET, DELETE `/namespace/{ns}/uploads/{id}` | `Upload-Offset` |
/// | PUT `/namespace/{ns}/uploads/{id}?digest=` | 201, the metainfo |
/// | POST, PATCH, PUT `/namespace/{ns}/blobs/{digest}/uploads…` | the same under a known digest |
/// | POST, PATCH, PUT `/internal/blobs/{digest}/uploads…` | a copy from another origin |
///
/// Bodies stream both ways and are bounded by idleness only.
pub fn router<O: OriginApi>(api: Arc<O>) -> Router {
    Router::new()
        .route("/blobs/{digest}/locations", get(locations::<O>))
        .route("/namespace/{namespace}/blobs/{digest}", blob_routes::<O>())
        .route(
            "/namespace/{namespace}/blobs/{digest}/prefetch",
            post(prefetch::<O>),
        )
        .route(
            "/internal/namespace/{namespace}/blobs/{digest}",
            axum::routing::head(stat::<O>),
        )
        .route(
            "/internal/namespace/{namespace}/blobs/{digest}/metainfo",
            get(metainfo::<O>),
        )
        .route(
            "/internal/namespace/{namespace}/blobs/{digest}/write-back",
            get(writes_back::<O>).put(write_back::<O>),
        )
        .route(
            "/internal/namespace/{namespace}/tags/{tag}",
            get(resolve::<O>),
        )
        .route("/internal/blobs/{digest}", delete(remove::<O>))
        .route("/internal/peercontext", get(peer_context::<O>))
        .route("/internal/ring/holdings", post(holdings::<O>))
        .route("/internal/ring/holds", post(holds::<O>))
        .route("/internal/garbage", post(garbage::<O>))
        .route("/internal/garbage/page", post(garbage_page::<O>))
        .route("/internal/garbage/places", post(places::<O>))
        .merge(uploads::routes::<O>())
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(api)
}

fn blob_routes<O: OriginApi>() -> MethodRouter<Arc<O>> {
    get(read::<O>).head(stat::<O>)
}

async fn locations<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params(digest): Params<String>,
) -> Result<Response, ApiError> {
    let owners = api.locations(path::digest(&digest)?).await?.join(",");
    let owners = HeaderValue::try_from(owners)
        .map_err(|_| ApiError::Internal("an origin's URL is not plain text".to_string()))?;
    Ok([(LOCATIONS, owners)].into_response())
}

async fn read<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
    head: HeaderMap,
) -> Result<Response, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    let range = match AskedRange::of(&head) {
        Some(asked) => {
            let length = api.stat(&namespace, digest, Copies::Coming).await?;
            Some(asked.resolve(length.ok_or(ApiError::NotFound)?)?)
        }
        None => None,
    };
    let blob = api.read(&namespace, digest, range.clone()).await?;
    let whole = 0..blob.length;
    let status = match &range {
        Some(_) => StatusCode::PARTIAL_CONTENT,
        None => StatusCode::OK,
    };
    let part = range.clone().unwrap_or(whole);
    let mut response = (status, Body::from_stream(blob.body)).into_response();
    describe(response.headers_mut(), digest, part.end - part.start);
    if range.is_some() {
        let last = part.end.saturating_sub(1);
        let value = format!("bytes {}-{last}/{}", part.start, blob.length);
        let value = HeaderValue::try_from(value).expect("digits");
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

#[derive(Deserialize)]
struct Where {
    #[serde(default)]
    local: bool,
    #[serde(default)]
    whole: bool,
}

async fn stat<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
    Asked(Where { local, whole }): Asked<Where>,
) -> Result<Response, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    let copies = match (local, whole) {
        (true, _) => Copies::Here,
        (false, true) => Copies::Whole,
        (false, false) => Copies::Coming,
    };
    let length = api.stat(&namespace, digest, copies).await?;
    let mut response = Response::new(Body::empty());
    describe(
        response.headers_mut(),
        digest,
        length.ok_or(ApiError::NotFound)?,
    );
    Ok(response)
}

/// The headers of every answer that is, or stands for, bytes of a blob.
fn describe(head: &mut HeaderMap, digest: Digest, length: u64) {
    let text = |text: String| HeaderValue::try_from(text).expect("digits and letters");
    head.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    head.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head.insert(header::ETAG, text(format!("\"{digest}\"")));
    head.insert(CONTENT_DIGEST, text(digest.to_string()));
}

async fn metainfo<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
    Asked(query): Asked<MetaInfoQuery>,
) -> Result<Response, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    let meta = if query.open {
        api.open_metainfo(&namespace, digest, query.after).await?
    } else {
        api.metainfo(&namespace, digest).await?
    };
    Ok(metainfo_response(&meta, query.after))
}

async fn prefetch<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    Ok(match api.prefetch(&namespace, digest).await? {
        Prefetch::Present => StatusCode::OK,
        Prefetch::Started => StatusCode::ACCEPTED,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Later {
    #[serde(default)]
    delay_ms: u64,
}

async fn write_back<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
    Asked(Later { delay_ms }): Asked<Later>,
) -> Result<StatusCode, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    let delay = Duration::from_millis(delay_ms);
    api.write_back(&namespace, digest, delay).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn writes_back<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, digest)): Params<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    match api.writes_back(&namespace, digest).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::NotFound),
    }
}

async fn resolve<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params((namespace, tag)): Params<(String, String)>,
) -> Result<String, ApiError> {
    let namespace = path::namespace(&namespace)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    // One that begins with a dot could climb in the other registry's paths.
    if tag.is_empty()
        || tag.len() > 128
        || tag.starts_with(['.', '-'])
        || !tag.bytes().all(is_plain)
    {
        return Err(ApiError::BadRequest(format!("{tag:?} is no tag")));
    }
    let found = api.resolve(&namespace, &tag).await?;
    found
        .map(|digest| digest.to_string())
        .ok_or(ApiError::NotFound)
}

async fn remove<O: OriginApi>(
    State(api): State<Arc<O>>,
    Params(digest): Params<String>,
) -> Result<StatusCode, ApiError> {
    api.remove(path::digest(&digest)?).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn peer_context<O: OriginApi>(State(api): State<Arc<O>>) -> Response {
    let peer: Json<PeerInfo> = Json(api.peer());
    match api.is_leaving() {
        true => ([(LEAVING, "true")], peer).into_response(),
        false => peer.into_response(),
    }
}

async fn holdings<O: OriginApi>(
    State(api): State<Arc<O>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Holdings>, ApiError> {
    api.holdings(asked(body)?).await.map(Json)
}

async fn holds<O: OriginApi>(
    State(api): State<Arc<O>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Digests>, ApiError> {
    let Digests { digests } = asked(body)?;
    check_count(digests.len())?;
    let digests = api.holds(digests).await?;
    Ok(Json(Digests { digests }))
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count <= MOST {
        return Ok(());
    }
    let what = format!("a question names at most {MOST}, this one {count}");
    Err(ApiError::BadRequest(what))
}

async fn garbage<O: OriginApi>(
    State(api): State<Arc<O>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Digests>, ApiError> {
    let garbage: GarbageAsked = asked(body)?;
    check_count(garbage.digests.len())?;
    let digests = api.garbage(garbage).await?;
    Ok(Json(Digests { digests }))
}

async fn garbage_page<O: OriginApi>(
    State(api): State<Arc<O>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Digests>, ApiError> {
    let digests = api.garbage_page(asked(body)?).await?;
    Ok(Json(Digests { digests }))
}

async fn places<O: OriginApi>(
    State(api): State<Arc<O>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Vec<Option<usize>>>, ApiError> {
    let Places { namespaces } = asked(body)?;
    check_count(namespaces.len())?;
    Ok(Json(api.places(&namespaces)))
}

fn asked<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ApiError> {
    let body = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let wrong = |error| ApiError::BadRequest(format!("this is no such question: {error}"));
    serde_json::from_slice(&body).map_err(wrong)
}
