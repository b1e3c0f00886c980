//! What the tasks of a connection and its handle share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kraken_proto::PeerId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::endpoint::Shared;
use super::outgoing::{MESSAGES, Outgoing, cost};
use crate::transport::{Frame, MAX_PIECES_IN_FLIGHT, NetError};

/// One connection.
pub(super) struct Link {
    pub(super) peer: PeerId,
    pub(super) remote: SocketAddr,
    pub(super) endpoint: Shared,
    outgoing: Mutex<Outgoing<Arc<Notify>>>,
    /// There is something to write.
    pub(super) wake: Notify,
    /// Fires after `end` is set, or when the whole transport is closed.
    pub(super) ended: CancellationToken,
    end: OnceLock<End>,
    /// Pieces on their way to us or waiting for [`crate::PeerConn::recv`].
    held_pieces: AtomicU32,
    /// What the messages count that wait for [`crate::PeerConn::recv`].
    held_messages: AtomicU32,
    /// Pieces that wait for [`crate::PeerConn::recv`].
    pub(super) undelivered: AtomicUsize,
    /// Chunks of pieces so far: who is silent does not move them.
    pub(super) chunks_sent: AtomicU64,
    pub(super) chunks_received: AtomicU64,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// We closed it, with this word to the other side.
    Closed(String),
    /// The other side broke this rule.
    Breach(String),
    /// The other side closed it for this reason, or it broke.
    Lost(String),
}

/// A frame that has arrived, and the room that it takes until somebody has it.
pub(super) struct Delivery {
    pub(super) frame: Frame,
    pub(super) _room: Room,
}

impl Link {
    pub(super) fn new(peer: PeerId, remote: SocketAddr, endpoint: Shared) -> Self {
        Self {
            peer,
            remote,
            outgoing: Mutex::new(Outgoing::new()),
            wake: Notify::new(),
            ended: endpoint.closed.child_token(),
            endpoint,
            end: OnceLock::new(),
            held_pieces: AtomicU32::new(0),
            held_messages: AtomicU32::new(0),
            undelivered: AtomicUsize::new(0),
            chunks_sent: AtomicU64::new(0),
            chunks_received: AtomicU64::new(0),
        }
    }

    pub(super) fn outgoing(&self) -> MutexGuard<'_, Outgoing<Arc<Notify>>> {
        let outgoing = self.outgoing.lock();
        outgoing.unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection; the first end stays.
    pub(super) fn end(&self, end: End) {
        if self.ended.is_cancelled() {
            return;
        }
        let breach = match &end {
            End::Breach(what) => Some(what.clone()),
            _ => None,
        };
        if self.end.set(end).is_err() {
            return;
        }
        if let Some(what) = breach {
            self.endpoint.counters.protocol_errors.add();
            tracing::warn!(peer = ?self.peer, remote = %self.remote, what, "closing: the peer broke the protocol");
        }
        self.ended.cancel();
    }

    /// How the connection ended. One that nobody ended was closed with its transport.
    pub(super) fn how_it_ended(&self) -> &End {
        self.end
            .get_or_init(|| End::Closed("shutting down".to_string()))
    }

    /// Why the connection is gone.
    pub(super) fn error(&self) -> NetError {
        let peer = self.peer;
        match self.how_it_ended() {
            End::Closed(_) => NetError::Closed,
            End::Breach(what) => NetError::Protocol {
                peer,
                what: what.clone(),
            },
            End::Lost(reason) => NetError::Lost {
                peer,
                reason: reason.clone(),
            },
        }
    }
}

/// The place of a frame in our memory. Dropping it lets the other side send another.
pub(super) struct Room {
    link: Arc<Link>,
    size: Size,
}

#[derive(Clone, Copy)]
enum Size {
    Piece,
    /// What the message counts.
    Message(u32),
}

impl Room {
    /// For a piece; `None` when the other side sends more than it may.
    pub(super) fn for_piece(link: &Arc<Link>) -> Option<Self> {
        Self::take(link, Size::Piece)
    }

    /// For a message of so many bytes; `None` when the other side sends more than it may.
    pub(super) fn for_message(link: &Arc<Link>, len: usize) -> Option<Self> {
        Self::take(link, Size::Message(cost(len)))
    }

    fn take(link: &Arc<Link>, size: Size) -> Option<Self> {
        let (held, takes, most) = match size {
            Size::Piece => (&link.held_pieces, 1, MAX_PIECES_IN_FLIGHT),
            Size::Message(cost) => (&link.held_messages, cost, MESSAGES),
        };
        // Only the reader takes, so that nobody comes between.
        if held.load(Ordering::Relaxed).saturating_add(takes) > most {
            return None;
        }
        held.fetch_add(takes, Ordering::Relaxed);
        let link = link.clone();
        Some(Self { link, size })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // No longer held before the other side can hear of it.
        let tell = match self.size {
            Size::Piece => {
                self.link.held_pieces.fetch_sub(1, Ordering::Relaxed);
                self.link.outgoing().owe_room();
                true
            }
            Size::Message(cost) => {
                self.link.held_messages.fetch_sub(cost, Ordering::Relaxed);
                self.link.outgoing().owe_messages(cost)
            }
        };
        if tell {
            self.link.wake.notify_one();
        }
    }
}
