//! Blobs that go although nothing needs their room: above the high mark, after their time, or because
//! somebody says so.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kraken_proto::Digest;
use kraken_proto::cache::ledger::{Kept, Lifetimes};
use kraken_storage::{Goal, StoreError};
use tokio::time::Instant;

use crate::clock::unix_ms;
use crate::dynamic::DynStore;

/// How often the marks are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often the lifetimes are, and the times of the last uses are written down.
const ROUND: Duration = Duration::from_secs(60);

/// What a sweep removed, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// The blobs, as they were.
    pub blobs: Vec<Kept>,
    /// How many could not be removed.
    pub errors: u64,
    /// How many had to stay: they are in use, or nowhere else yet.
    pub spared: u64,
}

impl Swept {
    /// What the blobs took, in bytes.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|kept| kept.bytes).sum()
    }
}

/// Whose blobs they are, and who knows which are needed.
pub(crate) trait Keeper: Send + Sync {
    fn store(&self) -> &dyn DynStore;

    /// Of these blobs, those that must stay for now.
    fn needed(
        &self,
        blobs: &[Digest],
    ) -> impl Future<Output = Result<HashSet<Digest>, StoreError>> + Send;

    /// Removes a blob, and says whether it has; when it is in use it has not.
    fn evict(&self, digest: Digest) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Whose turn it is to remove: two at once would remove too much.
    fn turn(&self) -> &tokio::sync::Mutex<()>;
}

impl<K: Keeper> Keeper for Arc<K> {
    fn store(&self) -> &dyn DynStore {
        K::store(self)
    }
    fn needed(
        &self,
        blobs: &[Digest],
    ) -> impl Future<Output = Result<HashSet<Digest>, StoreError>> + Send {
        K::needed(self, blobs)
    }
    fn evict(&self, digest: Digest) -> impl Future<Output = Result<bool, StoreError>> + Send {
        K::evict(self, digest)
    }
    fn turn(&self) -> &tokio::sync::Mutex<()> {
        K::turn(self)
    }
}

/// What a sweep would remove, except what is in use at this moment.
pub(crate) async fn rehearse(keeper: &impl Keeper, goal: Goal) -> Result<Swept, StoreError> {
    let mut spared = HashSet::new();
    loop {
        let going = keeper.store().surplus(goal, &spared).await?;
        let needed = keeper.needed(&going).await?;
        if needed.is_empty() {
            let blobs = going.iter().filter_map(|it| keeper.store().kept(*it));
            return Ok(Swept {
                blobs: blobs.collect(),
                errors: 0,
                spared: spared.len() as u64,
            });
        }
        spared.extend(needed);
    }
}

/// Removes what may go until `goal` is reached.
pub(crate) async fn sweep(keeper: &impl Keeper, goal: Goal) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let mut spared = HashSet::new();
    loop {
        let _turn = keeper.turn().lock().await;
        let going = keeper.store().surplus(goal, &spared).await?;
        if going.is_empty() {
            swept.spared = spared.len() as u64 - swept.errors;
            return Ok(swept);
        }
        spared.extend(keeper.needed(&going).await?);
        for digest in going {
            if spared.contains(&digest) {
                continue;
            }
            let kept = keeper.store().kept(digest);
            match keeper.evict(digest).await {
                Ok(true) => swept.blobs.extend(kept),
                Ok(false) => drop(spared.insert(digest)),
                Err(error) => {
                    tracing::warn!(%digest, %error, "a blob cannot be removed");
                    swept.errors += 1;
                    spared.insert(digest);
                }
            }
        }
    }
}

/// Removes victims until `attempt` finds room for what needs it.
pub(crate) async fn with_room<K: Keeper, T, E, F>(
    keeper: &K,
    need: kraken_storage::Need<'_>,
    stays: Option<Digest>,
    attempt: impl Fn() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, StoreError>>,
    E: From<StoreError>,
{
    match attempt().await {
        Err(StoreError::Full) => {}
        done => return Ok(done?),
    }
    let _turn = keeper.turn().lock().await;
    let mut spared = HashSet::from_iter(stays);
    loop {
        match attempt().await {
            Err(StoreError::Full) => {}
            done => return Ok(done?),
        }
        let victims = keeper.store().victims(need, &spared).await?;
        // Looked at behind the victims: a blob's task is in the queue before the blob is in the store,
        // so that none of them can be missed.
        spared.extend(keeper.needed(&victims).await?);
        for victim in victims {
            if !spared.contains(&victim) && !keeper.evict(victim).await? {
                spared.insert(victim);
            }
        }
    }
}

/// Keeps a store within its marks and lifetimes until `keeper` gives none any more.
pub(crate) async fn keep<K: Keeper>(keeper: impl Fn() -> Option<K>, lifetimes: Lifetimes) {
    let mut round = Instant::now();
    let mut look = round;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(keeper) = keeper() else {
            return;
        };
        if look.elapsed() >= LOOK {
            let spared = removed("above the high mark", sweep(&keeper, Goal::Marks).await);
            // What may not go now may not go in two seconds either, and to look at all of it costs.
            look = Instant::now() + if spared { ROUND } else { Duration::ZERO };
        }
        if round.elapsed() < ROUND {
            continue;
        }
        round = Instant::now();
        if lifetimes.is_bounded() {
            let now_ms = unix_ms();
            let over = Goal::Lifetimes { lifetimes, now_ms };
            removed("their time is over", sweep(&keeper, over).await);
        }
        if let Err(error) = keeper.store().note_uses().await {
            tracing::warn!(%error, "the times of the last uses cannot be noted");
        }
    }
}

/// Tells what went, and says whether some had to stay.
fn removed(why: &str, swept: Result<Swept, StoreError>) -> bool {
    let has_spared = swept.as_ref().is_ok_and(|swept| swept.spared > 0);
    match swept {
        Ok(swept) if swept.blobs.is_empty() => {}
        Ok(swept) => {
            let (blobs, bytes) = (swept.blobs.len(), swept.bytes());
            tracing::info!(blobs, bytes, why, "removed blobs");
        }
        Err(error) => tracing::error!(%error, "the store cannot be swept"),
    }
    has_spared
}
