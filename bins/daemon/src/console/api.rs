//! What the pages ask: small answers in JSON, each with a bound.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use kraken_core::net::http::{ApiError, Asked, Params};
use kraken_core::proto::Digest;
use kraken_core::tracker::look::{Graph, HostDetail, HostPage, MemberPage, Order, Overview};
use kraken_core::tracker::look::{Rollout, SwarmList, SwarmRow, Throughput};
use serde::{Deserialize, Serialize};

use super::Console;
use super::nodes::Node;

/// The most rows of a page.
const MOST_ROWS: usize = 200;
/// Rows when nobody says how many.
const ROWS: usize = 50;
/// The longest answer that is kept for others, in bytes.
const MAX_KEPT: usize = 8 << 20;

pub(super) fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/cluster", get(cluster))
        .route("/throughput", get(throughput))
        .route("/swarms", get(swarms))
        .route("/swarms/{digest}", get(swarm))
        .route("/swarms/{digest}/members", get(members))
        .route("/swarms/{digest}/graph", get(graph))
        .route("/hosts", get(hosts))
        .route("/hosts/{id}", get(host))
        .route("/rollout", get(rollout))
        .fallback(async || ApiError::NotFound)
        .layer(middleware::from_fn_with_state(console.clone(), remember))
        .with_state(console)
}

type Shown = State<Arc<Console>>;

/// The same question within a second gets the same answer.
async fn remember(State(console): Shown, request: Request, next: Next) -> Response {
    let question = request.uri().to_string();
    let json = [(header::CONTENT_TYPE, "application/json")];
    if let Some(answer) = console.memory.recall(&question) {
        return (json, answer).into_response();
    }
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    let (head, body) = response.into_parts();
    match to_bytes(body, MAX_KEPT).await {
        Ok(answer) => {
            console.memory.keep(question, answer.clone());
            Response::from_parts(head, Body::from(answer))
        }
        Err(_) => ApiError::Internal("the answer is too long".into()).into_response(),
    }
}

/// Which rows of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    #[serde(default)]
    search: String,
    #[serde(default)]
    offset: usize,
    #[serde(default = "rows")]
    limit: usize,
    #[serde(default)]
    order: Order,
}

const fn rows() -> usize {
    ROWS
}

impl Rows {
    /// # Errors
    /// More are asked for than a page has.
    fn range(&self) -> Result<(usize, usize), ApiError> {
        if self.limit > MOST_ROWS {
            let what = format!("limit: at most {MOST_ROWS}, not {}", self.limit);
            return Err(ApiError::BadRequest(what));
        }
        Ok((self.offset, self.limit))
    }
}

#[derive(Debug, Serialize)]
struct Cluster {
    version: &'static str,
    #[serde(flatten)]
    overview: Overview,
    nodes: Vec<Node>,
}

async fn cluster(State(console): Shown) -> Json<Cluster> {
    let nodes = console.nodes.all().await;
    Json(Cluster {
        version: env!("CARGO_PKG_VERSION"),
        overview: console.look.overview(),
        nodes: nodes.to_vec(),
    })
}

async fn throughput(State(console): Shown) -> Json<Throughput> {
    Json(console.look.throughput())
}

async fn swarms(
    State(console): Shown,
    Asked(rows): Asked<Rows>,
) -> Result<Json<SwarmList>, ApiError> {
    let (_, limit) = rows.range()?;
    let search = rows.search.trim().trim_start_matches("sha256:");
    Ok(Json(console.look.swarms(search, limit)))
}

async fn swarm(
    State(console): Shown,
    Params(digest): Params<Digest>,
) -> Result<Json<SwarmRow>, ApiError> {
    let swarm = console.look.swarm(digest);
    swarm.map(Json).ok_or(ApiError::NotFound)
}

async fn members(
    State(console): Shown,
    Params(digest): Params<Digest>,
    Asked(rows): Asked<Rows>,
) -> Result<Json<MemberPage>, ApiError> {
    let range = rows.range()?;
    Ok(Json(console.look.members(digest, rows.order, range)))
}

async fn graph(State(console): Shown, Params(digest): Params<Digest>) -> Json<Graph> {
    Json(console.look.graph(digest))
}

async fn hosts(
    State(console): Shown,
    Asked(rows): Asked<Rows>,
) -> Result<Json<HostPage>, ApiError> {
    let range = rows.range()?;
    Ok(Json(console.look.hosts(rows.search.trim(), range)))
}

async fn host(
    State(console): Shown,
    Params(id): Params<String>,
) -> Result<Json<HostDetail>, ApiError> {
    let is_id = (8..=64).contains(&id.len()) && id.bytes().all(|it| it.is_ascii_hexdigit());
    if !is_id {
        let what = "a host is named by 8 to 64 hexadecimal digits of its identity";
        return Err(ApiError::BadRequest(what.into()));
    }
    let host = console.look.host(&id.to_ascii_lowercase());
    host.map(Json).ok_or(ApiError::NotFound)
}

/// An image, as `repository:tag`, or a blob.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RolloutAsked {
    of: String,
}

#[derive(Debug, Serialize)]
struct Rollouts {
    /// The blob, or what the tag means.
    digest: Digest,
    /// One for each image of an index; else one.
    rollouts: Vec<OneRollout>,
}

#[derive(Debug, Serialize)]
struct OneRollout {
    digest: Digest,
    bytes: u64,
    #[serde(flatten)]
    rollout: Rollout,
}

async fn rollout(
    State(console): Shown,
    Asked(asked): Asked<RolloutAsked>,
) -> Result<Json<Rollouts>, ApiError> {
    let of = asked.of.trim();
    if let Ok(digest) = of.parse::<Digest>() {
        let swarm = console.look.swarm(digest).ok_or(ApiError::NotFound)?;
        let blobs = [(digest, swarm.length.unwrap_or(0).max(1))];
        let rollouts = vec![one(&console, digest, &blobs)];
        return Ok(Json(Rollouts { digest, rollouts }));
    }
    let (digest, images) = console.images.find(of).await?;
    let of_image = |image: &super::images::Image| one(&console, image.manifest, &image.blobs);
    Ok(Json(Rollouts {
        digest,
        rollouts: images.iter().map(of_image).collect(),
    }))
}

fn one(console: &Console, digest: Digest, blobs: &[(Digest, u64)]) -> OneRollout {
    OneRollout {
        digest,
        bytes: blobs.iter().map(|(_, length)| length).sum(),
        rollout: console.look.rollout(blobs),
    }
}
