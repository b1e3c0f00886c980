//! Several stores as one: a host's blobs on all of its disks.
//!
//! A new blob goes to the volume that rendezvous hashing by the volumes' weights gives it, and to the
//! next in its order when there is no room or that one fails. Where a blob lies, it stays: a volume that
//! is added or given another weight gets its share of what comes, and nothing is moved. While a volume
//! fails, what it may hold is not known, and blobs that no other one has cannot be begun: take it out.

use std::collections::HashSet;
use std::fs::File;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, select_all};
use futures::{FutureExt as _, StreamExt as _};
use kraken_proto::cache::ledger::{Ceiling, Kept};
use kraken_proto::{Bitfield, Digest, Member, MetaInfo, Ring};

use crate::fs::FsStore;
use crate::store::{BlobStatus, Goal, Need, PieceStore, StoreError, UploadStore, Usage, Verdict};

/// Stores that together are one. Clones share them.
#[derive(Debug, Clone)]
pub struct Volumes<S> {
    inner: Arc<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    ring: Ring,
    volumes: Vec<(String, S)>,
    /// For uploads, whose digest is not known when they begin.
    turn: AtomicU64,
}

/// Which volume an upload is on: its own name on that volume, behind the volume's place.
const BETWEEN: char = '_';

impl<S> Volumes<S> {
    /// These stores by names that stay the same, each with its share relative to the others. Of two
    /// with one name the first counts.
    ///
    /// # Panics
    /// There is none.
    pub fn new(volumes: impl IntoIterator<Item = (String, f64, S)>) -> Self {
        let (mut members, mut stores) = (Vec::new(), Vec::<(String, S)>::new());
        for (name, weight, store) in volumes {
            if stores.iter().all(|(known, _)| *known != name) {
                members.push(Member {
                    weight,
                    ..Member::new(name.clone())
                });
                stores.push((name, store));
            }
        }
        assert!(
            !stores.is_empty(),
            "a host keeps blobs on one volume at least"
        );
        Self {
            inner: Arc::new(Inner {
                ring: Ring::new(members),
                volumes: stores,
                turn: AtomicU64::new(0),
            }),
        }
    }

    /// The stores.
    pub fn each(&self) -> impl Iterator<Item = &S> {
        self.inner.volumes.iter().map(|(_, store)| store)
    }

    /// The stores that take new blobs, in the order in which this one is offered to them.
    fn ranked(&self, digest: &Digest) -> Vec<&S> {
        let ranked = self.inner.ring.ranked(digest);
        let named = |name: &str| {
            let mut volumes = self.inner.volumes.iter();
            volumes
                .find(|(known, _)| known == name)
                .map(|(_, store)| store)
        };
        ranked
            .into_iter()
            .filter_map(|member| named(&member.name))
            .collect()
    }

    /// All stores, those where the blob most likely is in front.
    fn likely(&self, digest: &Digest) -> Vec<&S> {
        let mut order = self.ranked(digest);
        for store in self.each() {
            if !order.iter().any(|known| std::ptr::eq(*known, store)) {
                order.push(store);
            }
        }
        order
    }

    /// The volume of an upload, and its name there.
    fn of_upload<'a>(&self, upload: &'a str) -> Result<(&S, &'a str), StoreError> {
        let found = match upload.split_once(BETWEEN) {
            // With one volume names are as that one gives them, so that a second can be added.
            None => self.inner.volumes.first().map(|(_, store)| (store, upload)),
            Some((place, name)) => {
                let mut places = self.each().enumerate().skip(1);
                let found = places.find(|(at, _)| at.to_string() == place);
                found.map(|(_, store)| (store, name))
            }
        };
        found.ok_or_else(|| StoreError::UploadUnknown(upload.to_string()))
    }
}

impl<S: PieceStore> Volumes<S> {
    /// The volume that has something of the blob; `None` when none has.
    ///
    /// # Errors
    /// None has it, and one could not be asked.
    async fn holder(&self, digest: Digest) -> Result<Option<&S>, StoreError> {
        if let [(_, only)] = &self.inner.volumes[..] {
            return Ok(Some(only));
        }
        let (mut partial, mut failed) = (None, None);
        for store in self.likely(&digest) {
            match store.status(digest).await {
                Ok(BlobStatus::Absent) => {}
                // A whole one elsewhere is better: the volume that has it was away for a while.
                Ok(BlobStatus::Partial { .. }) => partial = partial.or(Some(store)),
                Ok(BlobStatus::Sealed { .. }) => return Ok(Some(store)),
                Err(error) => failed = Some(error),
            }
        }
        match (partial, failed) {
            (None, Some(error)) => Err(error),
            (partial, _) => Ok(partial),
        }
    }

    async fn holding(&self, digest: Digest) -> Result<&S, StoreError> {
        let found = self.holder(digest).await?;
        found.ok_or(StoreError::Absent(digest))
    }
}

impl<S: PieceStore> PieceStore for Volumes<S> {
    async fn status(&self, digest: Digest) -> Result<BlobStatus, StoreError> {
        match self.holder(digest).await? {
            Some(store) => store.status(digest).await,
            None => Ok(BlobStatus::Absent),
        }
    }

    async fn open(&self, meta: MetaInfo) -> Result<Bitfield, StoreError> {
        let digest = meta.digest();
        if let Some(store) = self.holder(digest).await? {
            return store.open(meta).await;
        }
        let mut failed = StoreError::Full;
        let mut is_full = false;
        for store in self.ranked(&digest) {
            match store.open(meta.clone()).await {
                Ok(have) => return Ok(have),
                Err(StoreError::Full) => is_full = true,
                Err(error) => {
                    tracing::warn!(%digest, %error, "a volume takes no blob");
                    failed = error;
                }
            }
        }
        // Room can be made, a volume cannot be mended.
        Err(if is_full { StoreError::Full } else { failed })
    }

    async fn write(&self, digest: Digest, piece: u32, data: Bytes) -> Result<(), StoreError> {
        self.holding(digest).await?.write(digest, piece, data).await
    }

    async fn read(&self, digest: Digest, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        self.holding(digest).await?.read(digest, offset, len).await
    }

    async fn file(&self, digest: Digest) -> Result<Option<Arc<File>>, StoreError> {
        match self.holder(digest).await? {
            Some(store) => store.file(digest).await,
            None => Ok(None),
        }
    }

    async fn damaged(&self) -> Digest {
        let waits = self.each().map(|store| store.damaged().boxed());
        select_all(waits).await.0
    }

    async fn seal(&self, digest: Digest) -> Result<(), StoreError> {
        self.holding(digest).await?.seal(digest).await
    }

    async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        for store in self.each() {
            // One that cannot be written to is no harm where nothing is.
            if store.status(digest).await? != BlobStatus::Absent {
                store.remove(digest).await?;
            }
        }
        Ok(())
    }

    async fn discard(&self, digest: Digest) -> Result<(), StoreError> {
        for store in self.each() {
            store.discard(digest).await?;
        }
        Ok(())
    }

    /// A new blob finds room on any volume: on the one where what goes was not used for the longest
    /// time. An upload stays on its own.
    async fn victims(
        &self,
        need: Need<'_>,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        if let Some(upload) = need.upload {
            let (store, name) = self.of_upload(upload)?;
            let need = Need {
                upload: Some(name),
                ..need
            };
            return store.victims(need, spared).await;
        }
        let mut found: Option<(u64, Vec<Digest>)> = None;
        // Of those that take new ones: room elsewhere is of no use.
        for store in self.ranked(&Digest::of(b"")) {
            let Ok(going) = store.victims(need, spared).await else {
                continue;
            };
            let used_ms = going
                .first()
                .map_or(u64::MAX, |first| last_use(store, *first));
            if found.as_ref().is_none_or(|(oldest, _)| used_ms < *oldest) {
                found = Some((used_ms, going));
            }
        }
        found.map(|(_, going)| going).ok_or(StoreError::Full)
    }

    async fn surplus(
        &self,
        goal: Goal,
        spared: &HashSet<Digest>,
    ) -> Result<Vec<Digest>, StoreError> {
        let mut going = Vec::new();
        for store in self.each() {
            going.extend(store.surplus(goal, spared).await?);
        }
        Ok(going)
    }

    fn usage(&self) -> Option<Usage> {
        let usages: Option<Vec<_>> = self.each().map(PieceStore::usage).collect();
        usages?.into_iter().reduce(|one, other| Usage {
            bytes: one.bytes + other.bytes,
            blobs: one.blobs + other.blobs,
            ceiling: one.ceiling.zip(other.ceiling).and_then(both),
        })
    }

    fn page(&self, after: Option<Digest>, max: usize) -> Vec<Kept> {
        let mut page: Vec<_> = self
            .each()
            .flat_map(|store| store.page(after, max))
            .collect();
        page.sort_unstable_by_key(|kept| kept.digest);
        page.dedup_by_key(|kept| kept.digest);
        page.truncate(max);
        page
    }

    fn kept(&self, digest: Digest) -> Option<Kept> {
        self.each().find_map(|store| store.kept(digest))
    }

    async fn note_uses(&self) -> Result<(), StoreError> {
        let mut done = Ok(());
        for store in self.each() {
            // The others are to be noted all the same.
            done = done.and(store.note_uses().await);
        }
        done
    }

    fn touch(&self, digest: Digest) {
        self.each().for_each(|store| store.touch(digest));
    }

    /// On every volume, as the blob may come to any.
    async fn pin(&self, digest: Digest, is_pinned: bool) -> Result<(), StoreError> {
        let mut done = Ok(());
        for store in self.each() {
            done = done.and(store.pin(digest, is_pinned).await);
        }
        done
    }

    async fn verify(&self, digest: Digest) -> Result<Verdict, StoreError> {
        match self.holder(digest).await? {
            Some(store) => store.verify(digest).await,
            None => Ok(Verdict::Absent),
        }
    }

    async fn path(&self, digest: Digest) -> Result<Option<PathBuf>, StoreError> {
        match self.holder(digest).await? {
            Some(store) => store.path(digest).await,
            None => Ok(None),
        }
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let lists = futures::stream::iter(self.each()).then(|store| store.list());
        let lists: Vec<_> = lists.collect().await;
        let mut all = Vec::new();
        for list in lists {
            all.extend(list?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

impl Volumes<FsStore> {
    /// Verifies all sealed blobs for ever, each volume at `rate` bytes per second at most; see
    /// [`FsStore::scrub`].
    pub async fn scrub(&self, rate: NonZeroU64) {
        join_all(self.each().map(|store| store.scrub(rate))).await;
    }

    /// Removes uploads to which nothing was added for longer than `older_than`, and says how many.
    ///
    /// # Errors
    /// As of [`FsStore::uploads_expire`].
    pub async fn uploads_expire(&self, older_than: Duration) -> Result<usize, StoreError> {
        let mut gone = 0;
        for store in self.each() {
            gone += store.uploads_expire(older_than).await?;
        }
        Ok(gone)
    }
}

impl<S: UploadStore> UploadStore for Volumes<S> {
    async fn upload_start(&self) -> Result<String, StoreError> {
        // Spread as blobs are, by a digest that nobody has.
        let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed);
        let ranked = self.ranked(&Digest::of(&turn.to_be_bytes()));
        // It stays where it begins: not on one that is full, if another is not.
        let (roomy, full): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|store| {
            let usage = store.usage();
            let ceiling = usage.and_then(|usage| Some((usage.bytes, usage.ceiling?)));
            ceiling.is_none_or(|(used, ceiling)| used <= ceiling.high())
        });
        let mut failed = StoreError::Full;
        for store in roomy.into_iter().chain(full) {
            match store.upload_start().await {
                Ok(name) => {
                    let place = self.each().position(|it| std::ptr::eq(it, store));
                    return Ok(match place.unwrap_or_default() {
                        0 => name,
                        place => format!("{place}{BETWEEN}{name}"),
                    });
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn upload_len(&self, upload: &str) -> Result<u64, StoreError> {
        let (store, name) = self.of_upload(upload)?;
        store.upload_len(name).await
    }

    async fn upload_append(
        &self,
        upload: &str,
        offset: u64,
        data: Bytes,
    ) -> Result<u64, StoreError> {
        let (store, name) = self.of_upload(upload)?;
        store.upload_append(name, offset, data).await
    }

    async fn upload_commit(&self, upload: &str, expected: Digest) -> Result<MetaInfo, StoreError> {
        let (store, name) = self.of_upload(upload)?;
        let meta = store.upload_commit(name, expected).await?;
        let others = self.each().enumerate();
        let place = self.each().position(|it| std::ptr::eq(it, store));
        for (at, other) in others.filter(|(_, other)| !std::ptr::eq(*other, store)) {
            match other.status(expected).await {
                // One copy is enough: that on the first of the volumes, so that of two who find each
                // other's only one lets go.
                Ok(BlobStatus::Sealed { .. }) if Some(at) < place => {
                    other.seal(expected).await?;
                    store.remove(expected).await?;
                    break;
                }
                Ok(BlobStatus::Sealed { .. }) => other.remove(expected).await?,
                Ok(BlobStatus::Partial { .. }) => other.discard(expected).await?,
                Ok(BlobStatus::Absent) | Err(_) => {}
            }
        }
        Ok(meta)
    }

    async fn upload_abort(&self, upload: &str) -> Result<(), StoreError> {
        match self.of_upload(upload) {
            Ok((store, name)) => store.upload_abort(name).await,
            Err(_) => Ok(()),
        }
    }
}

/// When a blob was used last, as far as its store knows.
fn last_use<S: PieceStore>(store: &S, digest: Digest) -> u64 {
    store.kept(digest).map_or(u64::MAX, |kept| kept.used_ms)
}

fn both((one, other): (Ceiling, Ceiling)) -> Option<Ceiling> {
    let sum = Ceiling::of(one.most() + other.most());
    sum.with_marks(one.high() + other.high(), one.low() + other.low())
}

#[cfg(test)]
#[cfg(feature = "testkit")]
mod tests;
