//! Lost copies are made again, and copies too many go.
//!
//! Each origin looks after its own share. It asks the others, one after the other, what they hold of
//! it: prints of what both own, which are a few kilobytes and equal when nothing is to do, and the
//! blobs that the other one holds without owning them. What it lacks it copies, first what is not in
//! the backend yet, at no more than a given rate. A blob that is in the backend is not worth the room
//! of another one, nor is it copied back where it was let go.
//!
//! A blob that an origin holds and does not own goes when all of its owners have it and it is in the
//! backend, and only while every origin is there, so that all count the same shares.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_net::http::ApiError;
use kraken_net::origin::holdings::MOST;
use kraken_net::origin::members::Shares;
use kraken_net::origin::{Copies, Held, Holdings, HoldingsAsked, Listed, OriginClient};
use kraken_proto::ring::compare::{Prints, bucket_of};
use kraken_proto::{Digest, Namespace};
use kraken_storage::Backend as _;
use kraken_storage::pace::Pace;
use tokio::time::{Instant, sleep};

use super::Inner;
use super::ingest::store_error;
use super::mend::Taking;
use crate::sweep::Keeper as _;

/// How an origin looks after its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealConfig {
    /// Bytes per second that it copies from others.
    pub rate: NonZeroU64,
    /// How often it compares when nothing changes.
    pub every: Duration,
}

impl Default for HealConfig {
    /// 100 MB/s, every minute.
    fn default() -> Self {
        Self {
            rate: NonZeroU64::new(100_000_000).expect("not zero"),
            every: Duration::from_secs(60),
        }
    }
}

/// Blobs that were let go and are not copied back are remembered up to this number.
const MAX_LET_GO: usize = 1 << 20;
/// What is copied in one round: then it is looked anew, as more urgent ones may have come.
const ROUND: usize = 2000;
/// What is listed of one origin in a round.
const MOST_LISTED: usize = 20 * MOST;
/// Copies under way at once.
const PARALLEL: usize = 2;
/// How often one that leaves looks what it can let go.
const LEAVING: Duration = Duration::from_secs(2);
/// Changes come together, as when several origins start.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a list of what is held is good enough to compare with.
const FRESH: Duration = Duration::from_secs(5);

/// What an origin has let go, or did not take, because it lacks the room or the time was over: it is in
/// the backend.
#[derive(Debug, Default)]
pub(super) struct LetGo(Mutex<BTreeSet<Digest>>);

impl LetGo {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, digest: Digest) {
        let mut gone = self.lock();
        if gone.len() >= MAX_LET_GO {
            // They are copied back once, and let go again.
            gone.clear();
        }
        gone.insert(digest);
    }

    pub(super) fn forget(&self, digest: Digest) {
        self.lock().remove(&digest);
    }

    fn contains(&self, digest: Digest) -> bool {
        self.lock().contains(&digest)
    }
}

/// The blobs that an origin holds, as they were a moment ago: who compares asks many times.
#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<Option<(Instant, Arc<BTreeSet<Digest>>)>>);

impl Lists {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Arc<BTreeSet<Digest>>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob that this origin is to hold, where it is, and under which namespaces it is not in the
/// backend yet.
#[derive(Debug)]
struct Lacking {
    name: String,
    from: OriginClient,
    unwritten: Vec<Namespace>,
}

impl Inner {
    /// Looks after the share of this origin until it stops.
    pub(super) async fn rebalance(self: Arc<Self>, config: HealConfig) {
        let pace = Pace::new(config.rate);
        let mut seen = self.members.watch();
        let (mut ring, mut is_done) = (self.members.ring().names(), true);
        loop {
            let now = self.members.ring().names();
            if is_done && now == ring {
                let every = match self.members.is_leaving() {
                    true => config.every.min(LEAVING),
                    false => config.every,
                };
                self.members.changes(&mut seen, every).await;
            }
            sleep(SETTLE).await;
            ring = self.members.ring().names();
            let lacking = self.lacking().await;
            is_done = lacking.len() <= ROUND;
            let made = self.make_copies(lacking, &pace).await;
            // What cannot be copied now is not asked for without a pause.
            is_done |= made == 0;
            if let Err(error) = self.let_strays_go().await {
                tracing::debug!(%error, "the copies too many stay for now");
            }
        }
    }

    /// The blobs of this origin's share that others hold and this one lacks.
    async fn lacking(&self) -> BTreeMap<Digest, Lacking> {
        let mut lacking = BTreeMap::<Digest, Lacking>::new();
        for (name, client) in self.members.others() {
            let found = self.lacking_of(&name, &client);
            let found = match self.members.while_up(&name, found).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(origin = name, %error, "an origin cannot be compared with");
                    continue;
                }
            };
            for held in found {
                let entry = lacking.entry(held.digest).or_insert_with(|| Lacking {
                    name: name.clone(),
                    from: client.clone(),
                    unwritten: Vec::new(),
                });
                for namespace in held.unwritten {
                    if !entry.unwritten.contains(&namespace) {
                        entry.unwritten.push(namespace);
                    }
                }
            }
        }
        lacking
    }

    async fn lacking_of(&self, name: &str, client: &OriginClient) -> Result<Vec<Held>, ApiError> {
        let shares = self.members.ring();
        let ask = |list| HoldingsAsked {
            asker: self.name.clone(),
            members: shares.names(),
            list,
        };
        let theirs = client.holdings(&ask(None)).await?;
        let mine = self.held().await?;
        let (prints, _) = self.counted(&mine, &shares, (&self.name, name)).await?;
        let mut found = Vec::new();
        for bucket in theirs.prints.differing(&prints) {
            let list = |after| Some(Listed::Bucket { bucket, after });
            self.list(client, |after| ask(list(after)), &mine, &mut found)
                .await?;
        }
        if theirs.strays > 0 {
            let list = |after| Some(Listed::Strays { after });
            self.list(client, |after| ask(list(after)), &mine, &mut found)
                .await?;
        }
        Ok(found)
    }

    /// Reads a list to its end, and keeps what is not here and is worth to be.
    async fn list(
        &self,
        client: &OriginClient,
        ask: impl Fn(Option<Digest>) -> HoldingsAsked,
        mine: &BTreeSet<Digest>,
        found: &mut Vec<Held>,
    ) -> Result<(), ApiError> {
        let mut after = None;
        while found.len() < MOST_LISTED {
            let blobs = client.holdings(&ask(after)).await?.blobs;
            let is_last = blobs.len() < MOST;
            after = blobs.last().map(|held| held.digest);
            let wanted = blobs.into_iter().filter(|held| {
                let is_let_go = held.unwritten.is_empty() && self.let_go.contains(held.digest);
                !mine.contains(&held.digest) && !is_let_go
            });
            found.extend(wanted);
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Copies some of these blobs here, those that are not in the backend yet first, and says how many.
    async fn make_copies(&self, lacking: BTreeMap<Digest, Lacking>, pace: &Pace) -> u64 {
        use futures::StreamExt as _;
        let (unwritten, written): (Vec<_>, Vec<_>) = lacking
            .into_iter()
            .partition(|(_, it)| !it.unwritten.is_empty());
        let count = unwritten.len() + written.len();
        if count == 0 {
            return 0;
        }
        tracing::info!(
            count,
            unwritten = unwritten.len(),
            "copying blobs that this origin lacks"
        );
        let copies = futures::stream::iter(unwritten.into_iter().chain(written).take(ROUND));
        let copies = copies.map(|(digest, lacking)| async move {
            let copied = self.make_copy(digest, &lacking, pace);
            let copied = self.members.while_up(&lacking.name, copied).await;
            if let Err(error) = &copied {
                match self.seldom.due(&error.to_string()) {
                    Some(left_out) => {
                        tracing::warn!(%digest, %error, left_out, "a blob cannot be copied now");
                    }
                    None => tracing::debug!(%digest, %error, "a blob cannot be copied now"),
                }
            }
            u64::from(copied == Ok(true))
        });
        let mut made = 0;
        let mut copies = std::pin::pin!(copies.buffer_unordered(PARALLEL));
        while let Some(one) = copies.next().await {
            made += one;
        }
        tracing::info!(made, count, "copied blobs that this origin lacked");
        made
    }

    /// Whether the blob was copied: it may have come meanwhile, or not be worth its room.
    async fn make_copy(
        &self,
        digest: Digest,
        lacking: &Lacking,
        pace: &Pace,
    ) -> Result<bool, ApiError> {
        if self.fetching().contains_key(&digest) || self.sealed(digest).await?.is_some() {
            return Ok(false);
        }
        // Where the origins' disks are the storage no copy is spare.
        let is_written = lacking.unwritten.is_empty() && self.backend.keeps();
        if is_written && !self.has_spare_room(0) {
            self.let_go.note(digest);
            return Ok(false);
        }
        let length = lacking
            .from
            .stat(&Namespace::default(), digest, Copies::Here)
            .await?;
        let Some(length) = length else {
            return Ok(false);
        };
        if is_written && !self.has_spare_room(length) {
            self.let_go.note(digest);
            return Ok(false);
        }
        let (from, unwritten) = (&lacking.from, &lacking.unwritten);
        let is_spare = is_written;
        let taking = Taking::Paced { pace, is_spare };
        match self.copy_from(from, digest, unwritten, taking).await {
            Ok(()) => {}
            // A volume without a ceiling says so when it is full.
            Err(ApiError::Full(_)) if is_written => {
                self.let_go.note(digest);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.counts.healed(length);
        Ok(true)
    }

    /// The blobs that are whole here.
    pub(super) async fn held(&self) -> Result<Arc<BTreeSet<Digest>>, ApiError> {
        if let Some((at, held)) = &*self.lists.lock()
            && at.elapsed() < FRESH
        {
            return Ok(held.clone());
        }
        let held = self.store.list().await.map_err(store_error)?;
        let held = Arc::new(held.into_iter().collect::<BTreeSet<_>>());
        *self.lists.lock() = Some((Instant::now(), held.clone()));
        Ok(held)
    }

    /// The prints of what two of the ring both own, and how many blobs the first owns and the second
    /// does not. What was let go counts as held: nobody is to bring it back.
    async fn counted(
        &self,
        held: &Arc<BTreeSet<Digest>>,
        shares: &Shares,
        (one, other): (&str, &str),
    ) -> Result<(Prints, u64), ApiError> {
        let (held, shares) = (held.clone(), shares.clone());
        let (one, other) = (one.to_string(), other.to_string());
        let let_go: Vec<_> = self.let_go.lock().iter().copied().collect();
        // Some hashes for each blob: no work for those who answer others.
        let count = move || {
            let mut strays = 0;
            let let_go = let_go.into_iter().filter(|it| !held.contains(it));
            let let_go: BTreeSet<_> = let_go.collect();
            let both = held.iter().chain(&let_go).copied().filter(|digest| {
                let owns = shares.own((&one, &other), *digest);
                strays += u64::from(owns == (true, false) && held.contains(digest));
                owns == (true, true)
            });
            let prints = Prints::of(both);
            (prints, strays)
        };
        let counted = tokio::task::spawn_blocking(count).await;
        counted.map_err(|error| ApiError::Internal(error.to_string()))
    }

    /// Whether something fits without that anything goes.
    fn has_spare_room(&self, bytes: u64) -> bool {
        let usage = self.store.usage();
        let ceiling = usage.and_then(|usage| Some((usage.bytes, usage.ceiling?)));
        ceiling.is_none_or(|(used, ceiling)| used.saturating_add(bytes) <= ceiling.low())
    }

    /// What this origin holds of the asker's share.
    pub(super) async fn holdings(&self, asked: HoldingsAsked) -> Result<Holdings, ApiError> {
        let shares = self.members.shares_of(&asked.members)?;
        let held = self.held().await?;
        let owned = |digest: &Digest| shares.own((&asked.asker, &self.name), *digest);
        let listed: Vec<_> = match asked.list {
            None => {
                let both = (&*asked.asker, &*self.name);
                let (prints, strays) = self.counted(&held, &shares, both).await?;
                return Ok(Holdings {
                    prints,
                    strays,
                    blobs: Vec::new(),
                });
            }
            Some(Listed::Bucket { bucket, after }) => {
                let start = Digest::from_bytes({
                    let mut first = [0; 32];
                    first[0] = bucket;
                    first
                });
                let from = after.map_or(Bound::Included(start), Bound::Excluded);
                let rest = held.range((from, Bound::Unbounded)).copied();
                let rest = rest.take_while(|it| bucket_of(*it) == bucket);
                rest.filter(|it| owned(it) == (true, true))
                    .take(MOST)
                    .collect()
            }
            Some(Listed::Strays { after }) => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                let rest = held.range((from, Bound::Unbounded)).copied();
                rest.filter(|it| owned(it) == (true, false))
                    .take(MOST)
                    .collect()
            }
        };
        Ok(Holdings {
            blobs: self.with_unwritten(listed).await?,
            ..Holdings::default()
        })
    }

    /// Which of these blobs are whole here, or were and could go as they are in the backend.
    pub(super) async fn holds(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, ApiError> {
        let mut held = Vec::new();
        for digest in digests {
            if self.let_go.contains(digest) || self.sealed(digest).await?.is_some() {
                held.push(digest);
            }
        }
        Ok(held)
    }

    /// Lets blobs go that others own, have, and have brought to the backend.
    async fn let_strays_go(&self) -> Result<(), ApiError> {
        if !self.members.are_settled() {
            return Ok(());
        }
        for strays in self.strays().await?.chunks(MOST) {
            for digest in self.held_by_owners(strays).await? {
                let left = self.unfinished(vec![digest]).await.map_err(store_error)?;
                if left.is_empty() && self.evict(digest).await.map_err(store_error)? {
                    // Not for lack of room: should it come to own the blob, it takes it back.
                    self.let_go.forget(digest);
                    self.counts.handed_over();
                } else if !left.is_empty() && self.members.is_leaving() {
                    // It may be in the backend already, and its turn to look would come later.
                    self.hurry_write_back(digest).await?;
                }
            }
        }
        Ok(())
    }

    /// The blobs that this origin holds and does not own, without those that are pinned.
    pub(super) async fn strays(&self) -> Result<Vec<Digest>, ApiError> {
        let shares = self.members.ring();
        let held = self.store.list().await.map_err(store_error)?;
        let is_pinned = |digest| self.store.kept(digest).is_some_and(|kept| kept.is_pinned);
        let strays = held
            .into_iter()
            .filter(|digest| !shares.owns(&self.name, *digest) && !is_pinned(*digest));
        Ok(strays.collect())
    }

    /// Of these blobs, those that all of their owners have whole.
    async fn held_by_owners(&self, blobs: &[Digest]) -> Result<Vec<Digest>, ApiError> {
        let shares = self.members.ring();
        let mut asks = BTreeMap::<String, Vec<Digest>>::new();
        let mut copies = BTreeMap::<Digest, usize>::new();
        for digest in blobs {
            let owners = shares.owners(*digest);
            let others = owners.into_iter().filter(|owner| *owner != self.name);
            for owner in others {
                *copies.entry(*digest).or_default() += 1;
                asks.entry(owner).or_default().push(*digest);
            }
        }
        for (owner, digests) in asks {
            let client = self.members.client(&owner);
            let client = client.ok_or_else(|| ApiError::Unavailable("an owner left".into()))?;
            let held = self.members.while_up(&owner, client.holds(digests)).await?;
            for digest in held {
                if let Some(missing) = copies.get_mut(&digest) {
                    *missing = missing.saturating_sub(1);
                }
            }
        }
        let held = copies.into_iter().filter(|(_, missing)| *missing == 0);
        Ok(held.map(|(digest, _)| digest).collect())
    }
}
