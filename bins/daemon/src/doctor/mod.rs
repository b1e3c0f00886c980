//! `kraken doctor`: looks at each thing that an agent needs, and says in words what is wrong.
//!
//! The agent looks itself, as it has the certificates and knows the others. Every look has a deadline,
//! so that what hangs is named and holds nobody up.

pub mod blob;
pub(crate) mod certificates;
pub(crate) mod disk;
pub(crate) mod host;
pub(crate) mod origins;
pub(crate) mod reach;
pub mod services;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::routing::post;
use axum::{Json, Router, middleware};
use http::StatusCode;
use kraken_core::Agent;
use kraken_core::net::announce::TrackerClient;
use kraken_core::net::http::{ApiError, HttpClient};
use kraken_core::net::{Dual, Identity, Role};
use kraken_registry::tags::client::TagClient;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::access::ClientTls;
use crate::agent::AgentConfig;
use crate::config::{QuicMtu, Tls, TransportConfig};
use crate::pages;
use crate::store::Disks;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it must be.
    Ok,
    /// It was not looked at, and the text says why.
    Skipped,
    /// It works, and something should be mended all the same.
    Warning,
    /// It does not work.
    Failed,
}

/// What a look at one thing found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: State,
    /// The same in words.
    pub what: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The longest text of a finding, in bytes: others' answers are in it.
const LONGEST: usize = 600;

impl Finding {
    fn new(check: &str, state: State, what: &str, advice: Option<String>) -> Self {
        Self {
            check: cut(check),
            state,
            what: cut(what),
            advice: advice.as_deref().map(cut),
        }
    }

    /// It is as it must be.
    pub fn ok(check: &str, what: impl AsRef<str>) -> Self {
        Self::new(check, State::Ok, what.as_ref(), None)
    }

    /// It was not looked at.
    pub fn skipped(check: &str, what: impl AsRef<str>) -> Self {
        Self::new(check, State::Skipped, what.as_ref(), None)
    }

    /// It works, and something should be mended all the same.
    pub fn warning(check: &str, what: impl AsRef<str>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Warning, what.as_ref(), Some(advice.into()))
    }

    /// It does not work.
    pub fn failed(check: &str, what: impl AsRef<str>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Failed, what.as_ref(), Some(advice.into()))
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().find(|(at, _)| *at >= LONGEST) {
        None => text.to_string(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// The answer of `POST /x/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was found, in the order in which things build on each other.
    pub findings: Vec<Finding>,
    /// The test blob, when the agent has it now: a client may read it at the agent's registry.
    pub blob: Option<blob::TestBlob>,
}

/// The most members of one kind that are looked at.
pub(crate) const MOST: usize = 16;
/// How long each group of looks may take.
const GROUP: Duration = Duration::from_secs(20);
/// How long a look at one service may take, so that one that hangs hides nothing of the others.
const EACH: Duration = Duration::from_secs(18);

/// What an agent's configuration says that the doctor looks at.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) tls: Tls,
    pub(crate) client_tls: Option<ClientTls>,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) transport: TransportConfig,
    pub(crate) quic_mtu: QuicMtu,
}

impl Facts {
    pub(crate) fn of(config: &AgentConfig) -> Self {
        let mut dirs = vec![config.store.clone()];
        dirs.extend(config.volumes.iter().map(|volume| volume.path.clone()));
        Self {
            tls: config.tls.clone(),
            client_tls: config.client_tls.clone(),
            dirs,
            transport: config.transport,
            quic_mtu: config.quic_mtu,
        }
    }
}

/// What the doctor of an agent works with.
pub(crate) struct Doctor {
    pub(crate) facts: Facts,
    pub(crate) identity: Identity,
    pub(crate) http: HttpClient,
    pub(crate) trackers: TrackerClient,
    pub(crate) tags: TagClient,
    pub(crate) transport: Dual,
    pub(crate) disks: Disks,
    pub(crate) agent: Agent,
}

/// Adds `POST /x/doctor`, which looks at everything and answers with a [`Report`], and `DELETE
/// /x/doctor`, which lets the test blob go.
pub(crate) fn with_doctor(router: Router, doctor: Doctor) -> Router {
    // Two at once would take each other's test blob away.
    let state = (Arc::new(doctor), Arc::new(Semaphore::new(1)));
    let doctor = Router::new()
        .route("/x/doctor", post(examine).delete(tidy))
        .layer(middleware::from_fn(pages::refuse))
        .with_state(state);
    router.merge(doctor)
}

type Turn = (Arc<Doctor>, Arc<Semaphore>);

async fn examine(Shared((doctor, turn)): Shared<Turn>) -> Result<Json<Report>, ApiError> {
    let _turn = turn.try_acquire().map_err(|_| busy())?;
    Ok(Json(Box::pin(doctor.report()).await))
}

fn busy() -> ApiError {
    let what = "a doctor looks at this agent already: ask again when it is done";
    ApiError::Unavailable(what.into())
}

async fn tidy(Shared((doctor, turn)): Shared<Turn>) -> Result<StatusCode, ApiError> {
    let _turn = turn.try_acquire().map_err(|_| busy())?;
    let gone = doctor.agent.forget(blob::test_blob().digest).await;
    gone.map_err(|error| ApiError::Unavailable(error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

impl Doctor {
    async fn report(&self) -> Report {
        let (certificates, disks, host, services, origins, way_in) = tokio::join!(
            within("certificates", GROUP, certificates::look(&self.facts)),
            within("disk", GROUP, disk::look(&self.facts.dirs, &self.disks)),
            within("host", GROUP, host::look()),
            within("trackers and build-indexes", GROUP, self.services()),
            within("origins", GROUP, origins::look(self)),
            within("way in", GROUP, reach::look(self)),
        );
        let mut findings = [certificates, disks, host, services, origins, way_in].concat();
        let (finding, blob) = blob::pull(&self.agent).await;
        findings.push(finding);
        Report { findings, blob }
    }

    async fn services(&self) -> Vec<Finding> {
        let trackers = self.trackers.urls();
        let trackers = trackers.iter().map(|url| (Role::Tracker, url.to_string()));
        let indexes = self.tags.urls().into_iter();
        let all = trackers.chain(indexes.map(|url| (Role::BuildIndex, url)));
        let by = (&self.identity, &self.http);
        let looks = all.take(2 * MOST).map(async |(role, url)| {
            let check = format!("{role} {url}");
            let look = services::look_at(&check, (&url, role), by);
            within(&check, EACH, look).await
        });
        futures::future::join_all(looks).await.concat()
    }
}

/// What a group of looks found, or that it took too long.
async fn within(
    check: &str,
    most: Duration,
    look: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    let late = || {
        let what = format!("not done within {} s", most.as_secs());
        vec![Finding::failed(check, what, "see the agent's log")]
    };
    timeout(most, look).await.unwrap_or_else(|_| late())
}

/// The time since 1970, in milliseconds.
pub(crate) fn unix_ms() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_is_named_and_holds_nobody_up() {
        let found = within(
            "the thing",
            Duration::from_millis(10),
            std::future::pending(),
        )
        .await;
        assert_eq!((found.len(), found[0].state), (1, State::Failed));
        assert_eq!(found[0].check, "the thing");
        let long = Finding::ok("x", "ä".repeat(LONGEST));
        assert!(long.what.len() <= LONGEST + 4, "{}", long.what.len());
    }
}
