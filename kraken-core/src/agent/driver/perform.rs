//! What the scheduler says is done: links, the store, discovery. Nothing here waits; what has to wait
//! becomes a task that sends a note.

use std::future::Future;

use kraken_proto::{
    Action, AnnounceRequest, CloseReason, ConnId, Digest, Event, Input, Message, PeerInfo,
};
use kraken_storage::BlobStatus;
use tracing::{Instrument as _, Span};

use super::{Driver, Note};
use crate::agent::uploads::Upload;
use crate::clock::unix_ms;

impl Driver {
    pub(super) fn perform_all(&mut self) {
        while let Some(action) = self.scheduler.poll_action() {
            self.perform(action);
        }
        self.payload = None;
        self.parts.metrics.links(self.links.len());
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Dial(peer) => self.dial(peer),
            Action::Send { conn, message } => self.send(conn, message),
            Action::SendPiece {
                conn,
                digest,
                piece,
                first,
            } => self.send_piece(conn, digest, piece, first),
            Action::CancelPiece {
                conn,
                digest,
                piece,
            } => self.cancel_piece(conn, digest, piece),
            Action::Store {
                conn,
                digest,
                piece,
            } => self.store(conn, digest, piece),
            Action::Close { conn, reason } => self.close(conn, reason),
            Action::Announce(request) => self.announce(request),
            Action::Lookup { digest } => self.look_up(digest),
            Action::TellMetaInfo {
                conn,
                digest,
                offset,
            } => self.tell_metainfo(conn, digest, offset),
            Action::Sought { digest, found } => self.sought(digest, found),
            Action::Event(event) => self.event(event),
        }
    }

    fn dial(&self, peer: PeerInfo) {
        let transport = self.parts.transport.clone();
        self.task(async move {
            let id = peer.id;
            match transport.dial(peer).await {
                Ok(conn) => Note::Connected {
                    conn,
                    dialled: true,
                },
                Err(error) => {
                    tracing::debug!(peer = ?id, %error, "dial failed");
                    Note::Input(Input::DialFailed { peer: id })
                }
            }
        });
    }

    pub(super) fn send(&mut self, conn: ConnId, message: Message) {
        let drains = self.links.get(&conn).is_none_or(|link| link.send(message));
        if !drains {
            tracing::info!(?conn, "a peer does not drain its outbox");
            self.close(conn, CloseReason::Silent);
        }
    }

    fn send_piece(&self, conn: ConnId, digest: Digest, piece: u32, first: bool) {
        let (Some(link), Some(blob)) = (self.links.get(&conn), self.blobs.get(&digest)) else {
            return;
        };
        let offset = blob.meta.piece_range(piece).start;
        link.send_piece(Upload {
            digest,
            piece,
            offset,
            len: blob.meta.piece_size(piece),
            first,
        });
    }

    fn cancel_piece(&mut self, conn: ConnId, digest: Digest, piece: u32) {
        let link = self.links.get(&conn);
        if link.is_some_and(|link| link.cancel_piece(digest, piece)) {
            let sent = false;
            let input = Input::PieceSent {
                digest,
                piece,
                conn,
                sent,
            };
            // What follows from it is performed with the rest.
            self.scheduler.handle(self.clock.now(), input);
        }
    }

    fn store(&mut self, conn: ConnId, digest: Digest, piece: u32) {
        let (Some((data, room)), Some(blob)) = (self.payload.take(), self.blobs.get(&digest))
        else {
            return;
        };
        let (meta, store, storing) = (
            blob.meta.clone(),
            self.parts.store.clone(),
            self.storing.clone(),
        );
        let (metrics, life) = (self.parts.metrics.clone(), blob.life.clone());
        self.task(async move {
            let _permit = storing.acquire(digest, 1).await;
            // Kept until the bytes are written or given up.
            let _room = room;
            let check = tokio::task::spawn_blocking(move || {
                let result = meta.verify(piece, &data);
                (result, data)
            });
            let Ok((verdict, data)) = check.await else {
                return Note::Input(Input::PieceLost { digest, piece });
            };
            if let Err(error) = verdict {
                tracing::warn!(?digest, %error, "a peer sent a wrong piece");
                metrics.rejected();
                return Note::Input(Input::PieceRejected {
                    digest,
                    piece,
                    conn,
                });
            }
            if life.is_cancelled() {
                return Note::Input(Input::PieceLost { digest, piece });
            }
            match store.write(digest, piece, data).await {
                Ok(()) => Note::Input(Input::PieceStored {
                    digest,
                    piece,
                    conn,
                }),
                Err(error) => Note::WriteFailed {
                    digest,
                    piece,
                    error,
                },
            }
        });
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if let Some(link) = self.links.remove(&conn) {
            link.close(reason);
        }
    }

    fn announce(&self, request: AnnounceRequest) {
        let discovery = self.parts.discovery.clone();
        let span = self.announcing(&request);
        let seldom = self.seldom.clone();
        let announcing = async move {
            let digests = request.blobs.iter().map(|blob| blob.digest).collect();
            match discovery.announce(request).await {
                Ok(reply) => Note::Input(Input::Announced { digests, reply }),
                Err(error) => {
                    if let Some(left_out) = seldom.due(&error.to_string()) {
                        tracing::warn!(%error, left_out, "announce failed");
                    }
                    Span::current().record("otel.status_code", "ERROR");
                    Note::Input(Input::AnnounceFailed { digests })
                }
            }
        };
        self.task(announcing.instrument(span));
    }

    fn look_up(&self, digest: Digest) {
        let store = self.parts.store.clone();
        self.task(async move {
            let meta = match store.status(digest).await {
                Ok(BlobStatus::Sealed { meta }) => Some(meta),
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(?digest, %error, "the store cannot be asked");
                    None
                }
            };
            Note::LookedUp { digest, meta }
        });
    }

    fn event(&mut self, event: Event) {
        self.parts.metrics.event(&event);
        self.tally.event(&event);
        self.history.event(unix_ms(), &event);
        match event {
            Event::BlobDone { digest } => {
                let store = self.parts.store.clone();
                self.task(async move {
                    let result = store.seal(digest).await;
                    Note::Sealed { digest, result }
                });
            }
            Event::PeerBanned { peer, reason } => {
                tracing::warn!(?peer, reason = reason.as_str(), "peer banned");
            }
            other => tracing::trace!(?other, "event"),
        }
    }

    pub(super) fn task(&self, work: impl Future<Output = Note> + Send + 'static) {
        let Some(notes) = self.notes.upgrade() else {
            return;
        };
        self.parts.tasks.spawn(async move {
            let note = work.await;
            // The driver is gone only when everything ends.
            let _ = notes.send(note).await;
        });
    }
}
