//! What waits here for a cluster that fetches it.
//!
//! Its build-indexes ask each of these for the names on its list, then for what one of them needs, fetch
//! that, and say what they have, which strikes the name out.
//!
//! | method and path | answer |
//! |---|---|
//! | `POST /replicate/{cluster}/waiting` | a page of the names that wait for it |
//! | `POST /replicate/{cluster}/image` | what one of them is, and what it needs |
//! | `POST /replicate/{cluster}/fetched` | it has that |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use kraken_core::net::http::Sent;
use kraken_proto::Digest;
use kraken_proto::tags::record::{TagState, Version};
use serde::{Deserialize, Serialize};

use super::server::{Named, Served, unknown_remote};
use super::way::Way;
use super::{Inner, Known, Line, SETTLES, SendError};
use crate::link::{Link, RegisterName};
use crate::name::TagName;
use crate::tags::TagError;
use crate::tags::error::IndexError;

/// Names in one page.
pub(super) const PAGE: usize = 1000;

/// The question which names wait.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskWaiting {
    /// Those behind this name; from the beginning when absent.
    pub(super) after: Option<String>,
    /// The list was read to its end when it was this one.
    pub(super) mark: Option<String>,
}

/// A page of the names that wait, in their order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// The cluster that says so.
    pub(super) cluster: String,
    /// Nothing goes there now: it is paused, or it is not the hour. The page is empty then.
    pub(super) is_held: bool,
    /// The list is the one of the mark. The page is empty then.
    pub(super) is_unchanged: bool,
    /// Changes with the list; absent while that may be changing.
    pub(super) mark: Option<String>,
    pub(super) names: Vec<Waits>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waits {
    pub(super) name: String,
    /// Since when, in milliseconds since 1970.
    pub(super) since_ms: u64,
    /// How many owners of it come before this one: they have it on their lists too.
    pub(super) rank: usize,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskImage {
    pub(super) name: String,
}

/// What a name is, and what it needs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Offered {
    /// By which rules.
    pub(super) rules: String,
    /// It does not wait any more.
    pub(super) is_done: bool,
    /// A rule sends it.
    pub(super) is_wanted: bool,
    /// Nothing of a name that was never set.
    pub(super) state: Option<TagState>,
    /// All blobs of its image, its manifests among them.
    pub(super) blobs: BTreeSet<Digest>,
    /// The links of its image, each behind what it needs.
    pub(super) links: Vec<Named>,
    /// Manifests that are left out of their indexes.
    pub(super) absent: BTreeSet<Digest>,
}

/// What the other cluster has of a name now.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fetched {
    /// By which rules it was offered.
    pub(super) rules: String,
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) state: Option<Digest>,
}

/// Whether it is still that here; otherwise it waits on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Struck {
    pub(super) is_same: bool,
}

pub(super) async fn waiting(
    State(served): State<Served>,
    Path(remote): Path<String>,
    Sent(asked): Sent<AskWaiting>,
) -> Result<Json<Waiting>, IndexError> {
    let inner = served.replicator.inner();
    let line = inner.fetching(&remote)?;
    let mut said = Waiting {
        cluster: inner.ring.cluster().to_owned(),
        is_held: !line.regulate(inner.now()),
        is_unchanged: false,
        mark: inner.mark(),
        names: Vec::new(),
    };
    said.is_unchanged = asked.after.is_none() && said.mark.is_some() && said.mark == asked.mark;
    if said.is_held || said.is_unchanged {
        return Ok(Json(said));
    }
    let page = inner
        .ring
        .here()
        .pending(&remote, PAGE, asked.after.as_deref());
    let rank = |name: &str| {
        let name = name.parse::<RegisterName>();
        name.map_or(0, |name| inner.ring.rank(name.repo().as_str()))
    };
    let waits = page.await.map_err(TagError::from)?;
    let waits = waits.into_iter().map(|it| Waits {
        rank: rank(&it.name),
        name: it.name,
        since_ms: it.since_ms,
    });
    said.names = waits.collect();
    Ok(Json(said))
}

pub(super) async fn image(
    State(served): State<Served>,
    Path(remote): Path<String>,
    Sent(asked): Sent<AskImage>,
) -> Result<Json<Offered>, IndexError> {
    let inner = served.replicator.inner();
    let line = inner.fetching(&remote)?;
    let offered = match line.regulate(inner.now()) {
        true => inner.offer(&remote, &asked.name).await,
        false => Err(SendError::Held),
    };
    let failed = |error: SendError| {
        let (status, code) = match error {
            SendError::Held => (StatusCode::LOCKED, "REMOTE_HELD"),
            _ => (StatusCode::FAILED_DEPENDENCY, "IMAGE_INCOMPLETE"),
        };
        IndexError::new(status, code, error.to_string())
    };
    offered.map(Json).map_err(failed)
}

pub(super) async fn fetched(
    State(served): State<Served>,
    Path(remote): Path<String>,
    Sent(fetched): Sent<Fetched>,
) -> Result<Json<Struck>, IndexError> {
    let inner = served.replicator.inner();
    inner.fetching(&remote)?;
    let known = Known {
        version: fetched.version,
        state: fetched.state,
    };
    // By other rules it may lack something.
    let is_same =
        fetched.rules == inner.rules_mark() && inner.strike(&remote, &fetched.name, known).await?;
    Ok(Json(Struck { is_same }))
}

impl Inner {
    /// The cluster of that name, if it fetches what it lacks, and that is known.
    fn fetching(&self, remote: &str) -> Result<&Arc<Line>, IndexError> {
        match self.remotes.get(remote) {
            Some(_) if self.turn.load(Ordering::Relaxed) == 0 => {
                let what = "it is not known yet what is paused, and what waits: ask again".into();
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(IndexError::new(status, "UNAVAILABLE", what))
            }
            Some(line) if matches!(line.way, Way::Fetched(_)) => Ok(line),
            Some(_) => {
                let what = format!("{remote} is sent what it lacks: it `fetches` nothing here");
                Err(IndexError::new(StatusCode::CONFLICT, "REMOTE_SENT", what))
            }
            None => Err(unknown_remote(remote)),
        }
    }

    /// Names this process, and the rules that it goes by.
    fn rules_mark(&self) -> String {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}-{}", since.as_nanos(), self.turn.load(Ordering::Relaxed))
    }

    /// Changes whenever something is noted; nothing while that is not on the disk yet.
    fn mark(&self) -> Option<String> {
        let noted = self.ring.here().noted_at();
        if noted.is_some_and(|at| at.elapsed() <= SETTLES) {
            return None;
        }
        let since = noted.map_or(0, |at| at.saturating_duration_since(self.began).as_nanos());
        Some(format!("{}-{since}", self.rules_mark()))
    }

    /// What a name is, and what it needs elsewhere.
    async fn offer(&self, remote: &str, name: &str) -> Result<Offered, SendError> {
        let nothing = Offered {
            rules: self.rules_mark(),
            ..Offered::default()
        };
        if !self
            .ring
            .here()
            .is_pending(remote, name)
            .await
            .map_err(TagError::from)?
        {
            return Ok(Offered {
                is_done: true,
                ..nothing
            });
        }
        // Nobody could ask for a name that is none.
        let Ok(register) = name.parse::<RegisterName>() else {
            return Ok(nothing);
        };
        let mut offered = Offered {
            state: self.ring.register(&register).await?,
            ..nothing
        };
        let Some(state) = &offered.state else {
            return Ok(offered);
        };
        offered.is_wanted = self.is_ruled(remote, &register).await?;
        let Some(digest) = state.now.digest.filter(|_| offered.is_wanted) else {
            return Ok(offered);
        };
        let image = self.image(remote, register.repo(), digest).await?;
        let links = self.links_of(register.repo(), &image).await?;
        let named = links.into_iter().map(|(name, state)| Named { name, state });
        offered.links = named.collect();
        offered.absent = image.absent;
        offered.blobs = image.blobs;
        Ok(offered)
    }

    /// Whether a rule sends a tag there, or one of the tags that a link's repository has or had.
    pub(super) async fn is_ruled(
        &self,
        remote: &str,
        register: &RegisterName,
    ) -> Result<bool, SendError> {
        match register {
            RegisterName::Link(_, Link::Blob(_) | Link::Sparse(_)) => Ok(false),
            RegisterName::Tag(_) => Ok(self.wants(remote, register)),
            RegisterName::Link(repo, _) => {
                let is_ruled = |tag: &TagName| self.wants(remote, &tag.clone().into());
                Ok(self.ring.any_tag_ever(repo, is_ruled).await?)
            }
        }
    }
}
