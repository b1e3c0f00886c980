//! The durable tasks of an origin: write-back to the backend, and copies for owners that were away
//! when a blob was committed.
//!
//! A task is in the queue before the commit that made it is acknowledged, and leaves it only when
//! its work is done. It is tried again with growing waits: a backend that is away for a day loses
//! nothing. One that was in vain for a week is put aside as a dead letter, which is counted, and which
//! a person sends on its way again or drops; until then its blob stays.
//!
//! Every owner of a blob has a task for it. The origin that took the push tries at once, the others
//! look a minute later and find it written. When it is not, for the backend is away, the first in the
//! blob's order that has tried goes on, and the others look whether it has; they take its place when it
//! does not answer, or has not written it after some minutes in which the backend answers.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kraken_net::http::ApiError;
use kraken_net::origin::Held;
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::{Digest, MetaInfo, Namespace};
use kraken_storage::queue::{DurableQueue, Priority, QueueError, Task};
use kraken_storage::{Backend as _, StoreError};
use tracing::Instrument as _;

use super::Inner;
use crate::clock::unix_ms;

/// What a task is for.
const WRITE_BACK: &str = "write-back";
const REPLICATE: &str = "replicate";

/// Tasks under way at once.
const PARALLEL: usize = 4;
/// How often a task is tried at least before it is given up, however old it is.
const TRIES: u32 = 10;
/// The wait after a first failure, and the longest, unless it is said.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How often a write-back looks for a blob whose commit it precedes: with the waits above for
/// some ten minutes.
const COMMIT_ATTEMPTS: u32 = 10;
/// The wait after the end of a task could not be kept.
const REST: Duration = Duration::from_secs(10);
/// How often the queue is looked at when nothing says that something is due.
const LOOK: Duration = Duration::from_millis(500);

impl Inner {
    /// Whether blobs of the namespace are taken: those of one that is only read could never reach
    /// their backend.
    pub(super) fn check_writable(&self, namespace: &Namespace) -> Result<(), ApiError> {
        let checked = self.backend.check_writable(namespace);
        checked.map_err(|error| ApiError::Forbidden(error.to_string()))
    }

    /// Queues a blob's way to the backend, unless its namespace is only read; durable when this
    /// returns.
    pub(super) async fn queue_write_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
        delay: Duration,
    ) -> Result<(), ApiError> {
        if self.backend.check_writable(namespace).is_err() {
            return Ok(());
        }
        let key = format!("{digest} {namespace}");
        self.pushed.note(digest);
        self.push((Priority::Normal, WRITE_BACK), key, delay)
            .await
            .map(drop)
    }

    /// Queues a copy for another origin; durable when this returns. Gives the task's id.
    pub(super) async fn queue_replica(
        &self,
        origin: &str,
        namespace: &Namespace,
        digest: Digest,
        delay: Duration,
    ) -> Result<u64, ApiError> {
        let key = format!("{digest} {namespace} {origin}");
        // A blob with too few copies is nearer to its loss than one that is in no backend yet.
        self.push((Priority::High, REPLICATE), key, delay).await
    }

    /// A task's work has been done by somebody else.
    pub(super) async fn unqueue(&self, id: u64) -> Result<(), ApiError> {
        let done = self.on_queue(move |queue| queue.done(id)).await;
        done.map_err(|error| ApiError::Unavailable(error.to_string()))
    }

    /// Whether this origin tries to write the blob to the namespace's backend. One whose turn has
    /// not come yet does not.
    pub(super) async fn writes_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<bool, ApiError> {
        let key = format!("{digest} {namespace}");
        let queued = self.on_queue(move |queue| queue.was_taken(WRITE_BACK, &key));
        let queued = queued.await;
        queued.map_err(|error| ApiError::Unavailable(error.to_string()))
    }

    /// A blob has gone for good: what was to be done with it is not.
    pub(super) async fn forget_tasks(&self, digest: Digest) -> Result<(), ApiError> {
        let prefix = format!("{digest} ");
        let forgotten = self.on_queue(move |queue| {
            queue.forget(WRITE_BACK, &prefix)?;
            queue.forget(REPLICATE, &prefix)
        });
        let forgotten = forgotten.await;
        forgotten
            .map(drop)
            .map_err(|error| ApiError::Unavailable(error.to_string()))
    }

    /// Looks now whether a blob is in its backend, instead of later.
    pub(super) async fn hurry_write_back(&self, digest: Digest) -> Result<(), ApiError> {
        let hurried = self
            .on_queue(move |queue| queue.hurry(WRITE_BACK, &format!("{digest} "), unix_ms()))
            .await;
        hurried.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        self.queued.notify_one();
        Ok(())
    }

    /// Whether a blob has not been written back yet.
    pub(super) async fn waits_for_write_back(&self, digest: Digest) -> Result<bool, ApiError> {
        let found =
            self.on_queue(move |queue| queue.contains_prefix(WRITE_BACK, &format!("{digest} ")));
        let found = found.await;
        found.map_err(|error| ApiError::Unavailable(error.to_string()))
    }

    /// Of these blobs, those that a task is about, dead letters among them: they are not in the backend
    /// yet, or an owner lacks its copy.
    pub(super) async fn unfinished(
        &self,
        blobs: Vec<Digest>,
    ) -> Result<HashSet<Digest>, StoreError> {
        let found = self.on_queue(move |queue| {
            let mut found = HashSet::new();
            for digest in blobs {
                let prefix = format!("{digest} ");
                if queue.contains_prefix(WRITE_BACK, &prefix)?
                    || queue.contains_prefix(REPLICATE, &prefix)?
                {
                    found.insert(digest);
                }
            }
            Ok(found)
        });
        found.await.map_err(|error| StoreError::Io {
            doing: "read the queue of write-backs, to see what may go".into(),
            source: std::io::Error::other(error),
        })
    }

    /// These blobs, with the namespaces under which they are not in the backend yet.
    pub(super) async fn with_unwritten(&self, blobs: Vec<Digest>) -> Result<Vec<Held>, ApiError> {
        let found = self.on_queue(move |queue| {
            let with = |digest: Digest| {
                let keys = queue.keys(WRITE_BACK, &format!("{digest} "))?;
                let namespaces = keys
                    .iter()
                    .filter_map(|key| key.split_once(' ')?.1.parse().ok());
                Ok(Held {
                    digest,
                    unwritten: namespaces.collect(),
                })
            };
            blobs.into_iter().map(with).collect()
        });
        found
            .await
            .map_err(|error: QueueError| ApiError::Unavailable(error.to_string()))
    }

    /// Works off the queue until the origin stops, and then what is due at that moment. A task that
    /// hangs holds up only itself.
    pub(super) async fn work(self: Arc<Self>) {
        let mut running = FuturesUnordered::new();
        let mut is_readable = true;
        loop {
            let is_stopping = self.stopping.is_cancelled();
            let free = PARALLEL - running.len();
            let due = self
                .on_queue(move |queue| queue.take_due(unix_ms(), free))
                .await;
            if let Err(error) = &due
                && is_readable
            {
                tracing::error!(%error, "the queue of write-backs cannot be read");
            }
            is_readable = due.is_ok();
            let due = due.unwrap_or_default();
            running.extend(due.into_iter().map(|task| self.attempt(task)));
            if is_stopping && running.is_empty() {
                self.drained.notify_one();
                return;
            }
            tokio::select! {
                Some(()) = running.next(), if !running.is_empty() => {}
                () = self.queued.notified() => {}
                () = self.stopping.cancelled(), if !is_stopping => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn push(
        &self,
        (priority, kind): (Priority, &'static str),
        key: String,
        delay: Duration,
    ) -> Result<u64, ApiError> {
        let due = unix_ms().saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let some_dead = self.counts.some_dead();
        let push = move |queue: &DurableQueue| {
            let id = queue.push_ranked(priority, kind, &key, &[], due)?;
            // It may have taken the place of a dead letter.
            let dead = some_dead.then(|| queue.dead_len()).transpose()?;
            Ok((id, dead))
        };
        let pushed = self.on_queue(push).await;
        let (id, dead) = pushed.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        if let Some(dead) = dead {
            self.counts.dead(dead);
        }
        self.queued.notify_one();
        Ok(id)
    }

    async fn attempt(&self, task: Task) {
        let id = task.id;
        let outcome = match self.run(&task).await {
            Ok(()) => self.on_queue(move |queue| queue.done(id)).await,
            Err(unfinished) => self.put_back(&task, unfinished).await,
        };
        if let Err(error) = outcome {
            match error.is_retryable() {
                // The queue has said so.
                true => tracing::debug!(%error, "the end of a task cannot be kept"),
                false => tracing::error!(%error, "the queue of write-backs cannot be written"),
            }
            let rested = tokio::time::sleep(REST);
            // On the disk it still waits: what was done is looked at again, by the next process if this one stops.
            if self.stopping.run_until_cancelled(rested).await.is_some() {
                self.queue.give_back(id);
            }
        }
    }

    /// Lets a task wait for its next attempt, or gives it up when it was in vain for too long.
    async fn put_back(&self, task: &Task, unfinished: Unfinished) -> Result<(), QueueError> {
        let (id, attempts, kind, key) = (task.id, task.attempts, &task.kind, &task.key);
        let (first, longest) = self.retry;
        let mut backoff = Backoff::new(first, longest, Jitter::Equal).resumed(attempts);
        let wait = backoff.delay(&mut Rng::seeded(id ^ u64::from(attempts) << 32));
        match unfinished {
            Unfinished::Early(reason) => {
                tracing::debug!(kind, key, reason, ?wait, "will look again");
            }
            Unfinished::Failed(reason) => {
                let age = Duration::from_millis(unix_ms().saturating_sub(task.born_ms));
                // After a long time in which this origin was off, the first failure says little.
                let tried = attempts >= TRIES && self.started.elapsed() > 2 * longest;
                if tried && age > self.dead_after {
                    tracing::error!(
                        kind,
                        key,
                        reason,
                        ?age,
                        "given up: a dead letter from now on"
                    );
                    let buried = self.on_queue(move |queue| {
                        queue.bury(id)?;
                        queue.dead_len()
                    });
                    self.counts.dead(buried.await?);
                    return Ok(());
                }
                match self.seldom.due(&format!("{kind}: {reason}")) {
                    Some(left_out) => {
                        tracing::warn!(kind, key, reason, ?wait, left_out, "will try again");
                    }
                    None => tracing::debug!(kind, key, reason, ?wait, "will try again"),
                }
            }
        }
        let due = unix_ms() + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.on_queue(move |queue| queue.retry(id, due)).await
    }

    async fn run(&self, task: &Task) -> Result<(), Unfinished> {
        let mut words = task.key.split(' ');
        let (Some(Ok(digest)), Some(Ok(namespace))) = (
            words.next().map(str::parse::<Digest>),
            words.next().map(str::parse::<Namespace>),
        ) else {
            tracing::error!(key = task.key, "a task that makes no sense is dropped");
            return Ok(());
        };
        match (task.kind.as_str(), words.next()) {
            (WRITE_BACK, None) => {
                let span = self.pushed.attempt(&namespace, digest);
                let write_back = self.write_back(&namespace, digest, task.attempts);
                let done = write_back.instrument(span.clone()).await;
                match &done {
                    Ok(()) => span.record("kraken.outcome", "written"),
                    Err(Unfinished::Early(reason)) => span.record("kraken.outcome", reason),
                    Err(Unfinished::Failed(_)) => span.record("otel.status_code", "ERROR"),
                };
                self.pushed.attempted(digest, done.is_ok(), task.attempts);
                done
            }
            (REPLICATE, Some(origin)) => {
                self.repair(origin, &namespace, digest, task.attempts).await
            }
            _ => {
                tracing::error!(kind = task.kind, "a task of an unknown kind is dropped");
                Ok(())
            }
        }
    }

    async fn write_back(
        &self,
        namespace: &Namespace,
        digest: Digest,
        attempts: u32,
    ) -> Result<(), Unfinished> {
        let said = |error: kraken_storage::BackendError| Unfinished::Failed(error.to_string());
        let Some(meta) = self.committed(digest).await? else {
            return self.not_committed(digest, attempts);
        };
        let stored = self.backend.stat(namespace, digest).await;
        let answers_since = self.backend_answers(stored.is_ok());
        if stored.map_err(said)? == Some(meta.length()) {
            return Ok(());
        }
        // For a while: an owner that alone cannot reach the backend is not to hold up the others.
        let patience = 2 * self.retry.1;
        if answers_since.is_some_and(|since| since.elapsed() < patience)
            && self.another_writes(namespace, digest).await
        {
            return Err(Unfinished::Early("another owner writes it"));
        }
        let bytes = self.stream(&meta, 0..meta.length(), None);
        let bytes = bytes
            .map(|chunk| {
                chunk.map_err(|error| kraken_storage::BackendError::Other(error.to_string()))
            })
            .boxed();
        self.backend
            .write(namespace, digest, meta.length(), bytes)
            .await
            .map_err(said)?;
        tracing::debug!(%digest, %namespace, "written back");
        Ok(())
    }

    /// Notes whether a backend has answered, and says since when they do.
    fn backend_answers(&self, answered: bool) -> Option<Instant> {
        let mut since = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *since = match answered {
            true => Some(since.unwrap_or_else(Instant::now)),
            false => None,
        };
        *since
    }

    /// Whether an owner that comes before this one is still going to write the blob.
    async fn another_writes(&self, namespace: &Namespace, digest: Digest) -> bool {
        for name in self.members.owners(digest) {
            let Some(client) = self.members.client(&name) else {
                return false;
            };
            if !self.members.is_up(&name) {
                continue;
            }
            if client.writes_back(namespace, digest).await.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    async fn repair(
        &self,
        origin: &str,
        namespace: &Namespace,
        digest: Digest,
        attempts: u32,
    ) -> Result<(), Unfinished> {
        let Some(meta) = self.committed(digest).await? else {
            return self.not_committed(digest, attempts);
        };
        match self.members.is_in(origin) {
            true if !self.members.is_up(origin) => {
                Err(Unfinished::Failed("the origin does not answer".into()))
            }
            true => {
                let busy = Unfinished::Early("a copy is on its way there");
                let copy = self.copying.begin(digest, origin).ok_or(busy)?;
                let copied = tokio::select! {
                    copied = self.copy_to(copy, namespace, &meta, Duration::ZERO) => copied,
                    // Others wait for their turn.
                    () = self.members.until_down(origin) => Err("it does not answer any more".into()),
                };
                copied.map_err(Unfinished::Failed)
            }
            // It is not in the ring any more: somebody else owns the blob now, and if it comes back, it
            // asks for what it lacks.
            false => Ok(()),
        }
    }

    /// The task is older than the commit that it belongs to, or the commit failed, or the blob was
    /// found damaged and comes anew.
    fn not_committed(&self, digest: Digest, attempts: u32) -> Result<(), Unfinished> {
        if self.mending().contains(&digest) || self.fetching().contains_key(&digest) {
            return Err(Unfinished::Early("the blob is on its way here"));
        }
        match attempts < COMMIT_ATTEMPTS {
            true => Err(Unfinished::Early("the blob is not committed yet")),
            false => Ok(()),
        }
    }

    async fn committed(&self, digest: Digest) -> Result<Option<MetaInfo>, Unfinished> {
        let sealed = self.sealed(digest).await;
        sealed.map_err(|error| Unfinished::Failed(error.to_string()))
    }

    pub(super) async fn on_queue<T: Send + 'static>(
        &self,
        act: impl FnOnce(&DurableQueue) -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let queue = self.queue.clone();
        tokio::task::spawn_blocking(move || act(&queue))
            .await
            .expect("the queue does not panic")
    }
}

/// Why a task stays in the queue.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfinished {
    /// It came too early: nothing is wrong.
    #[error("{0}")]
    Early(&'static str),
    /// What it is for did not work.
    #[error("{0}")]
    Failed(String),
}
