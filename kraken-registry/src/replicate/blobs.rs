//! The way of a blob to another cluster, or from there.
//!
//! Of all build-indexes one sends or fetches it, whoever needs it: the first of the blob's order that answers. So
//! each blob goes once, however many images share it. It goes on where it was when either end was
//! started anew.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kraken_core::net::http::ApiError;
use kraken_core::net::origin::OriginCluster;
use kraken_proto::{Digest, Namespace};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::SendError;
use super::stock::Stock;
use super::traffic::Traffic;
use super::way::Way;
use crate::tags::ring::TagRing;
use crate::web::chain;

/// How long it is waited for the end of a blob in one request.
pub(super) const WAIT: Duration = Duration::from_secs(20);
/// How long another build-index may take to answer beyond that.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often an upload is gone on with before the blob waits for its next turn.
pub(super) const BREAKS: u32 = 5;

/// What became of a blob that is to be carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub(super) enum Carried {
    UnderWay,
    There,
    Held,
    Away(String),
    Failed(String),
}

/// The question of another build-index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Carry {
    pub(super) remote: String,
    pub(super) namespace: String,
    pub(super) digest: Digest,
}

/// The blobs on their way. Cheap to clone.
#[derive(Clone)]
pub(super) struct Blobs {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    ring: TagRing,
    pub(super) origins: OriginCluster,
    remotes: HashMap<String, Way>,
    under_way: Mutex<UnderWay>,
}

/// The remote's name and traffic, and from where to where.
type Course<'a> = (&'a str, &'a Arc<Traffic>, Stock<'a>, &'a OriginCluster);

/// By the remote's name, and what a blob is called there.
type UnderWay = HashMap<(String, String), Going>;

/// A blob on its way.
struct Going {
    seen: watch::Receiver<Carried>,
    task: AbortHandle,
}

impl Blobs {
    pub(super) fn new(
        ring: TagRing,
        origins: OriginCluster,
        remotes: impl Iterator<Item = Way>,
    ) -> Self {
        let remotes = remotes.map(|remote| (remote.name().to_owned(), remote));
        let inner = Inner {
            ring,
            origins,
            remotes: remotes.collect(),
            under_way: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Has a blob sent, or fetched, by whoever's turn it is.
    pub(super) async fn send(
        &self,
        remote: &str,
        ns: &Namespace,
        digest: Digest,
    ) -> Result<(), SendError> {
        let ring = &self.inner.ring;
        let mut reason = String::from("no build-index sends blobs");
        for (name, url) in ring.order_for(digest) {
            loop {
                let way = if name == ring.name() {
                    Ok(self.carry(remote, ns, digest).await)
                } else {
                    self.ask(&url, remote, ns, digest).await
                };
                match way {
                    Ok(Carried::UnderWay) => {}
                    Ok(Carried::There) => return Ok(()),
                    Ok(Carried::Held) => return Err(SendError::Held),
                    Ok(Carried::Away(reason)) => return Err(SendError::Away(reason)),
                    Ok(Carried::Failed(reason)) => return Err(SendError::Failed(reason)),
                    Err(error) => {
                        reason = error;
                        break;
                    }
                }
            }
        }
        Err(SendError::Failed(reason))
    }

    async fn ask(
        &self,
        url: &str,
        remote: &str,
        ns: &Namespace,
        digest: Digest,
    ) -> Result<Carried, String> {
        let url = format!("{}/internal/replicate/blob", url.trim_end_matches('/'));
        let carry = Carry {
            remote: remote.to_owned(),
            namespace: ns.as_str().to_owned(),
            digest,
        };
        let request = self.inner.ring.http().post(url).json(&carry);
        let answer = request.timeout(WAIT + TIMEOUT).send().await;
        let answer = answer.map_err(|error| chain(&error))?;
        match answer.error_for_status() {
            Ok(answer) => answer.json().await.map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Sends a blob itself, or waits for it a while when it is under way.
    pub(super) async fn carry(&self, remote: &str, ns: &Namespace, digest: Digest) -> Carried {
        let Some(remote) = self.inner.remotes.get(remote) else {
            let what = format!("{remote} is not among the remotes of this build-index");
            return Carried::Failed(what);
        };
        let mut seen = self.follow(remote, ns, digest);
        let ended = async {
            let ended = seen.wait_for(|way| *way != Carried::UnderWay).await;
            // It was stopped.
            ended.map_or(Carried::Held, |it| it.clone())
        };
        timeout(WAIT, ended).await.unwrap_or(Carried::UnderWay)
    }

    /// Where a blob is, which is sent if it is not under way.
    fn follow(&self, remote: &Way, ns: &Namespace, digest: Digest) -> watch::Receiver<Carried> {
        let blob = match remote {
            // There each repository has blobs of its own.
            Way::Registry(_) => format!("{ns} {digest}"),
            _ => digest.to_string(),
        };
        let key = (remote.name().to_owned(), blob);
        let mut under_way = self.inner.under_way();
        if let Some(going) = under_way.get(&key) {
            return going.seen.clone();
        }
        let (tell, seen) = watch::channel(Carried::UnderWay);
        let (inner, remote, ns, ended) =
            (self.inner.clone(), remote.clone(), ns.clone(), key.clone());
        let task = tokio::spawn(async move {
            let sent = inner.go(&remote, &ns, digest).await;
            inner.under_way().remove(&ended);
            tell.send_replace(match sent {
                Ok(()) => Carried::There,
                Err(SendError::Held) => Carried::Held,
                Err(SendError::Away(reason)) => Carried::Away(reason),
                Err(error) => Carried::Failed(format!("{digest}: {error}")),
            });
        });
        let task = task.abort_handle();
        let going = Going {
            seen: seen.clone(),
            task,
        };
        under_way.insert(key, going);
        seen
    }

    /// Stops all that is on its way. What begins after that has to find its traffic closed.
    pub(super) fn stop(&self) {
        for (_, going) in self.inner.under_way().drain() {
            going.task.abort();
        }
    }
}

impl Inner {
    fn under_way(&self) -> std::sync::MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn go(&self, way: &Way, ns: &Namespace, digest: Digest) -> Result<(), SendError> {
        let (name, own) = (way.name(), &self.origins);
        // Before anybody is asked anything.
        way.traffic().map_or(Ok(()), |traffic| traffic.check())?;
        match way {
            Way::Cluster(remote) => {
                let there = remote.origins().await?;
                let course = (name, &remote.traffic, Stock::Origins(own), &there);
                self.transfer(course, (ns, digest)).await
            }
            Way::Source(remote) => {
                let there = remote.origins().await?;
                let course = (name, &remote.traffic, Stock::Origins(&there), own);
                self.transfer(course, (ns, digest)).await
            }
            Way::Mirror(mirror) => {
                let stock = Stock::Registry(&mirror.blobs);
                let course = (name, &mirror.there.traffic, stock, own);
                self.transfer(course, (ns, digest)).await
            }
            Way::Registry(registry) => self.upload_to(registry, ns, digest).await,
            Way::Backend(_) | Way::Fetched(_) => {
                Err(SendError::Failed("it is sent no blobs".into()))
            }
        }
    }

    /// Brings a blob to these origins, as fast as may go to or come from the remote of that name.
    async fn transfer(
        &self,
        (name, traffic, from, there): Course<'_>,
        (ns, digest): (&Namespace, Digest),
    ) -> Result<(), SendError> {
        let _turn = traffic.turn().await?;
        // Somebody else may have sent it since.
        match there.stat_whole(ns, digest).await {
            Ok(_) => return self.keep_upload(name, &digest.hex(), None).await,
            Err(ApiError::NotFound) => {}
            Err(error) => return Err(failed_there(&error)),
        }
        let length = from.length(ns, digest).await?;
        let Some((upload, mut at)) = self.upload(name, there, (ns, digest, length)).await? else {
            return Ok(());
        };
        let (origin, id) = upload.split_once(' ').unwrap_or_default();
        let mut breaks = 0;
        while at < length {
            traffic.check()?;
            let body = from.read(traffic, (ns, digest), at..length).await?;
            match there.upload_append(origin, id, at, body).await {
                Ok(now) => at = now,
                Err(error) if breaks == BREAKS => return Err(failed_there(&error)),
                Err(_) => {
                    traffic.check()?;
                    breaks += 1;
                    at = match there.upload_len(origin, id).await {
                        Ok(at) => at,
                        Err(error) => return self.gave_up(name, digest, &error).await,
                    };
                }
            }
        }
        if let Err(error) = there.upload_commit(origin, id, ns, digest).await {
            return self.gave_up(name, digest, &error).await;
        }
        self.keep_upload(name, &digest.hex(), None).await?;
        traffic.sent_blobs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The upload by which a blob goes, and how much of it is there; nothing when one there has the blob.
    async fn upload(
        &self,
        remote: &str,
        there: &OriginCluster,
        (ns, digest, length): (&Namespace, Digest, u64),
    ) -> Result<Option<(String, u64)>, SendError> {
        if let Some(upload) = self.kept_upload(remote, &digest.hex()).await? {
            let (origin, id) = upload.split_once(' ').unwrap_or_default();
            // An origin that restarts is waited for there; one that is gone for good has it no more.
            if let Ok(at) = there.upload_len(origin, id).await {
                return Ok(Some((upload, at)));
            }
        }
        match there.upload_start_known(ns, digest, length).await {
            Ok((origin, id)) => {
                let upload = format!("{origin} {id}");
                self.keep_upload(remote, &digest.hex(), Some(upload.clone()))
                    .await?;
                Ok(Some((upload, 0)))
            }
            Err(ApiError::Conflict(_)) => Ok(None),
            Err(error) => Err(failed_there(&error)),
        }
    }

    /// The upload by which a blob goes to a remote, as it was written down.
    pub(super) async fn kept_upload(
        &self,
        remote: &str,
        blob: &str,
    ) -> Result<Option<String>, SendError> {
        let known = self.ring.here().upload(remote, blob).await;
        known.map_err(|it| SendError::Failed(it.to_string()))
    }

    pub(super) async fn keep_upload(
        &self,
        remote: &str,
        blob: &str,
        upload: Option<String>,
    ) -> Result<(), SendError> {
        let kept = self.ring.here().set_upload(remote, blob, upload);
        kept.await.map_err(|it| SendError::Failed(it.to_string()))
    }

    /// An upload that is not known any more is begun anew the next time.
    async fn gave_up(
        &self,
        remote: &str,
        digest: Digest,
        error: &ApiError,
    ) -> Result<(), SendError> {
        if !error.is_retryable() {
            self.keep_upload(remote, &digest.hex(), None).await?;
        }
        Err(failed_there(error))
    }
}

fn failed_there(error: &ApiError) -> SendError {
    SendError::Failed(error.to_string())
}
