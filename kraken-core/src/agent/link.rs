//! One connection: a task that receives, one that sends messages, and one that sends pieces.
//!
//! All three end when the connection does; the receiving one tells the driver. The driver never
//! waits for a link: a peer that does not drain its outbox is closed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kraken_net::{Frame, NetError};
use kraken_proto::{CloseReason, ConnId, Digest, Input, Message};
use tokio::sync::{Semaphore, mpsc};

use super::driver::Note;
use crate::dynamic::{DynConn, DynStore};
use crate::tasks::Tasks;

/// Messages that may wait for a peer before it counts as not draining.
const OUTBOX: usize = 4096;

/// Pieces on their way to one peer at once: enough to fill the path, few enough that a cancel
/// still helps.
const SENDING: usize = 2;

/// How long one piece may take to be handed to the network.
const SEND_PATIENCE: Duration = Duration::from_secs(60);

/// One connection, as the driver holds it.
#[derive(Debug)]
pub(crate) struct Link {
    outbox: mpsc::Sender<Message>,
    pieces: mpsc::UnboundedSender<Upload>,
    cancelled: Arc<Mutex<BTreeSet<(Digest, u32)>>>,
    conn: ConnHandle,
}

/// A piece to read and send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upload {
    pub(crate) digest: Digest,
    pub(crate) piece: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// What a link's tasks share.
#[derive(Clone)]
pub(crate) struct LinkContext {
    pub(crate) id: ConnId,
    pub(crate) conn: Arc<dyn DynConn>,
    pub(crate) notes: mpsc::Sender<Note>,
    pub(crate) store: Arc<dyn DynStore>,
    /// Pieces read for sending at once, over all peers: bounds memory.
    pub(crate) buffers: Arc<Semaphore>,
    /// Room for pieces that have arrived and are not written yet, in KiB, over all peers.
    pub(crate) arrivals: Arc<Semaphore>,
}

impl Link {
    /// Starts the tasks of a connection.
    pub(crate) fn start(tasks: &Tasks, cx: LinkContext) -> Self {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let (pieces, uploads) = mpsc::unbounded_channel();
        let cancelled = Arc::new(Mutex::new(BTreeSet::new()));
        tasks.spawn(receive(cx.clone()));
        tasks.spawn(send_messages(cx.conn.clone(), messages));
        let uploads = Arc::new(tokio::sync::Mutex::new(uploads));
        for _ in 0..SENDING {
            tasks.spawn(send_pieces(cx.clone(), uploads.clone(), cancelled.clone()));
        }
        Self {
            outbox,
            pieces,
            cancelled,
            conn: ConnHandle(cx.conn),
        }
    }

    /// Queues a message; false when the peer does not drain its outbox.
    pub(crate) fn send(&self, message: Message) -> bool {
        self.outbox.try_send(message).is_ok()
    }

    /// Queues a piece. The scheduler bounds how many a peer may have waiting.
    pub(crate) fn send_piece(&self, upload: Upload) {
        self.lock_cancelled().remove(&(upload.digest, upload.piece));
        // The receiver is gone only with the connection, and then nobody wants the piece.
        let _ = self.pieces.send(upload);
    }

    /// Does not send a piece that has not been begun.
    pub(crate) fn cancel_piece(&self, digest: Digest, piece: u32) {
        self.lock_cancelled().insert((digest, piece));
    }

    /// Closes the connection.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.conn.0.close(reason.as_str());
    }

    fn lock_cancelled(&self) -> std::sync::MutexGuard<'_, BTreeSet<(Digest, u32)>> {
        self.cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct ConnHandle(Arc<dyn DynConn>);

impl std::fmt::Debug for ConnHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.peer())
    }
}

async fn receive(cx: LinkContext) {
    loop {
        match cx.conn.recv().await {
            Ok(frame) => {
                let kib = u32::try_from(frame.payload.len().div_ceil(1024)).unwrap_or(u32::MAX);
                let Ok(room) = cx.arrivals.clone().acquire_many_owned(kib).await else {
                    return;
                };
                let conn = cx.id;
                if cx
                    .notes
                    .send(Note::Frame { conn, frame, room })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(peer = ?cx.conn.peer(), %error, "link down");
                if matches!(error, NetError::Protocol { .. }) {
                    let _ = cx
                        .notes
                        .send(Note::Input(Input::Violation { conn: cx.id }))
                        .await;
                }
                let _ = cx
                    .notes
                    .send(Note::Input(Input::ConnDown { conn: cx.id }))
                    .await;
                return;
            }
        }
    }
}

async fn send_messages(conn: Arc<dyn DynConn>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        // A failure shows in `receive` as well, which tells the driver.
        if conn.send(Frame::control(message)).await.is_err() {
            return;
        }
    }
}

async fn send_pieces(
    cx: LinkContext,
    uploads: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Upload>>>,
    cancelled: Arc<Mutex<BTreeSet<(Digest, u32)>>>,
) {
    loop {
        let Some(upload) = uploads.lock().await.recv().await else {
            return;
        };
        let Upload { digest, piece, .. } = upload;
        let dropped = cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(digest, piece));
        let sent = !dropped && send_piece(&cx, upload).await;
        let input = Input::PieceSent {
            digest,
            piece,
            conn: cx.id,
            sent,
        };
        if cx.notes.send(Note::Input(input)).await.is_err() {
            return;
        }
    }
}

async fn send_piece(cx: &LinkContext, upload: Upload) -> bool {
    let Upload {
        digest,
        piece,
        offset,
        len,
    } = upload;
    let Ok(_buffer) = cx.buffers.acquire().await else {
        return false;
    };
    let payload: Bytes = match cx.store.read(digest, offset, len).await {
        Ok(payload) => payload,
        Err(error) => {
            tracing::warn!(?digest, piece, %error, "a piece cannot be read for a peer");
            return false;
        }
    };
    let frame = Frame {
        message: Message::Piece { digest, piece, len },
        payload,
    };
    match tokio::time::timeout(SEND_PATIENCE, cx.conn.send(frame)).await {
        Ok(sent) => sent.is_ok(),
        Err(_) => {
            // A peer that takes nothing would keep the buffer from all others.
            cx.conn.close(CloseReason::Silent.as_str());
            false
        }
    }
}
