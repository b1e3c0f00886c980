//! Metainfo from peers and for peers, and what to make of it when a piece does not fit.

use std::time::Duration;

use kraken_net::DiscoveryError;
use kraken_proto::{ConnId, Digest, Input, Message, MetaInfo, Namespace, PeerId};
use kraken_storage::BlobStatus;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::{Blob, Driver, Note};
use crate::agent::hearsay::Told;
use crate::error::ReadError;

/// How often the discovery is asked whether what a peer said is right; less and less often.
const CONFIRM: Duration = Duration::from_secs(2);
const CONFIRM_MAX: Duration = Duration::from_secs(30);
/// Pieces of a blob by hearsay that do not fit, from one peer or from two, until it is dropped although
/// nobody says that its metainfo is wrong.
const MISFITS: u32 = 3;

impl Driver {
    /// Somebody waits for what peers say.
    pub(super) fn seek(
        &mut self,
        namespace: Namespace,
        digest: Digest,
        reply: oneshot::Sender<Option<Told>>,
    ) {
        // Another one may have opened it meanwhile.
        if let Some(blob) = self.blobs.get(&digest).filter(|it| it.meta.is_whole()) {
            let (meta, is_hearsay) = (blob.meta.clone(), blob.progress.borrow().is_hearsay);
            let _ = reply.send(Some(Told { meta, is_hearsay }));
            return;
        }
        let waiting = self.seeking.entry(digest).or_default();
        waiting.retain(|it| !it.is_closed());
        waiting.push(reply);
        self.input(Input::Seek { namespace, digest });
    }

    /// Peers have said what a metainfo is, or will not.
    pub(super) fn sought(&mut self, digest: Digest, found: Option<(MetaInfo, PeerId)>) {
        let told = found.map(|(meta, from)| {
            tracing::info!(%digest, ?from, "a peer told the metainfo, as nobody else did");
            let is_hearsay = true;
            Told { meta, is_hearsay }
        });
        for reply in self.seeking.remove(&digest).unwrap_or_default() {
            let _ = reply.send(told.clone());
        }
    }

    /// A peer asks for a part of a metainfo.
    pub(super) fn tell_metainfo(&mut self, conn: ConnId, digest: Digest, offset: u32) {
        let link = self.links.get(&conn);
        if link.is_none_or(|link| link.is_behind()) {
            return;
        }
        if let Some(blob) = self.blobs.get(&digest) {
            // What is not proved is not told on.
            let progress = blob.progress.borrow();
            let is_sure = blob.meta.is_whole() && (progress.sealed || !progress.is_hearsay);
            drop(progress);
            let message = part(digest, is_sure.then_some(&blob.meta), offset);
            self.send(conn, message);
            return;
        }
        let Ok(room) = self.asked.clone().try_acquire_owned() else {
            return;
        };
        let store = self.parts.store.clone();
        self.task(async move {
            let _room = room;
            let meta = match store.status(digest).await {
                Ok(BlobStatus::Sealed { meta }) => Some(meta),
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(?digest, %error, "the store cannot be asked");
                    None
                }
            };
            let message = part(digest, meta.as_ref(), offset);
            Note::Tell { conn, message }
        });
    }

    /// Asks the discovery, until it answers, whether a metainfo by hearsay is right.
    pub(super) fn confirm(&self, namespace: Namespace, meta: MetaInfo) -> DropGuard {
        let (discovery, notes) = (self.parts.discovery.clone(), self.notes.clone());
        let digest = meta.digest();
        self.guarded(async move {
            let (mut pause, mut is_first) = (CONFIRM, true);
            let note = loop {
                match discovery.open_metainfo(&namespace, digest, None).await {
                    Ok(said) if said.continues(&meta) => break Note::Confirmed { meta },
                    Ok(said) if contradict(&said, &meta) => {
                        let is_sure = true;
                        break Note::Contradicted { meta, is_sure };
                    }
                    Err(DiscoveryError::Damaged { .. }) => {
                        let is_sure = true;
                        break Note::Contradicted { meta, is_sure };
                    }
                    // An origin that takes it in and has not come as far.
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%digest, %error, "hearsay so far"),
                }
                if std::mem::take(&mut is_first)
                    && let Some(notes) = notes.upgrade()
                {
                    let _ = notes.send(Note::Unconfirmed { digest }).await;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(CONFIRM_MAX);
            };
            if let Some(notes) = notes.upgrade() {
                let _ = notes.send(note).await;
            }
        })
    }

    /// A piece does not fit its metainfo: either it is wrong, or the metainfo is. Says whether the one
    /// who sent it is to blame.
    pub(super) fn doubt(&mut self, digest: Digest, conn: ConnId) -> bool {
        let Some(blob) = self.blobs.get_mut(&digest) else {
            return true;
        };
        let is_hearsay = blob.progress.borrow().is_hearsay;
        if is_hearsay {
            blob.misfits += 1;
            let before = blob.misfit_from.replace(conn);
            if before.is_some_and(|before| before != conn) {
                blob.misfits = blob.misfits.max(MISFITS);
            }
        }
        let is_enough = blob.misfits >= MISFITS;
        let (meta, namespace) = (blob.meta.clone(), blob.namespace.clone());
        let (discovery, notes) = (self.parts.discovery.clone(), self.notes.clone());
        self.parts.tasks.spawn(async move {
            let said = discovery.open_metainfo(&namespace, digest, None).await;
            let is_sure = said.is_ok_and(|said| contradict(&said, &meta));
            if let Some(notes) = notes.upgrade().filter(|_| is_sure || is_enough) {
                let _ = notes.send(Note::Contradicted { meta, is_sure }).await;
            }
        });
        !is_hearsay
    }

    /// The discovery says the same as a peer did.
    pub(super) fn confirmed(&mut self, meta: &MetaInfo) {
        let blob = self.blobs.get(&meta.digest());
        if let Some(blob) = blob.filter(|blob| meta.continues(&blob.meta)) {
            blob.progress.send_modify(|it| it.is_hearsay = false);
        }
    }

    /// The metainfo that a piece did not fit is not the blob's, or may well not be.
    pub(super) fn contradicted(&mut self, meta: &MetaInfo, is_sure: bool) {
        let digest = meta.digest();
        let is_wrong = |blob: &Blob| {
            let progress = blob.progress.borrow();
            blob.meta.continues(meta) && !progress.sealed && (is_sure || progress.is_hearsay)
        };
        if self.blobs.get(&digest).is_some_and(is_wrong) {
            let why = ReadError::gone(digest, "its metainfo was wrong: open it again");
            self.discard(digest, why);
        }
    }
}

/// Whether two metainfos cannot both be right.
fn contradict(one: &MetaInfo, other: &MetaInfo) -> bool {
    !one.continues(other) && !other.continues(one)
}

/// The part of the encoding from `offset` on.
fn part(digest: Digest, meta: Option<&MetaInfo>, offset: u32) -> Message {
    let total = meta.map_or(0, MetaInfo::encoded_len);
    let from = total.min(offset as usize);
    let part = meta.map(|meta| meta.encoded_part(from, Message::MAX_PART));
    let number = |bytes: usize| u32::try_from(bytes).expect("at most MAX_ENCODED");
    Message::MetaInfo {
        digest,
        total: number(total),
        offset: number(from),
        part: part.unwrap_or_default(),
    }
}
