//! One connection: a task that receives, one that sends messages, and some that send pieces
//! ([`Uploads`]).
//!
//! All of them end when the connection does; the receiving one tells the driver. The driver never
//! waits for a link: a peer that does not drain its outbox is closed.

use std::sync::Arc;

use kraken_net::{Frame, NetError};
use kraken_proto::{CloseReason, ConnId, Digest, Input, Message, PeerId};
use tokio::sync::{Semaphore, mpsc};

use super::driver::Note;
use super::rooms::Rooms;
use super::uploads::{Upload, Uploads};
use crate::dynamic::{DynConn, DynStore};
use crate::tasks::Tasks;

/// Messages that may wait for a peer before it counts as not draining.
const OUTBOX: usize = 4096;

/// More messages than a peer that keeps up lets wait.
const BEHIND: usize = 256;

/// One connection, as the driver holds it.
pub(crate) struct Link {
    outbox: mpsc::Sender<Message>,
    uploads: Arc<Uploads>,
    conn: Arc<dyn DynConn>,
}

/// What a link's tasks share.
#[derive(Clone)]
pub(crate) struct LinkContext {
    pub(crate) id: ConnId,
    pub(crate) conn: Arc<dyn DynConn>,
    pub(crate) notes: mpsc::Sender<Note>,
    pub(crate) store: Arc<dyn DynStore>,
    /// Room for pieces that are being sent, over all peers.
    pub(crate) buffers: Rooms,
    /// Room for pieces that have arrived and are not written yet, in KiB, over all peers.
    pub(crate) arrivals: Arc<Semaphore>,
}

impl Link {
    /// Starts the tasks of a connection.
    pub(crate) fn start(tasks: &Tasks, cx: LinkContext) -> Self {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        tasks.spawn(receive(cx.clone()));
        tasks.spawn(send_messages(cx.conn.clone(), messages));
        Self {
            outbox,
            conn: cx.conn.clone(),
            uploads: Uploads::new(tasks, cx),
        }
    }

    /// Queues a message; false when the peer does not drain its outbox.
    pub(crate) fn send(&self, message: Message) -> bool {
        self.outbox.try_send(message).is_ok()
    }

    /// Whether the peer has let so much wait that it is to get nothing that can be left out.
    pub(crate) fn is_behind(&self) -> bool {
        OUTBOX - self.outbox.capacity() > BEHIND
    }

    /// Queues a piece. The scheduler bounds how many a peer may have waiting.
    pub(crate) fn send_piece(&self, upload: Upload) {
        self.uploads.push(upload);
    }

    /// Does not send a piece that has not been begun; false when there is none.
    pub(crate) fn cancel_piece(&self, digest: Digest, piece: u32) -> bool {
        self.uploads.cancel(digest, piece)
    }

    /// Who is on the other side.
    pub(crate) fn peer(&self) -> PeerId {
        self.conn.peer()
    }

    /// Closes the connection.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.conn.close(reason.as_str());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.uploads.clear();
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
