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
use crate::web::{chain, encode};

/// How long one of its build-indexes may take to answer: it looks for all blobs of an image.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is asked who its origins are.
const ORIGINS: Duration = Duration::from_secs(30);

/// Bytes of an answer at most: an image of ten thousand manifests, each with its history and some blobs, has
/// some thirty million.
const MOST: usize = 64 << 20;

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

    /// How many build-indexes it has.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
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
        self.is_other(told.cluster.as_deref())?;
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

    /// Whether the cluster that calls itself so is another one: both could give one version to different
    /// changes.
    pub(super) fn is_other(&self, name: Option<&str>) -> Result<(), SendError> {
        if name != Some(&self.own) {
            return Ok(());
        }
        let own = &self.own;
        let what =
            format!("it is named {own:?} as this cluster is: give each a `cluster` of its own");
        Err(SendError::Failed(what))
    }

    /// Asks one of its build-indexes about what this cluster fetches from there.
    pub(super) async fn ask_one<T: DeserializeOwned>(
        &self,
        at: usize,
        what: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, SendError> {
        let url = format!("{}/replicate/{}/{what}", self.hosts[at], encode(&self.own));
        let asked = self.http.raw().post(url).json(body).timeout(TIMEOUT);
        let host = &self.hosts[at];
        match asked.send().await {
            Ok(answer) => match said(answer).await {
                // It is there for other questions.
                Err(SendError::Away(reason)) => Err(SendError::Failed(format!("{host}: {reason}"))),
                said => said,
            },
            Err(error) => {
                let reason = format!("{host}: {}", chain(&error));
                Err(match error.is_connect() {
                    true => SendError::Away(reason),
                    false => SendError::Failed(reason),
                })
            }
        }
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
        let bytes = bytes(answer).await?;
        let wrong = |error| SendError::Failed(format!("it says what makes no sense: {error}"));
        return serde_json::from_slice(&bytes).map_err(wrong);
    }
    let bytes = bytes(answer).await.unwrap_or_default();
    let failure = serde_json::from_slice::<Failure>(&bytes);
    let reason = failure.map_or_else(
        |_| String::from_utf8_lossy(&bytes).chars().take(200).collect(),
        |failure| failure.error.message.chars().take(200).collect(),
    );
    Err(match status {
        StatusCode::CONFLICT => SendError::Refused(reason),
        StatusCode::LOCKED => SendError::Held,
        status if status.is_server_error() => {
            SendError::Away(format!("{ANSWERED} {status}: {reason}"))
        }
        status => SendError::Failed(format!("{status}: {reason}")),
    })
}

/// All of an answer, which may not be larger than any that makes sense.
async fn bytes(mut answer: reqwest::Response) -> Result<Vec<u8>, SendError> {
    let mut bytes = Vec::new();
    let broken = |error: reqwest::Error| SendError::Away(chain(&error));
    while let Some(chunk) = answer.chunk().await.map_err(broken)? {
        if bytes.len() + chunk.len() > MOST {
            let what = format!("it says more than {MOST} bytes");
            return Err(SendError::Failed(what));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
