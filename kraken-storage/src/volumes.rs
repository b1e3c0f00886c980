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
const BETWEEN: char = '.';

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
        let mut failed = StoreError::Full;
        for store in self.ranked(&Digest::of(&turn.to_be_bytes())) {
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
mod tests {
    use std::path::Path;

    use super::*;
    use crate::fs::FsOptions;
    use crate::mem::MemStore;
    use crate::testkit;

    fn three() -> Volumes<MemStore> {
        let volume = |name: &str| (name.to_string(), 1.0, MemStore::new());
        Volumes::new(["a", "b", "c"].map(volume))
    }

    #[tokio::test]
    async fn several_are_as_one() {
        testkit::conforms(async || three()).await;
        testkit::uploads_conform(async || three()).await;
    }

    async fn push(store: &impl UploadStore, seed: u64) -> (Vec<u8>, Digest) {
        let (bytes, meta) = testkit::blob(10_000, seed);
        let upload = store.upload_start().await.unwrap();
        let data = Bytes::from(bytes.clone());
        store.upload_append(&upload, 0, data).await.unwrap();
        store.upload_commit(&upload, meta.digest()).await.unwrap();
        (bytes, meta.digest())
    }

    #[tokio::test]
    async fn blobs_are_shared_out_by_weight_and_found_whatever_the_weights_are() {
        let stores = [MemStore::new(), MemStore::new(), MemStore::new()];
        let with = |weights: [f64; 3]| {
            let named = ["a", "b", "c"].into_iter().zip(weights).zip(stores.clone());
            Volumes::new(named.map(|((name, weight), store)| (name.to_string(), weight, store)))
        };
        let volumes = with([1.0, 3.0, 0.0]);
        let mut pushed = Vec::new();
        for seed in 0..400 {
            pushed.push(push(&volumes, seed).await);
        }
        let mut counts = Vec::new();
        for store in &stores {
            counts.push(store.list().await.unwrap().len());
        }
        assert!(
            (70..130).contains(&counts[0]) && counts[2] == 0,
            "{counts:?}"
        );
        let volumes = with([0.0, 0.0, 1.0]);
        for (bytes, digest) in &pushed {
            assert_eq!(volumes.read(*digest, 0, 10_000).await.unwrap(), bytes[..]);
        }
        assert_eq!(volumes.list().await.unwrap().len(), 400);
    }

    #[tokio::test]
    async fn a_blob_that_is_there_is_not_kept_twice_and_wrong_bytes_are_still_refused() {
        let volumes = three();
        let (bytes, digest) = push(&volumes, 1).await;
        for _ in 0..4 {
            push(&volumes, 1).await;
            let wrong = volumes.upload_start().await.unwrap();
            let data = Bytes::from_static(b"something else");
            volumes.upload_append(&wrong, 0, data).await.unwrap();
            let committed = volumes.upload_commit(&wrong, digest).await;
            let refused = matches!(committed, Err(StoreError::DigestMismatch { .. }));
            assert!(refused, "{committed:?}");
        }
        let mut holders = 0;
        for store in volumes.each() {
            holders += store.list().await.unwrap().len();
        }
        assert_eq!(holders, 1);
        assert_eq!(volumes.read(digest, 0, 10_000).await.unwrap(), bytes);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_two_who_commit_one_blob_at_once_both_are_right_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = on_disk(dir.path(), 1 << 30).await;
        for seed in 0..40 {
            let (bytes, meta) = testkit::blob(10_000, seed);
            let mut uploads = Vec::new();
            // One on each.
            while uploads.len() < 2 {
                let name = volumes.upload_start().await.unwrap();
                if name.contains(BETWEEN) == (uploads.len() == 1) {
                    let data = Bytes::from(bytes.clone());
                    volumes.upload_append(&name, 0, data).await.unwrap();
                    uploads.push(name);
                } else {
                    volumes.upload_abort(&name).await.unwrap();
                }
            }
            let commits = uploads.into_iter().map(|name| {
                let (volumes, digest) = (volumes.clone(), meta.digest());
                tokio::spawn(async move { volumes.upload_commit(&name, digest).await })
            });
            for commit in join_all(commits).await {
                assert_eq!(commit.unwrap().unwrap(), meta);
            }
            let status = volumes.status(meta.digest()).await.unwrap();
            assert_eq!(status, BlobStatus::Sealed { meta }, "blob {seed}");
        }
        assert_eq!(volumes.usage().unwrap().blobs, 40, "one copy of each");
    }

    #[tokio::test]
    async fn an_upload_has_one_name() {
        let volumes = three();
        let mut far = None;
        while far.is_none() {
            let name = volumes.upload_start().await.unwrap();
            far = name.starts_with("1.").then_some(name);
        }
        let name = far.unwrap();
        let bare = name.strip_prefix("1.").unwrap();
        volumes.upload_len(&name).await.unwrap();
        for other in ["01.", "+1.", "3.", "0.", "x.", "."] {
            let len = volumes.upload_len(&format!("{other}{bare}")).await;
            assert!(matches!(len, Err(StoreError::UploadUnknown(_))), "{other}");
        }
    }

    async fn on_disk(dir: &Path, most: u64) -> Volumes<FsStore> {
        let mut volumes = Vec::new();
        for name in ["a", "b"] {
            let options = FsOptions {
                ceiling: Some(Ceiling::of(most)),
                ..FsOptions::default()
            };
            let store = FsStore::open_with(dir.join(name), options).await.unwrap();
            volumes.push((name.to_string(), 1.0, store));
        }
        Volumes::new(volumes)
    }

    #[tokio::test]
    async fn what_does_not_fit_on_one_goes_to_another_and_then_something_must_go() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = on_disk(dir.path(), 25_000).await;
        let metas: Vec<_> = (0..5).map(|seed| testkit::blob(10_000, seed).1).collect();
        for meta in &metas[..4] {
            volumes.open(meta.clone()).await.unwrap();
        }
        let full = volumes.open(metas[4].clone()).await;
        assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
        let usage = volumes.usage().unwrap();
        assert_eq!((usage.bytes, usage.blobs), (40_000, 4));
        assert_eq!(usage.ceiling.unwrap().most(), 50_000);
        // The two that came last are used again: not their volumes' turn.
        let victims = volumes
            .victims(Need::blob(10_000), &HashSet::new())
            .await
            .unwrap();
        assert!(
            !victims.is_empty() && victims.contains(&metas[0].digest()),
            "{victims:?}"
        );
        volumes.remove(victims[0]).await.unwrap();
        volumes.open(metas[4].clone()).await.unwrap();
        assert_eq!(volumes.page(None, 9).len(), 4);
    }
}
