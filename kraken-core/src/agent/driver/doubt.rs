//! Metainfo from peers and for peers, and what to make of it when a piece does not fit.

use std::time::Duration;

use kraken_proto::{ConnId, Digest, Input, Message, MetaInfo, Namespace, PeerId};
use kraken_storage::BlobStatus;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::{Driver, Note};
use crate::agent::hearsay::{Sources, Told};

/// How often the discovery is asked whether what a peer said is right.
const CONFIRM: Duration = Duration::from_secs(2);

impl Driver {
    pub(super) fn sources(&self) -> Sources {
        Sources {
            discovery: self.parts.discovery.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Somebody waits for what peers say.
    pub(super) fn seek(
        &mut self,
        namespace: Namespace,
        digest: Digest,
        known: usize,
        reply: oneshot::Sender<Option<Told>>,
    ) {
        // Another one may have opened it meanwhile.
        let blob = self.blobs.get(&digest);
        if let Some(blob) = blob.filter(|it| it.meta.encoded_len() > known) {
            let (meta, is_hearsay) = (blob.meta.clone(), blob.progress.borrow().is_hearsay);
            let _ = reply.send(Some(Told { meta, is_hearsay }));
            return;
        }
        let waiting = self.seeking.entry(digest).or_default();
        waiting.retain(|it| !it.is_closed());
        waiting.push(reply);
        self.input(Input::Seek {
            namespace,
            digest,
            known,
        });
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
            let message = part(digest, Some(&blob.meta), offset);
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
                Ok(BlobStatus::Sealed { meta } | BlobStatus::Partial { meta, .. }) => Some(meta),
                Ok(BlobStatus::Absent) => None,
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
            let said = loop {
                match discovery.open_metainfo(&namespace, digest, None).await {
                    Ok(said) => break said,
                    Err(error) => tracing::debug!(%digest, %error, "hearsay so far"),
                }
                tokio::time::sleep(CONFIRM).await;
            };
            let note = if contradict(&said, &meta) {
                Note::Contradicted { digest, meta }
            } else {
                Note::Confirmed { digest }
            };
            if let Some(notes) = notes.upgrade() {
                let _ = notes.send(note).await;
            }
        })
    }

    /// A piece does not fit its metainfo: either it is wrong, or the metainfo is.
    pub(super) fn doubt(&self, digest: Digest) {
        let Some(blob) = self.blobs.get(&digest) else {
            return;
        };
        let (meta, namespace) = (blob.meta.clone(), blob.namespace.clone());
        let (discovery, notes) = (self.parts.discovery.clone(), self.notes.clone());
        let is_hearsay = blob.progress.borrow().is_hearsay;
        self.parts.tasks.spawn(async move {
            let said = discovery.open_metainfo(&namespace, digest, None).await;
            let is_contradicted = match said {
                Ok(said) => contradict(&said, &meta),
                Err(_) => is_hearsay,
            };
            if let Some(notes) = notes.upgrade().filter(|_| is_contradicted) {
                let _ = notes.send(Note::Contradicted { digest, meta }).await;
            }
        });
    }

    /// The metainfo that a piece did not fit is not the blob's, or may well not be.
    pub(super) fn contradicted(&mut self, digest: Digest, meta: &MetaInfo) {
        let blob = self.blobs.get(&digest);
        if blob.is_some_and(|it| it.meta.continues(meta) && !it.progress.borrow().sealed) {
            let reason = "its metainfo was wrong: open the blob again";
            self.discard(digest, reason.into());
        }
    }
}

/// Whether two metainfos cannot both be right.
fn contradict(one: &MetaInfo, other: &MetaInfo) -> bool {
    !one.continues(other) && !other.continues(one)
}

/// The part of the encoding from `offset` on.
fn part(digest: Digest, meta: Option<&MetaInfo>, offset: u32) -> Message {
    let encoding = meta.map(MetaInfo::encode).unwrap_or_default();
    Message::metainfo_part(digest, &encoding, offset)
}
