//! What build-indexes say about images that go from cluster to cluster.
//!
//! | method and path | answer |
//! |---|---|
//! | `GET /origin` | this cluster's origins, for other clusters |
//! | `POST /replicate/look` | the versions of registers |
//! | `POST /replicate/registers` | registers of another cluster are merged with these; 404 when blobs are missing, 409 when a tag is immutable |
//! | `GET /replicate/status` | how far the way to each other cluster is |
//! | `POST /replicate/{remote}/pause`, `resume`, `now`, `again` | stops, goes on, tries all that waits at once, sends all once more |
//! | `GET /remotes/tags/{repo:tag}` | whether each other cluster has the tag |
//! | `POST /remotes/tags/{repo:tag}` | sends it now |
//! | `POST /internal/replicate/blob` | a blob is sent or fetched by this build-index, for another one |
//!
//! What clusters ask that fetch is in `offer`.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use kraken_core::net::http::Sent;
use kraken_proto::Digest;
use kraken_proto::tags::record::{Condition, TagState, Version};
use serde::{Deserialize, Serialize};

use super::blobs::{Carried, Carry};
use super::{Inner, Replicator, offer};
use crate::link::{Link, Linked, RegisterName};
use crate::name::{RepoName, TagName};
use crate::source::{BlobSource, SourceError};
use crate::tags::check::{self, CheckError};
use crate::tags::error::IndexError;
use crate::tags::pending::unix_ms;
use crate::tags::ring::TagRing;

/// Versions may be so far ahead of this clock, in milliseconds: a day. One that is further ahead would hold up all changes
/// after it.
const AHEAD_MS: u64 = 24 * 3600 * 1000;

/// A cluster's origins.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OriginList {
    /// The cluster's own name; absent from one that does not tell it.
    #[serde(default)]
    pub(super) cluster: Option<String>,
    pub(super) replicas: usize,
    pub(super) origins: Vec<OriginAt>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OriginAt {
    pub(super) name: String,
    pub(super) url: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    pub(super) names: Vec<String>,
}

/// What a cluster knows of a register.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Looked {
    pub(super) version: Version,
    pub(super) is_set: bool,
    /// Names all states that it has; nothing of a register that was never set.
    pub(super) state: Option<Digest>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registers {
    pub(super) registers: Vec<Named>,
    /// Manifests that were left out of their indexes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) absent: BTreeSet<Digest>,
}

impl Registers {
    /// So many at a time.
    pub(super) const MOST: usize = 200;
    /// So many that were left out.
    pub(super) const ABSENT: usize = 10_000;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) state: TagState,
}

/// A replicator and what it asks of tags that come from elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) replicator: Replicator,
}

/// The routes.
pub fn router(replicator: Replicator) -> Router {
    Router::new()
        .route("/origin", get(origins))
        .route("/replicate/look", post(look))
        .route("/replicate/registers", post(merge))
        .route("/replicate/status", get(status))
        .route("/replicate/{remote}/pause", post(pause))
        .route("/replicate/{remote}/resume", post(resume))
        .route("/replicate/{remote}/now", post(now))
        .route("/replicate/{remote}/again", post(again))
        .route("/remotes/tags/{tag}", get(tag_status).post(send_now))
        .route("/internal/replicate/blob", post(carry))
        .route("/replicate/{remote}/waiting", post(offer::waiting))
        .route("/replicate/{remote}/image", post(offer::image))
        .route("/replicate/{remote}/fetched", post(offer::fetched))
        .with_state(Served { replicator })
}

async fn origins(State(served): State<Served>) -> Json<OriginList> {
    let inner = served.replicator.inner();
    let names = inner.origins.names().into_iter();
    let origins = names.filter_map(|name| {
        let url = inner.origins.origin(&name)?.url().to_string();
        Some(OriginAt { name, url })
    });
    Json(OriginList {
        cluster: Some(inner.ring.cluster().to_owned()),
        replicas: inner.replicas,
        origins: origins.collect(),
    })
}

async fn look(
    State(served): State<Served>,
    Sent(asked): Sent<Look>,
) -> Result<Json<Vec<Looked>>, IndexError> {
    bounded(asked.names.len())?;
    let mut looked = Vec::new();
    for name in asked.names {
        let name: RegisterName = name.parse()?;
        let state = served.replicator.inner().ring.register(&name).await?;
        looked.push(Looked {
            version: state.as_ref().map_or(Version::ZERO, |it| it.now.version),
            state: state.as_ref().map(TagState::id),
            is_set: state.is_some_and(|it| it.now.digest.is_some()),
        });
    }
    Ok(Json(looked))
}

fn bounded(count: usize) -> Result<(), IndexError> {
    if count <= Registers::MOST {
        return Ok(());
    }
    let what = format!(
        "{count} registers at once: send {} at most",
        Registers::MOST
    );
    Err(wrong(what))
}

fn wrong(message: String) -> IndexError {
    IndexError::new(StatusCode::BAD_REQUEST, "REGISTERS_INVALID", message)
}

async fn merge(
    State(served): State<Served>,
    Sent(Registers { registers, absent }): Sent<Registers>,
) -> Result<Json<()>, IndexError> {
    bounded(registers.len())?;
    if absent.len() > Registers::ABSENT {
        return Err(wrong("too many manifests are left out".into()));
    }
    let inner = served.replicator.inner();
    for Named { name, state } in registers {
        inner.accept((name.parse()?, state), &absent).await?;
    }
    Ok(Json(()))
}

impl Inner {
    /// Merges a register of another cluster with that of this one. These manifests are left out of their
    /// indexes.
    pub(super) async fn accept(
        &self,
        (name, state): (RegisterName, TagState),
        absent: &BTreeSet<Digest>,
    ) -> Result<(), IndexError> {
        let ahead = state.now.version.millis().saturating_sub(unix_ms());
        if !state.is_sound() || ahead > AHEAD_MS {
            let what = format!("{name}: its history is too long, or its version a day ahead");
            return Err(wrong(what));
        }
        let before = self.ring.register(&name).await?;
        let after = before
            .as_ref()
            .map_or_else(|| state.clone(), |it| it.merged(&state));
        let is_new = before.is_none_or(|before| before.now != after.now);
        let now = after.now.digest;
        let (is_immutable, manifests) = match &name {
            RegisterName::Tag(tag) => {
                let manifests = check_tag(self, (tag.repo(), now), (is_new, absent)).await?;
                (self.policy.is_immutable(tag), manifests)
            }
            RegisterName::Link(repo, link) => {
                let mut named = state.records().filter_map(|record| record.digest);
                if named.any(|digest| digest != link.digest()) {
                    return Err(wrong(format!("{name}: a link to something else")));
                }
                // What is only to be in the history need not be there any more.
                if now.is_some() && is_new {
                    check_link(self, (repo, *link), absent).await?;
                }
                (false, BTreeSet::new())
            }
        };
        let merged = self.ring.merge(&name, state, is_immutable).await?;
        let merged = merged.map(|state| state.now);
        let digest = merged.as_ref().and_then(|now| now.digest);
        if let (RegisterName::Tag(tag), Some(merged), Some(digest)) = (&name, &merged, digest) {
            let (ring, repo) = (&self.ring, tag.repo());
            let top = ([digest].into(), Version::new(u64::MAX));
            ring.revive(repo, top).await?;
            if now == Some(digest) {
                ring.revive(repo, (manifests, merged.version)).await?;
            }
        }
        tracing::info!(%name, ?digest, "merged with that of another cluster");
        Ok(())
    }
}

/// Whether all is there that a tag needs, but for these manifests: what of it has to be there.
async fn check_tag(
    inner: &Inner,
    (repo, digest): (&RepoName, Option<Digest>),
    (is_new, absent): (bool, &BTreeSet<Digest>),
) -> Result<BTreeSet<Digest>, IndexError> {
    let Some(digest) = digest else {
        return Ok(BTreeSet::new());
    };
    let ns = repo.namespace();
    let walked = match check::complete_but(&inner.origins, (&ns, digest), absent).await {
        // It was all there when the tag was taken.
        Err(_) if !is_new => return Ok(BTreeSet::new()),
        walked => walked?,
    };
    mark_sparse(&inner.ring, repo, walked.sparse).await?;
    Ok(walked.manifests)
}

/// Whether there is what a link names.
async fn check_link(
    inner: &Inner,
    (repo, link): (&RepoName, Link),
    absent: &BTreeSet<Digest>,
) -> Result<(), IndexError> {
    let (ns, digest) = (repo.namespace(), link.digest());
    if let (Link::Referrer { .. }, false) = (link, absent.is_empty()) {
        // No tag leads to it, and it may be an index too.
        let walked = check::complete_but(&inner.origins, (&ns, digest), absent).await?;
        return mark_sparse(&inner.ring, repo, walked.sparse).await;
    }
    let found = BlobSource::stat_whole(&inner.origins, &ns, digest);
    Ok(exists(found.await, digest)?)
}

/// Remembers that manifests were left out of indexes: who sends them on cannot have them.
pub(super) async fn mark_sparse(
    ring: &TagRing,
    repo: &RepoName,
    indexes: BTreeSet<Digest>,
) -> Result<(), IndexError> {
    for index in indexes {
        let link = Link::Sparse(index);
        if ring.link(repo, link).await?.0 != Linked::Held {
            ring.set_link(repo, link, (true, Condition::Any)).await?;
        }
    }
    Ok(())
}

fn exists(found: Result<Option<u64>, SourceError>, digest: Digest) -> Result<(), CheckError> {
    match found {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(CheckError::Missing(digest)),
        Err(error) => Err(CheckError::Unavailable(error.to_string())),
    }
}

async fn status(State(served): State<Served>) -> Result<Response, IndexError> {
    let remotes = served.replicator.status().await?;
    Ok(Json(serde_json::json!({ "remotes": remotes })).into_response())
}

fn known(is_known: bool, remote: &str) -> Result<StatusCode, IndexError> {
    is_known
        .then_some(StatusCode::OK)
        .ok_or_else(|| unknown_remote(remote))
}

pub(super) fn unknown_remote(remote: &str) -> IndexError {
    let message =
        format!("{remote:?} is not among the `remotes` or `sources` in the configuration");
    IndexError::new(StatusCode::NOT_FOUND, "REMOTE_UNKNOWN", message)
}

async fn pause(
    State(served): State<Served>,
    Path(remote): Path<String>,
) -> Result<StatusCode, IndexError> {
    known(served.replicator.set_paused(&remote, true).await?, &remote)
}

async fn resume(
    State(served): State<Served>,
    Path(remote): Path<String>,
) -> Result<StatusCode, IndexError> {
    known(served.replicator.set_paused(&remote, false).await?, &remote)
}

async fn now(
    State(served): State<Served>,
    Path(remote): Path<String>,
) -> Result<StatusCode, IndexError> {
    known(served.replicator.hurry(&remote), &remote)
}

async fn again(
    State(served): State<Served>,
    Path(remote): Path<String>,
) -> Result<StatusCode, IndexError> {
    if served.replicator.is_source(&remote) {
        let what = format!(
            "{remote} is fetched from: `now` looks there at once; a cluster that is to offer all `again` is told so itself"
        );
        return Err(IndexError::new(StatusCode::CONFLICT, "REMOTE_SOURCE", what));
    }
    known(served.replicator.send_again(&remote).await?, &remote)
}

async fn tag_status(
    State(served): State<Served>,
    Path(name): Path<String>,
) -> Result<Response, IndexError> {
    let name: TagName = name.parse()?;
    let all = served.replicator.tag_status(&name.into()).await?;
    Ok(Json(all).into_response())
}

async fn send_now(
    State(served): State<Served>,
    Path(name): Path<String>,
) -> Result<Response, IndexError> {
    let name: TagName = name.parse()?;
    if served.replicator.inner().ring.state(&name).await?.is_none() {
        return Err(IndexError::unknown(&name));
    }
    let remotes = served.replicator.send_now(&name.into()).await?;
    let told = Json(serde_json::json!({ "remotes": remotes }));
    Ok((StatusCode::ACCEPTED, told).into_response())
}

async fn carry(
    State(served): State<Served>,
    Sent(carry): Sent<Carry>,
) -> Result<Json<Carried>, IndexError> {
    let wrong = |error: kraken_proto::NamespaceError| wrong(error.to_string());
    let ns = carry.namespace.parse().map_err(wrong)?;
    let inner = served.replicator.inner();
    Ok(Json(
        inner.blobs.carry(&carry.remote, &ns, carry.digest).await,
    ))
}
