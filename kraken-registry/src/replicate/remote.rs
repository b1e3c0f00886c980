//! Another cluster, as this one's build-indexes see it: its build-indexes, and its origins, which these name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use kraken_core::net::http::{BaseUrl, HttpClient};
use kraken_core::net::origin::OriginCluster;
use kraken_core::origin::RingMember;
use kraken_proto::Digest;
use kraken_proto::tags::record::TagState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::SendError;
use super::server::{Look, Looked, Named, OriginList, Registers};
use super::traffic::Traffic;
use crate::web::chain;

/// How long one of its build-indexes may take to answer: it looks for all blobs of an image.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is asked who its origins are.
const ORIGINS: Duration = Duration::from_secs(30);

/// What the reason of a build-index begins with that is there, and cannot answer this.
const ANSWERED: &str = "it answers";

/// Another cluster.
pub(super) struct Remote {
    name: String,
    /// The name of this cluster.
    own: String,
    hosts: Vec<String>,
    http: HttpClient,
    preferred: AtomicUsize,
    origins: Mutex<Option<(Instant, OriginCluster)>>,
    pub(super) traffic: Arc<Traffic>,
}

/// An error of a build-index.
#[derive(Debug, Deserialize)]
struct Failure {
    error: Reason,
}

#[derive(Debug, Deserialize)]
struct Reason {
    message: String,
}

impl Remote {
    pub(super) fn new(
        (name, build_indexes): (String, Vec<String>),
        own: &str,
        http: &HttpClient,
    ) -> Self {
        let hosts = build_indexes.into_iter();
        let hosts = hosts.map(|host| host.trim_end_matches('/').to_owned());
        Self {
            name,
            own: own.to_owned(),
            hosts: hosts.collect(),
            http: http.clone(),
            preferred: AtomicUsize::new(0),
            origins: Mutex::new(None),
            traffic: Arc::new(Traffic::new()),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What it knows of registers, in the order in which they are named.
    pub(super) async fn look(&self, names: Vec<String>) -> Result<Vec<Looked>, SendError> {
        let count = names.len();
        let looked: Vec<Looked> = self.ask("look", &Look { names }).await?;
        if looked.len() == count {
            return Ok(looked);
        }
        Err(SendError::Failed(
            "it told of other registers than it was asked".into(),
        ))
    }

    /// Lets it merge registers with its own, one after the other.
    /// These manifests are left out of their indexes.
    pub(super) async fn merge(
        &self,
        registers: Vec<(String, TagState)>,
        absent: &BTreeSet<Digest>,
    ) -> Result<(), SendError> {
        self.traffic.check()?;
        for part in registers.chunks(Registers::MOST) {
            let named = part.iter().map(|(name, state)| Named {
                name: name.clone(),
                state: state.clone(),
            });
            let registers = named.collect();
            let absent = absent.clone();
            let registers = Registers { registers, absent };
            let _: () = self.ask("registers", &registers).await?;
        }
        Ok(())
    }

    /// Its origins.
    pub(super) async fn origins(&self) -> Result<OriginCluster, SendError> {
        let mut known = self.origins.lock().await;
        if let Some((asked, origins)) = &*known
            && asked.elapsed() < ORIGINS
        {
            return Ok(origins.clone());
        }
        let told = self.ask_hosts::<OriginList>(Method::GET, "/origin", None::<&()>);
        let told = match (told.await, &*known) {
            (Ok(told), _) => told,
            // They are mostly where they were.
            (Err(SendError::Away(_)), Some((_, origins))) => return Ok(origins.clone()),
            (Err(error), _) => return Err(error),
        };
        if told.cluster.as_ref() == Some(&self.own) {
            let own = &self.own;
            let what =
                format!("it is named {own:?} as this cluster is: give each a `cluster` of its own");
            return Err(SendError::Failed(what));
        }
        let mut members = Vec::new();
        for origin in told.origins {
            let url: Result<BaseUrl, _> = origin.url.parse();
            let wrong = |error| SendError::Failed(format!("its origin {}: {error}", origin.name));
            members.push(RingMember::new(&origin.name, url.map_err(wrong)?));
        }
        let origins = match &*known {
            Some((_, origins)) => {
                origins.set(members);
                origins.clone()
            }
            None => OriginCluster::new(members, self.http.clone(), told.replicas.max(1)),
        };
        *known = Some((Instant::now(), origins.clone()));
        Ok(origins)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, SendError> {
        let path = format!("/replicate/{what}");
        self.ask_hosts(Method::POST, &path, Some(body)).await
    }

    /// Asks one of its build-indexes after the other until one answers.
    async fn ask_hosts<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, SendError> {
        let (mut reasons, mut is_there) = (Vec::new(), false);
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0..self.hosts.len() {
            let at = (first + turn) % self.hosts.len();
            let url = format!("{}{path}", self.hosts[at]);
            let mut request = self.http.raw().request(method.clone(), url);
            if let Some(body) = body {
                request = request.json(body);
            }
            let said = match request.timeout(TIMEOUT).send().await {
                Ok(answer) => said(answer).await,
                Err(error) => {
                    // One that takes too long for this is there for other questions.
                    is_there |= !error.is_connect();
                    Err(SendError::Away(chain(&error)))
                }
            };
            match said {
                Err(SendError::Away(reason)) => {
                    is_there |= reason.starts_with(ANSWERED);
                    reasons.push(format!("{}: {reason}", self.hosts[at]));
                }
                said => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return said;
                }
            }
        }
        let reasons = reasons.join("; ");
        Err(match is_there {
            true => SendError::Failed(reasons),
            false => SendError::Away(reasons),
        })
    }
}

async fn said<T: DeserializeOwned>(answer: reqwest::Response) -> Result<T, SendError> {
    let status = answer.status();
    if status.is_success() {
        let broken = |error: reqwest::Error| SendError::Away(chain(&error));
        return answer.json().await.map_err(broken);
    }
    let text = answer.text().await.unwrap_or_default();
    let failure = serde_json::from_str::<Failure>(&text);
    let reason = failure.map_or_else(
        |_| text.chars().take(200).collect(),
        |failure| failure.error.message.chars().take(200).collect(),
    );
    Err(match status {
        StatusCode::CONFLICT => SendError::Refused(reason),
        status if status.is_server_error() => {
            SendError::Away(format!("{ANSWERED} {status}: {reason}"))
        }
        status => SendError::Failed(format!("{status}: {reason}")),
    })
}
