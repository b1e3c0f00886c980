//! The life of a blob at the driver: it is opened, more of it becomes known, and it ends.

use kraken_proto::{Bitfield, BlobSpec, ConnId, Digest, Extent, Input, MetaInfo, Namespace};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Span;

use super::{Driver, Progress};
use crate::agent::follow::Follower;
use crate::agent::hearsay::{Sources, Told};
use crate::clock::unix_ms;
use crate::error::ReadError;

/// A blob that a swarm is there for.
pub(super) struct Blob {
    pub(super) meta: MetaInfo,
    pub(super) namespace: Namespace,
    pub(super) progress: watch::Sender<Progress>,
    /// Whether only what its readers want is fetched.
    pub(super) is_partial: bool,
    /// End what follows its open metainfo, and what asks whether it is right, with the blob.
    pub(super) _following: Option<DropGuard>,
    pub(super) _confirming: Option<DropGuard>,
    /// Pieces that did not fit its metainfo while that was hearsay, and who sent the last of these.
    pub(super) misfits: u32,
    pub(super) misfit_from: Option<ConnId>,
    /// The span of its way here, if a request that belongs to a trace waits for it.
    pub(super) trace: Span,
    /// Ends with the blob: what was proved for it is not written for another.
    pub(super) life: CancellationToken,
    pub(super) _ends: DropGuard,
}

impl Driver {
    pub(super) fn open(
        &mut self,
        (told, have): (Told, Bitfield),
        namespace: Namespace,
        (ingest, is_partial): (bool, bool),
        trace: Span,
    ) -> watch::Receiver<Progress> {
        let Told { meta, is_hearsay } = told;
        let digest = meta.digest();
        if let Some(blob) = self.blobs.get(&digest) {
            let progress = blob.progress.subscribe();
            if !is_partial {
                self.fetch_whole(digest);
            }
            return progress;
        }
        let sealed = have.is_full();
        let progress = Progress {
            have: have.clone(),
            sealed,
            failed: None,
            is_hearsay,
            sure: 0,
        };
        let (progress, following) = watch::channel(progress);
        let spec = BlobSpec::of(&meta, namespace.clone());
        let open = !meta.is_whole();
        let pieces = if ingest { 0 } else { meta.provable() };
        let _following = (open && !ingest).then(|| self.follow(namespace.clone(), meta.clone()));
        let _confirming =
            (is_hearsay && !sealed).then(|| self.confirm(namespace.clone(), meta.clone()));
        let life = CancellationToken::new();
        self.remember_open(&meta, &namespace, &have, (is_hearsay, ingest));
        self.blobs.insert(
            digest,
            Blob {
                meta,
                namespace,
                progress,
                is_partial,
                _following,
                _confirming,
                misfits: 0,
                misfit_from: None,
                trace,
                _ends: life.clone().drop_guard(),
                life,
            },
        );
        self.input(Input::Open { spec, have });
        if is_partial {
            let extent = Extent::Parts;
            self.input(Input::Fetch { digest, extent });
        }
        if open || ingest {
            self.input(Input::Provable { digest, pieces });
        }
        following
    }

    /// Fetches all of a blob of which only parts were wanted so far.
    pub(super) fn fetch_whole(&mut self, digest: Digest) {
        let blob = self.blobs.get_mut(&digest);
        if blob.is_some_and(|blob| std::mem::take(&mut blob.is_partial)) {
            let extent = Extent::Whole;
            self.input(Input::Fetch { digest, extent });
        }
    }

    pub(super) fn follow(&self, namespace: Namespace, meta: MetaInfo) -> DropGuard {
        let sources = Sources {
            discovery: self.parts.discovery.clone(),
            notes: self.notes.clone(),
        };
        let follower = Follower {
            sources,
            store: self.parts.store.clone(),
            patience: self.parts.patience,
        };
        self.guarded(follower.follow(namespace, meta))
    }

    /// Does something that ends with the guard.
    pub(super) fn guarded(&self, work: impl Future<Output = ()> + Send + 'static) -> DropGuard {
        let token = CancellationToken::new();
        let work = token.clone().run_until_cancelled_owned(work);
        self.parts.tasks.spawn(async move {
            let _ = work.await;
        });
        token.drop_guard()
    }

    pub(super) fn continued(&mut self, meta: MetaInfo, is_hearsay: bool) {
        let (digest, pieces) = (meta.digest(), meta.provable());
        let confirming = is_hearsay
            .then(|| self.blobs.get(&digest))
            .flatten()
            .map(|blob| self.confirm(blob.namespace.clone(), meta.clone()));
        if let Some(blob) = self.blobs.get_mut(&digest) {
            let before = std::mem::replace(&mut blob.meta, meta);
            blob.progress.send_modify(|it| {
                if is_hearsay && !it.is_hearsay {
                    it.is_hearsay = true;
                    it.sure = before.provable();
                }
            });
            if confirming.is_some() {
                blob._confirming = confirming;
            }
            self.input(Input::Provable { digest, pieces });
            if is_hearsay {
                // Its last piece alone proves it.
                self.fetch_whole(digest);
            }
        }
    }

    pub(super) fn ingested(&mut self, meta: MetaInfo, piece: u32) {
        let digest = meta.digest();
        if let Some(blob) = self.blobs.get_mut(&digest) {
            let bytes = u64::from(meta.piece_size(piece));
            blob.meta = meta;
            self.history.ingested(digest, bytes);
            self.progress(digest, |progress| {
                progress.have.insert(piece);
            });
            self.input(Input::PieceIngested { digest, piece });
        }
    }

    pub(super) fn failed(&mut self, digest: Digest, error: ReadError) {
        match error {
            ReadError::Damaged { .. } => self.discard(digest, error),
            error => self.give_up(digest, error),
        }
    }

    /// Fetches no more of it; what is whole is left alone.
    pub(super) fn pause(&mut self, digest: Digest) {
        let blob = self.blobs.get(&digest);
        if blob.is_some_and(|blob| !blob.progress.borrow().sealed) {
            self.give_up(digest, ReadError::Paused(digest));
        }
    }

    /// Drops a blob of which nothing is worth keeping.
    pub(super) fn discard(&mut self, digest: Digest, why: ReadError) {
        tracing::warn!(%digest, %why, "dropping a blob that is damaged");
        self.give_up(digest, why);
        let store = self.parts.store.clone();
        self.parts.tasks.spawn(async move {
            if let Err(error) = store.discard(digest).await {
                tracing::error!(%digest, %error, "a damaged blob stays in the store");
            }
        });
    }

    pub(super) fn looked_up(&mut self, digest: Digest, meta: Option<MetaInfo>) {
        let spec = meta
            .as_ref()
            .map(|meta| BlobSpec::of(meta, Namespace::default()));
        if let Some(meta) = meta {
            let have = Bitfield::full(meta.piece_count());
            let life = CancellationToken::new();
            let progress = watch::Sender::new(Progress {
                have,
                sealed: true,
                failed: None,
                is_hearsay: false,
                sure: 0,
            });
            self.blobs.entry(digest).or_insert(Blob {
                meta,
                namespace: Namespace::default(),
                progress,
                is_partial: false,
                _following: None,
                _confirming: None,
                misfits: 0,
                misfit_from: None,
                trace: Span::none(),
                _ends: life.clone().drop_guard(),
                life,
            });
        }
        self.input(Input::Found { digest, spec });
    }

    /// Leaves the blob's swarm: its readers get an error.
    pub(super) fn give_up(&mut self, digest: Digest, error: ReadError) {
        let reason = error.to_string();
        self.history.end(unix_ms(), digest, Some(reason.clone()));
        self.downloaded(digest, Some(&reason));
        self.progress(digest, |progress| progress.failed = Some(error));
        self.blobs.remove(&digest);
        self.tally.forget(&digest);
        self.input(Input::Forget { digest });
    }

    pub(super) fn progress(&self, digest: Digest, change: impl FnOnce(&mut Progress)) {
        if let Some(blob) = self.blobs.get(&digest) {
            blob.progress.send_modify(change);
        }
    }
}
