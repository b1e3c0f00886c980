//! The registry that takes pushes: what a proxy serves.
//!
//! Bodies stream through to the [`BlobSink`]; only manifests, which are small, are held in memory.

mod delete;
mod manifests;
mod session;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::request::Parts;
use http::{Method, StatusCode};
use kraken_proto::Digest;
use tokio::time::timeout;

use crate::error::{Code, RegistryError};
use crate::link::{Link, Linked};
use crate::name::{Reference, RepoName};
use crate::pull::{self, PullState};
use crate::route::Route;
use crate::sink::{BlobSink, BodyError, SinkError};
use crate::source::BlobSource;
use crate::tags::{LinkService, TagService};
use crate::web::header;

/// What the registry with pushes works with.
#[derive(Debug)]
pub struct PushState<B, S, T> {
    pull: PullState<B, T>,
    sink: S,
}

impl<B: BlobSource, S: BlobSink, T: TagService + LinkService> PushState<B, S, T> {
    /// Pulls as `pull` says, pushes into `sink`. The source must see what the sink has committed
    /// at once: dockerd asks for every blob right after pushing it.
    pub fn new(pull: PullState<B, T>, sink: S) -> Self {
        Self { pull, sink }
    }
}

/// The routes below `/v2/` for reading and for pushing.
pub fn router<B: BlobSource, S: BlobSink, T: TagService + LinkService>(
    state: PushState<B, S, T>,
) -> Router {
    let state = Arc::new(state);
    pull::routes(state.pull.access.clone(), move |parts, body| {
        let state = state.clone();
        async move { serve(&state, parts, body).await }
    })
}

async fn serve<B: BlobSource, S: BlobSink, T: TagService + LinkService>(
    state: &PushState<B, S, T>,
    parts: Parts,
    body: Body,
) -> Result<Response, RegistryError> {
    let route = Route::parse(parts.uri.path())?;
    if let Err(refused) = state.pull.access.check(&parts, &route).await {
        drain(body).await;
        return Err(refused);
    }
    match (parts.method.clone(), route) {
        (Method::POST, Route::Uploads(repo)) => uploads::start(state, &parts, body, &repo).await,
        (Method::GET, Route::Upload(repo, token)) => uploads::status(state, &repo, &token).await,
        (Method::PATCH, Route::Upload(repo, token)) => {
            uploads::patch(state, &parts, body, &repo, &token).await
        }
        (Method::PUT, Route::Upload(repo, token)) => {
            uploads::finish(state, &parts, body, &repo, &token).await
        }
        (Method::DELETE, Route::Upload(_, token)) => uploads::cancel(state, &token).await,
        (Method::PUT, Route::Manifest(repo, reference)) => {
            manifests::put(state, &parts, body, &repo, reference).await
        }
        (Method::DELETE, Route::Manifest(repo, Reference::Tag(tag))) => {
            delete::tag(state, &repo, &tag).await
        }
        (Method::DELETE, Route::Manifest(repo, Reference::Digest(digest))) => {
            delete::manifest(state, &repo, digest).await
        }
        (Method::DELETE, Route::Blob(repo, digest)) => delete::blob(state, &repo, digest).await,
        (Method::HEAD, route) if asks_by_digest(&route) => {
            let answer = pull::read(&state.pull, &parts, route).await;
            answer.map_err(push_it_again)
        }
        (Method::GET | Method::HEAD, route) => pull::read(&state.pull, &parts, route).await,
        (_, route) => Err(refuse(&route)),
    }
}

fn asks_by_digest(route: &Route) -> bool {
    matches!(
        route,
        Route::Blob(..) | Route::Manifest(_, Reference::Digest(_))
    )
}

/// A client that pushes asks for each digest whether it may spare itself the upload, and gives up
/// at any answer but yes and no. While the storage behind the origins cannot be asked, a blob that
/// no origin holds is therefore answered with "push it": at worst the same bytes come twice, and a
/// push outlives the outage. Reads are not affected: `GET` still says that it could not be asked.
fn push_it_again(error: RegistryError) -> RegistryError {
    if error.code() != Code::Unavailable {
        return error;
    }
    let message = format!("not held here, and the storage cannot be asked: {error}");
    RegistryError::new(Code::BlobUnknown, message)
}

fn refuse(route: &Route) -> RegistryError {
    let (message, allowed) = match route {
        Route::Blob(..) => ("a blob takes GET, HEAD and DELETE", "GET, HEAD, DELETE"),
        Route::Uploads(_) => ("start an upload with POST", "POST"),
        Route::Upload(..) => (
            "an upload takes GET, PATCH, PUT and DELETE",
            "GET, PATCH, PUT, DELETE",
        ),
        Route::Manifest(..) => (
            "a manifest takes GET, HEAD, PUT and DELETE",
            "GET, HEAD, PUT, DELETE",
        ),
        _ => ("only GET and HEAD work here", "GET, HEAD"),
    };
    RegistryError::method(message, allowed)
}

/// Lets a repository hold what was just pushed into it.
async fn hold<B, S, T: LinkService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    link: Link,
) -> Result<(), RegistryError> {
    Ok(state.pull.tags.set_link(repo, link, true).await?)
}

/// The same for a blob, which is served without a link as well, as long as it was not removed; with one,
/// it is no garbage although no manifest names it.
async fn hold_blob<B, S, T: LinkService>(
    state: &PushState<B, S, T>,
    repo: &RepoName,
    (digest, is_kept): (Digest, bool),
) -> Result<(), RegistryError> {
    let link = Link::Blob(digest);
    if is_kept {
        return hold(state, repo, link).await;
    }
    match state.pull.tags.link(repo, link).await? {
        Linked::Removed => hold(state, repo, link).await,
        Linked::Held | Linked::Never => Ok(()),
    }
}

/// Whether a blob is pushed for its own sake: no manifest will name it, and it is to stay all the same.
fn is_kept(parts: &Parts) -> bool {
    header(&parts.headers, KEEP).is_some_and(|value| value == "true")
}

/// The header by which clients say so.
const KEEP: &str = "kraken-keep";

/// Reads the rest of a body that is of no use, up to a limit. A server that closes the connection
/// while the client still sends may destroy the answer on its way.
async fn drain(body: Body) {
    let mut left = DRAIN;
    let mut stream = body.into_data_stream();
    let draining = async {
        while let Some(Ok(chunk)) = stream.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(DRAIN_TIME, draining).await;
}

/// Bytes, twice the longest manifest: who sends more may lose the answer.
const DRAIN: usize = 8 << 20;
/// Who takes longer may lose it, too: it may be a stranger who wants to hold the connection.
const DRAIN_TIME: Duration = Duration::from_secs(5);

impl From<SinkError> for RegistryError {
    fn from(error: SinkError) -> Self {
        let message = error.to_string();
        match error {
            SinkError::Unknown => Self::new(Code::BlobUploadUnknown, message),
            SinkError::OffsetWrong { len } => Self::chunk(len),
            SinkError::DigestMismatch => Self::new(Code::DigestInvalid, message),
            SinkError::Body(BodyError::Length { .. }) => Self::new(Code::SizeInvalid, message),
            SinkError::Body(BodyError::Broken(_)) => Self::new(Code::BlobUploadInvalid, message),
            SinkError::Denied(_) => Self::new(Code::Denied, message),
            SinkError::Unavailable(_) => Self::new(Code::Unavailable, message),
            SinkError::Full => {
                Self::new(Code::Unavailable, message).with_status(StatusCode::INSUFFICIENT_STORAGE)
            }
        }
    }
}
