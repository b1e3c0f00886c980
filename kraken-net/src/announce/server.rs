//! A tracker's HTTP face.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::{StatusCode, header};
use kraken_proto::tracker::pace::Pace;
use kraken_proto::tracker::report::{HostReport, ReportReply};
use kraken_proto::{AnnounceReply, AnnounceRequest, Digest, MetaInfo, Namespace, Timestamp};
use serde::Deserialize;

use super::METAINFO_TYPE;
use crate::http::caller::{Admitted, Caller};
use crate::http::error::{ApiError, unknown_method, unknown_path};
use crate::http::path::{self, Asked, Params};

/// The longest announce: 256 blobs of at most 255 bytes of namespace, 71 of digest and some 150
/// around them make 119 KiB.
const MAX_ANNOUNCE: usize = 256 << 10;
/// The longest report: 512 sources of at most 130 bytes and 64 blobs of at most 600 make 103 KiB.
const MAX_REPORT: usize = 128 << 10;

/// What a tracker does.
pub trait TrackerApi: Send + Sync + 'static {
    /// Takes note of a host's state and answers with peers.
    ///
    /// # Errors
    /// The announce is refused, or the tracker cannot answer now.
    fn announce(
        &self,
        request: AnnounceRequest,
    ) -> impl Future<Output = Result<AnnounceReply, ApiError>> + Send;

    /// Takes note of what a host announces to another tracker, to take its place if that one dies.
    ///
    /// # Errors
    /// As [`TrackerApi::announce`].
    fn overhear(
        &self,
        request: AnnounceRequest,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// The metainfo of a blob, from the origins.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when all who could have it said so.
    fn metainfo(
        &self,
        namespace: Namespace,
        digest: Digest,
    ) -> impl Future<Output = Result<MetaInfo, ApiError>> + Send;

    /// As much of a blob's metainfo as is known while an origin takes it in; with `after`, waits
    /// for a while until more states than so many are.
    ///
    /// # Errors
    /// As [`TrackerApi::metainfo`]; [`ApiError::Damaged`].
    fn open_metainfo(
        &self,
        namespace: Namespace,
        digest: Digest,
        after: Option<u32>,
    ) -> impl Future<Output = Result<MetaInfo, ApiError>> + Send {
        let _ = after;
        self.metainfo(namespace, digest)
    }

    /// Takes note of what a host moved, for people who look on, and says when it should tell again.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when nobody looks on here, as by default.
    fn report(
        &self,
        report: HostReport,
    ) -> impl Future<Output = Result<ReportReply, ApiError>> + Send {
        let _ = report;
        async { Err(ApiError::NotFound) }
    }
}

/// How much of a metainfo is asked for: the query `open=true`, with or without `after=N`. Without
/// it, a whole one.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetaInfoQuery {
    #[serde(default)]
    pub(crate) open: bool,
    #[serde(default)]
    pub(crate) after: Option<u32>,
}

impl MetaInfoQuery {
    /// The query for what there is beyond `known`.
    pub(crate) fn open(known: Option<&MetaInfo>) -> String {
        let after = known.map(|meta| format!("&after={}", meta.known_states()));
        format!("?open=true{}", after.unwrap_or_default())
    }
}

/// Whether an announce is for another tracker, and only to be noted: the query `quiet=true`.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnnounceQuery {
    #[serde(default)]
    quiet: bool,
}

/// Serves `POST /announce`, also with `?quiet=true`, `POST /report`, and `GET /namespace/{ns}/blobs/{digest}/metainfo`, also with
/// `?open=true` and `&after=`. Behind [`admit`](crate::http::admit), a host announces and reports itself only.
pub fn router<T: TrackerApi>(api: Arc<T>) -> Router {
    let paced = |router: Router<Arc<T>>| {
        let pace = Arc::new(Pacer::default());
        router.route_layer(middleware::from_fn_with_state(pace, in_pace))
    };
    let reports = Router::new()
        .route("/report", post(report::<T>))
        .layer(DefaultBodyLimit::max(MAX_REPORT));
    let announces = Router::new().route("/announce", post(announce::<T>));
    let announces = announces.layer(DefaultBodyLimit::max(MAX_ANNOUNCE));
    Router::new()
        .route(
            "/namespace/{namespace}/blobs/{digest}/metainfo",
            get(metainfo::<T>),
        )
        .merge(paced(announces))
        .merge(paced(reports))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(api)
}

/// Counts the calls of each host.
struct Pacer {
    started: Instant,
    pace: Mutex<Pace>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            pace: Mutex::default(),
        }
    }
}

/// Turns away a host that calls more often than [`Pace`] lets it, before anything of the call is read.
/// Without TLS nobody is known, and nobody counted.
async fn in_pace(State(pacer): State<Arc<Pacer>>, request: Request, next: Next) -> Response {
    let now = Timestamp::ZERO + pacer.started.elapsed();
    let is_in_pace = request.extensions().get::<Caller>().is_none_or(|caller| {
        let pace = pacer.pace.lock();
        let mut pace = pace.unwrap_or_else(PoisonError::into_inner);
        pace.admit(now, caller.id())
    });
    if is_in_pace {
        return next.run(request).await;
    }
    let what = "this host announces too often: a few times a minute for each 256 blobs is enough";
    ApiError::TooMany(what.into()).into_response()
}

async fn announce<T: TrackerApi>(
    State(api): State<Arc<T>>,
    Asked(query): Asked<AnnounceQuery>,
    admitted: Option<Extension<Admitted>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let request: AnnounceRequest = serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("this is no announce: {error}")))?;
    if request.blobs.len() > AnnounceRequest::MAX_BLOBS {
        return Err(ApiError::BadRequest(format!(
            "an announce names at most {} blobs, this one {}",
            AnnounceRequest::MAX_BLOBS,
            request.blobs.len()
        )));
    }
    if let Some(Extension(Admitted(caller))) = admitted {
        caller.check_peer(&request.peer)?;
    }
    if query.quiet {
        api.overhear(request).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Json(api.announce(request).await?).into_response())
}

async fn report<T: TrackerApi>(
    State(api): State<Arc<T>>,
    admitted: Option<Extension<Admitted>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ReportReply>, ApiError> {
    let body = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let report: HostReport = serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("this is no report: {error}")))?;
    if let Some(Extension(Admitted(caller))) = admitted {
        caller.check_peer(&report.peer)?;
    }
    Ok(Json(api.report(report).await?))
}

async fn metainfo<T: TrackerApi>(
    State(api): State<Arc<T>>,
    Params((namespace, digest)): Params<(String, String)>,
    Asked(query): Asked<MetaInfoQuery>,
) -> Result<Response, ApiError> {
    let (namespace, digest) = (path::namespace(&namespace)?, path::digest(&digest)?);
    let meta = if query.open {
        api.open_metainfo(namespace, digest, query.after).await?
    } else {
        api.metainfo(namespace, digest).await?
    };
    Ok(metainfo_response(&meta, query.after))
}

/// A metainfo as an answer to somebody who knows the first `after` states.
pub(crate) fn metainfo_response(meta: &MetaInfo, after: Option<u32>) -> Response {
    let encoding = meta.encode_after(after.unwrap_or(0));
    ([(header::CONTENT_TYPE, METAINFO_TYPE)], encoding).into_response()
}
