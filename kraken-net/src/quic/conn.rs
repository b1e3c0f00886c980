//! One connection to a peer.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use kraken_proto::wire::codec;
use kraken_proto::{Message, PeerId};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::endpoint;
use super::frame::{self, FrameError};
use crate::transport::{Frame, MAX_PIECES_IN_FLIGHT, NetError, PeerConn, SEND_STALL, canonical};

/// Control messages overtake pieces that wait in the same connection.
const CONTROL_PRIORITY: i32 = 2;

/// Among the pieces, those that go first: a blob that has just begun is not held up by one that has
/// been at it for long.
const FIRST_PRIORITY: i32 = 1;

/// Frames that wait for [`PeerConn::recv`]: at most this many times [`codec::MAX_FRAME`] bytes
/// beside the pieces, which are counted apart.
const INBOX: usize = 64;
/// Control frames that wait for the network.
const OUTBOX: usize = 16;
/// Bytes of pieces that lie between us and a peer's acknowledgements, in KiB: 10 Gbit/s at 6 ms. A peer
/// that is slower than the disk would otherwise have all that [`SEND_WINDOW`] allows waiting for it.
///
/// [`SEND_WINDOW`]: super::endpoint
const SEND_ROOM: u32 = 8 << 10;
/// The longest reason that is sent or shown, in bytes.
const MAX_REASON: usize = 256;

/// Application error codes of QUIC; the reason beside them is what people read.
pub(super) mod code {
    use quinn::VarInt;

    pub(in crate::quic) const NORMAL: VarInt = VarInt::from_u32(0);
    pub(in crate::quic) const PROTOCOL: VarInt = VarInt::from_u32(1);
    pub(in crate::quic) const SHUTDOWN: VarInt = VarInt::from_u32(2);
    pub(in crate::quic) const WRONG_PEER: VarInt = VarInt::from_u32(3);
    pub(in crate::quic) const BUSY: VarInt = VarInt::from_u32(4);
    pub(in crate::quic) const ABANDONED: VarInt = VarInt::from_u32(5);
    /// The certificate is not one of a peer.
    pub(in crate::quic) const WRONG_ROLE: VarInt = VarInt::from_u32(6);
    pub(in crate::quic) const REVOKED: VarInt = VarInt::from_u32(7);
}

/// A connection over QUIC. Dropping it closes it.
pub struct QuicConn {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Message>,
    inbox: Mutex<mpsc::Receiver<Delivery>>,
}

/// A frame, and for a piece the permission to hold its bytes.
type Delivery = (Frame, Option<OwnedSemaphorePermit>);

/// What the connection's tasks and its handle share.
struct Shared {
    conn: Connection,
    peer: PeerId,
    remote: SocketAddr,
    endpoint: endpoint::Shared,
    /// The rule that the other side broke.
    broken: OnceLock<String>,
    /// Pieces that wait for [`PeerConn::recv`].
    undelivered: AtomicUsize,
    /// What is left of [`SEND_ROOM`].
    room: Arc<Semaphore>,
    /// Pieces that the peer has acknowledged.
    acknowledged: AtomicU64,
}

impl QuicConn {
    /// Starts the tasks of a connection whose control stream is open. They end with the
    /// connection.
    pub(super) fn start(
        conn: Connection,
        peer: PeerId,
        (control_send, control_recv): (SendStream, RecvStream),
        endpoint: endpoint::Shared,
    ) -> Self {
        let shared = Arc::new(Shared {
            peer,
            remote: canonical(conn.remote_address()),
            conn,
            endpoint,
            broken: OnceLock::new(),
            undelivered: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(SEND_ROOM as usize)),
            acknowledged: AtomicU64::new(0),
        });
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let (deliveries, inbox) = mpsc::channel(INBOX);
        tokio::spawn(shared.clone().write_control(control_send, messages));
        tokio::spawn(
            shared
                .clone()
                .read_control(control_recv, deliveries.clone()),
        );
        tokio::spawn(shared.clone().accept_pieces(deliveries));
        Self {
            shared,
            outbox,
            inbox: Mutex::new(inbox),
        }
    }

    /// Closes a connection that nobody here takes.
    pub(super) fn turn_away(&self) {
        self.shared
            .close(code::BUSY, "too many connections wait here");
    }
}

impl PeerConn for QuicConn {
    fn peer(&self) -> PeerId {
        self.shared.peer
    }

    fn remote_addr(&self) -> SocketAddr {
        self.shared.remote
    }

    async fn send(&self, frame: Frame) -> Result<(), NetError> {
        frame.check()?;
        if self.shared.conn.close_reason().is_some() {
            return Err(self.shared.error());
        }
        if matches!(frame.message, Message::Piece { .. }) {
            self.shared.send_piece(frame).await
        } else {
            // A task writes, so that a send which is given up never leaves half a frame behind.
            let sent = self.outbox.send(frame.message).await;
            sent.map_err(|_| self.shared.error())
        }
    }

    async fn ready(&self, bytes: usize) -> Result<(), NetError> {
        self.shared.room_for(bytes).await.map(drop)
    }

    async fn recv(&self) -> Result<Frame, NetError> {
        let delivery = self.inbox.lock().await.recv().await;
        let (frame, permit) = delivery.ok_or_else(|| self.shared.error())?;
        if permit.is_some() {
            self.shared.undelivered.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(frame)
    }

    fn close(&self, reason: &str) {
        self.shared.close(code::NORMAL, reason);
    }
}

impl Drop for QuicConn {
    fn drop(&mut self) {
        self.shared.close(code::NORMAL, "no longer needed");
    }
}

impl fmt::Debug for QuicConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConn")
            .field("peer", &self.shared.peer)
            .field("remote", &self.shared.remote)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn send_piece(self: &Arc<Self>, frame: Frame) -> Result<(), NetError> {
        let Message::Piece { digest, .. } = frame.message else {
            return Err(NetError::Local("a message on a piece's stream".to_string()));
        };
        let room = if frame.first {
            None
        } else {
            Some(self.room_for(frame.payload.len()).await?)
        };
        let passage = self.endpoint.throttle.upload().piece(digest, frame.first);
        let mut rest = frame.payload;
        // The stream opens with the first bytes that may go: receivers time out silent ones.
        let mut chunk = rest.split_to(rest.len().min(passage.chunk()));
        passage.pass(chunk.len()).await;
        let opened = self.in_time(self.conn.open_uni()).await?;
        let mut stream = PieceStream {
            stream: opened.map_err(|_| self.error())?,
            finished: false,
        };
        if frame.first {
            let _ = stream.stream.set_priority(FIRST_PRIORITY);
        }
        let header = Bytes::from(codec::encode(&frame.message));
        self.write(&mut stream, header).await?;
        loop {
            self.write(&mut stream, chunk).await?;
            if rest.is_empty() {
                break;
            }
            chunk = rest.split_to(rest.len().min(passage.chunk()));
            passage.pass(chunk.len()).await;
        }
        stream.finished = stream.stream.finish().is_ok();
        if let Some(room) = room {
            let acknowledged = stream.stream.stopped();
            let shared = self.clone();
            tokio::spawn(async move {
                // Also when the connection ends.
                let _ = acknowledged.await;
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                drop(room);
            });
        }
        Ok(())
    }

    /// Waits until the peer has acknowledged enough of the pieces before one of so many bytes. A peer
    /// that acknowledges none for [`SEND_STALL`] is left.
    async fn room_for(&self, bytes: usize) -> Result<OwnedSemaphorePermit, NetError> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(SEND_ROOM);
        let mut room = pin!(self.room.clone().acquire_many_owned(kib.min(SEND_ROOM)));
        loop {
            let before = self.acknowledged.load(Ordering::Relaxed);
            if let Ok(room) = timeout(SEND_STALL, &mut room).await {
                return Ok(room.expect("the semaphore is never closed"));
            }
            if self.acknowledged.load(Ordering::Relaxed) == before {
                self.close(code::NORMAL, "silent");
                return Err(self.error());
            }
        }
    }

    async fn write(&self, stream: &mut PieceStream, bytes: Bytes) -> Result<(), NetError> {
        match self.in_time(stream.stream.write_chunk(bytes)).await? {
            Ok(()) => Ok(()),
            Err(quinn::WriteError::Stopped(_)) => {
                // Receivers read every piece to its end or close the connection.
                self.breach("a piece was refused in the middle");
                Err(self.error())
            }
            Err(_) => Err(self.error()),
        }
    }

    /// Waits until the peer takes something. One that takes nothing is left.
    async fn in_time<T>(&self, taken: impl Future<Output = T>) -> Result<T, NetError> {
        timeout(SEND_STALL, taken).await.map_err(|_| {
            self.close(code::NORMAL, "silent");
            self.error()
        })
    }

    async fn write_control(
        self: Arc<Self>,
        mut stream: SendStream,
        mut messages: mpsc::Receiver<Message>,
    ) {
        let _ = stream.set_priority(CONTROL_PRIORITY);
        loop {
            // Without a handle, the connection is closed and there is nothing to say.
            let message = tokio::select! {
                message = messages.recv() => message,
                _ = self.conn.closed() => None,
            };
            let Some(message) = message else {
                return;
            };
            let frame = Bytes::from(codec::encode(&message));
            if let Err(error) = stream.write_chunk(frame).await {
                if matches!(error, quinn::WriteError::Stopped(_)) {
                    self.breach("the control stream was stopped");
                }
                return;
            }
        }
    }

    async fn read_control(
        self: Arc<Self>,
        mut stream: RecvStream,
        deliveries: mpsc::Sender<Delivery>,
    ) {
        let mut reader = frame::control(&mut stream);
        loop {
            match reader.message().await {
                Ok(message) => {
                    let delivery = (Frame::control(message), None);
                    if deliveries.send(delivery).await.is_err() {
                        return;
                    }
                }
                Err(FrameError::Protocol(what)) => return self.breach(&what),
                Err(FrameError::Abandoned) => return self.breach("the control stream was reset"),
                Err(FrameError::Lost) => return,
            }
        }
    }

    /// A permit per piece, from its stream to [`PeerConn::recv`]: no more streams are taken up
    /// than pieces may lie in memory.
    async fn accept_pieces(self: Arc<Self>, deliveries: mpsc::Sender<Delivery>) {
        let room = Arc::new(Semaphore::new(MAX_PIECES_IN_FLIGHT as usize));
        loop {
            let permit = room.clone().acquire_owned();
            let permit = permit.await.expect("the semaphore is never closed");
            let Ok(stream) = self.conn.accept_uni().await else {
                return;
            };
            tokio::spawn(self.clone().read_piece(stream, permit, deliveries.clone()));
        }
    }

    async fn read_piece(
        self: Arc<Self>,
        mut stream: RecvStream,
        permit: OwnedSemaphorePermit,
        deliveries: mpsc::Sender<Delivery>,
    ) {
        // Pieces that nobody takes, or that wait at the gate, fill the connection's window: then the
        // peer cannot send.
        let gate = self.endpoint.throttle.download();
        let blame = || self.undelivered.load(Ordering::Relaxed) == 0 && !gate.is_limited();
        match frame::piece(&mut stream, blame)
            .frame(gate, &self.endpoint.buffers)
            .await
        {
            Ok(frame) => {
                self.undelivered.fetch_add(1, Ordering::Relaxed);
                // Fails when the handle is gone, and with it whoever wanted the piece.
                let _ = deliveries.send((frame, Some(permit))).await;
            }
            Err(FrameError::Protocol(what)) => self.breach(&what),
            Err(FrameError::Abandoned) => {
                tracing::debug!(peer = ?self.peer, "the peer gave up sending a piece");
            }
            Err(FrameError::Lost) => {}
        }
    }

    /// Closes the connection because the other side broke a rule.
    fn breach(&self, what: &str) {
        if self.conn.close_reason().is_none() && self.broken.set(what.to_string()).is_ok() {
            self.endpoint.counters.protocol_errors.add();
            tracing::warn!(peer = ?self.peer, remote = %self.remote, what, "closing: the peer broke the protocol");
            self.close(code::PROTOCOL, what);
        }
    }

    fn close(&self, code: VarInt, reason: &str) {
        let end = reason.floor_char_boundary(MAX_REASON);
        self.conn.close(code, &reason.as_bytes()[..end]);
    }

    /// Why the connection is gone.
    fn error(&self) -> NetError {
        let peer = self.peer;
        if let Some(what) = self.broken.get() {
            let what = what.clone();
            return NetError::Protocol { peer, what };
        }
        match self.conn.close_reason() {
            Some(ConnectionError::LocallyClosed) => NetError::Closed,
            Some(error) => NetError::Lost {
                peer,
                reason: reason_of(&error),
            },
            None => NetError::Lost {
                peer,
                reason: "the connection is ending".to_string(),
            },
        }
    }
}

/// The other side's reason, or what the library knows. The text comes from a stranger and lands in
/// logs, so it is cut and freed of control characters.
pub(super) fn reason_of(error: &ConnectionError) -> String {
    let text = match error {
        ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        other => other.to_string(),
    };
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_REASON)
        .collect()
}

/// A piece's stream. One that is dropped early is reset: an end would make a short piece of it.
struct PieceStream {
    stream: SendStream,
    finished: bool,
}

impl Drop for PieceStream {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(code::ABANDONED);
        }
    }
}
