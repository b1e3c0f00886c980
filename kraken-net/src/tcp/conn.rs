//! One connection to a peer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kraken_proto::wire::codec;
use kraken_proto::{Message, PeerId};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::timeout;

use super::endpoint::Shared;
use super::link::{Delivery, End, Link};
use super::outgoing::Standing;
use super::reader::Reader;
use super::record::MAX_CHUNK;
use super::writer::Writer;
use crate::identity::Identity;
use crate::transport::{Frame, NetError, PeerConn, SEND_STALL};

/// Messages that wait for the network.
const OUTBOX: usize = 16;

/// Bytes of a piece that may have passed our limits and wait for the network: so the writer finds
/// the next chunk when it has written one.
const AHEAD: usize = 2 * MAX_CHUNK;

/// A connection over TCP. Dropping it closes it.
pub struct TcpConn {
    link: Arc<Link>,
    outbox: mpsc::Sender<Message>,
    inbox: Mutex<mpsc::UnboundedReceiver<Delivery>>,
}

impl TcpConn {
    /// Starts the tasks of a connection on which both sides have proved who they are. They end
    /// with the connection.
    pub(super) fn start<S>(stream: S, peer: PeerId, remote: SocketAddr, endpoint: Shared) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Sync + 'static,
    {
        let tasks = endpoint.tasks.clone();
        let link = Arc::new(Link::new(peer, remote, endpoint));
        let (read, write) = tokio::io::split(stream);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let (reader, inbox) = Reader::new(link.clone(), read);
        let writer = Writer {
            link: link.clone(),
            stream: write,
            outbox: messages,
        };
        tasks.spawn(reader.run());
        tasks.spawn(writer.run());
        Self {
            link,
            outbox,
            inbox: Mutex::new(inbox),
        }
    }

    /// Closes the connection once the other side's certificate is revoked.
    pub(super) fn end_when(&self, identity: Identity, chain: Vec<CertificateDer<'static>>) {
        let link = self.link.clone();
        self.link.endpoint.tasks.spawn(async move {
            tokio::select! {
                () = identity.until_revoked(chain) => {
                    link.end(End::Closed("the certificate has been revoked".to_string()));
                }
                () = link.ended.cancelled() => {}
            }
        });
    }

    /// Closes a connection that nobody here takes.
    pub(super) fn turn_away(&self) {
        self.close("too many connections wait here");
    }

    async fn send_piece(&self, frame: Frame) -> Result<(), NetError> {
        let Message::Piece { digest, .. } = frame.message else {
            return Err(NetError::Local("a message on a piece's stream".to_string()));
        };
        let upload = self.link.endpoint.throttle.upload();
        let passage = upload.piece(digest, frame.first);
        let mut rest = frame.payload.len();
        // The piece takes no place in the round before its first bytes may go.
        let mut chunk = rest.min(passage.chunk()).min(MAX_CHUNK);
        passage.pass(chunk).await;
        let piece = PieceOut::push(&self.link, &frame);
        loop {
            piece.let_pass(chunk);
            rest -= chunk;
            if rest == 0 {
                return piece.wait(|standing| standing.is_none()).await;
            }
            piece
                .wait(|it| it.is_none_or(|it| it.ready < AHEAD))
                .await?;
            chunk = rest.min(passage.chunk()).min(MAX_CHUNK);
            passage.pass(chunk).await;
        }
    }
}

impl PeerConn for TcpConn {
    fn peer(&self) -> PeerId {
        self.link.peer
    }

    fn remote_addr(&self) -> SocketAddr {
        self.link.remote
    }

    async fn send(&self, frame: Frame) -> Result<(), NetError> {
        frame.check()?;
        // A task writes, so that a send which is given up never leaves half a record behind.
        let sent = async {
            if matches!(frame.message, Message::Piece { .. }) {
                self.send_piece(frame).await
            } else {
                let sent = self.outbox.send(frame.message).await;
                sent.map_err(|_| self.link.error())
            }
        };
        tokio::select! {
            biased;
            () = self.link.ended.cancelled() => Err(self.link.error()),
            sent = sent => sent,
        }
    }

    async fn recv(&self) -> Result<Frame, NetError> {
        let mut inbox = self.inbox.lock().await;
        let delivery = tokio::select! {
            biased;
            delivery = inbox.recv() => delivery,
            () = self.link.ended.cancelled() => None,
        };
        let Delivery { frame, .. } = delivery.ok_or_else(|| self.link.error())?;
        if matches!(frame.message, Message::Piece { .. }) {
            self.link.undelivered.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(frame)
    }

    fn close(&self, reason: &str) {
        self.link.end(End::Closed(reason.to_string()));
    }
}

impl Drop for TcpConn {
    fn drop(&mut self) {
        self.close("no longer needed");
    }
}

impl fmt::Debug for TcpConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConn")
            .field("peer", &self.link.peer)
            .field("remote", &self.link.remote)
            .finish_non_exhaustive()
    }
}

/// A piece on its way out. One that is dropped early is abandoned, and the connection goes on.
struct PieceOut<'a> {
    link: &'a Link,
    key: u64,
    /// The piece has come further.
    moved: Arc<Notify>,
}

impl<'a> PieceOut<'a> {
    fn push(link: &'a Link, frame: &Frame) -> Self {
        let moved = Arc::new(Notify::new());
        let message = Bytes::from(codec::encode(&frame.message)).slice(codec::PREFIX..);
        let bytes = frame.payload.clone();
        let mut outgoing = link.outgoing();
        let key = outgoing.push(message, bytes, frame.first, moved.clone());
        Self { link, key, moved }
    }

    fn let_pass(&self, bytes: usize) {
        self.link.outgoing().let_pass(self.key, bytes);
        self.link.wake.notify_one();
    }

    /// Waits until the piece has come far enough. A peer that takes nothing is left: one that
    /// keeps the window of this piece shut, or has no room for any piece.
    async fn wait(&self, far_enough: impl Fn(Option<Standing>) -> bool) -> Result<(), NetError> {
        let sent = || self.link.chunks_sent.load(Ordering::Relaxed);
        loop {
            let before = sent();
            if far_enough(self.link.outgoing().standing(self.key)) {
                return Ok(());
            }
            if timeout(SEND_STALL, self.moved.notified()).await.is_ok() {
                continue;
            }
            let standing = self.link.outgoing().standing(self.key);
            if standing.is_some_and(|it| it.held_up) || sent() == before {
                self.link.end(End::Closed("silent".to_string()));
                return Err(self.link.error());
            }
        }
    }
}

impl Drop for PieceOut<'_> {
    fn drop(&mut self) {
        self.link.outgoing().give_up(self.key);
        // An abandoned piece is to be mentioned.
        self.link.wake.notify_one();
    }
}
