//! Links between peers: one per pair, carrying every blob.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kraken_proto::{Message, PeerId, PeerInfo};

use crate::throttle::Throttle;

/// A message, and the bytes that travel beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message.
    pub message: Message,
    /// The piece's bytes: of [`Message::Piece`], and empty for every other message.
    pub payload: Bytes,
    /// Where a piece waits for its turn, it goes before those of which this is not so. Known to
    /// the sender alone.
    pub first: bool,
}

impl Frame {
    /// A message without bytes.
    pub fn control(message: Message) -> Self {
        Self {
            message,
            payload: Bytes::new(),
            first: false,
        }
    }

    /// Whether message and bytes fit each other; every transport refuses a frame in which they do
    /// not.
    pub(crate) fn check(&self) -> Result<(), NetError> {
        let expected = match self.message {
            Message::Piece { len, .. } => len as usize,
            _ => 0,
        };
        if self.payload.len() == expected {
            Ok(())
        } else {
            Err(NetError::Local(format!(
                "a frame that announces {expected} bytes carries {}",
                self.payload.len()
            )))
        }
    }
}

/// How a host reaches its peers, and they it.
///
/// Both sides of a connection know each other's [`PeerId`] from the handshake, and it is proved,
/// not claimed.
pub trait Transport: Send + Sync + 'static {
    /// One connection.
    type Conn: PeerConn;

    /// The identity that this transport proves to others.
    fn local_id(&self) -> PeerId;

    /// Where it listens.
    fn local_addr(&self) -> SocketAddr;

    /// Connects to a peer.
    ///
    /// # Errors
    /// Nobody answers, or somebody else than `peer.id` does ([`NetError::WrongPeer`]).
    fn dial(&self, peer: &PeerInfo) -> impl Future<Output = Result<Self::Conn, NetError>> + Send;

    /// The next connection from outside. Connections that fail their handshake are dropped and
    /// counted, not returned.
    ///
    /// # Errors
    /// [`NetError::Closed`] once the transport is closed.
    fn accept(&self) -> impl Future<Output = Result<Self::Conn, NetError>> + Send;

    /// What limits the bytes of its pieces. The transport keeps one throttle, lets every chunk of
    /// every piece that it sends pass through [`Throttle::upload`] before it goes out, and counts
    /// every chunk that it receives against [`Throttle::download`] before it takes the next: then
    /// limits hold, and blobs share them fairly.
    fn throttle(&self) -> &Throttle;

    /// Whether the kernel splits what is sent over UDP into datagrams (GSO): without it sending costs
    /// three times the processor time, and someone should know. `None` where nothing is sent over
    /// UDP.
    fn offload(&self) -> Option<bool> {
        None
    }

    /// Closes every connection and stops listening.
    fn close(&self);
}

/// A connection to one peer. Methods take `&self`: sends and receives run at once.
pub trait PeerConn: Send + Sync + 'static {
    /// Who is on the other side.
    fn peer(&self) -> PeerId;

    /// Where the other side is.
    fn remote_addr(&self) -> SocketAddr;

    /// Sends a frame. Control messages arrive in the order of the calls; pieces travel on their
    /// own streams, beside each other and the control messages. Returns when the frame is handed
    /// to the network; a slow receiver makes it wait, and the connection ends when a receiver takes
    /// nothing for [`SEND_STALL`].
    ///
    /// # Errors
    /// The connection is gone.
    fn send(&self, frame: Frame) -> impl Future<Output = Result<(), NetError>> + Send;

    /// Waits until a piece of so many bytes could be handed over, as a peer that is slow would
    /// otherwise hold what has been read for it. [`PeerConn::send`] waits for that, too.
    ///
    /// # Errors
    /// The connection is gone.
    fn ready(&self, bytes: usize) -> impl Future<Output = Result<(), NetError>> + Send {
        let _ = bytes;
        std::future::ready(Ok(()))
    }

    /// The next frame. A piece comes when its last byte has; at most
    /// [`MAX_PIECES_IN_FLIGHT`] pieces are on their way at once.
    ///
    /// # Errors
    /// The connection is gone, or the peer broke the protocol ([`NetError::Protocol`]; then the
    /// connection is closed).
    fn recv(&self) -> impl Future<Output = Result<Frame, NetError>> + Send;

    /// Closes the connection; `reason` is shown to the other side.
    fn close(&self, reason: &str);
}

/// The most pieces that one peer may be sending to us at once: bounds the memory that a hostile
/// peer can hold.
pub const MAX_PIECES_IN_FLIGHT: u32 = 16;

/// How long a peer may take nothing of a piece that is sent to it: it would keep the memory from
/// all others. Waiting for the throttle does not count.
pub const SEND_STALL: Duration = Duration::from_secs(60);

/// An IPv4 peer of a dual-stack socket under its IPv4 address.
#[cfg(any(feature = "quic", feature = "tcp"))]
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Why a link failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// This side closed it.
    #[error("closed")]
    Closed,
    /// The other side closed it, or it broke.
    #[error("connection to {peer:?} lost: {reason}")]
    Lost {
        /// The other side.
        peer: PeerId,
        /// What is known of the reason.
        reason: String,
    },
    /// Nobody answers there, or the handshake failed.
    #[error("cannot connect to {addr}: {reason}")]
    Dial {
        /// Where.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Somebody else answers there.
    #[error("{addr} is {found:?}, not {expected:?}")]
    WrongPeer {
        /// Where.
        addr: SocketAddr,
        /// Who was expected.
        expected: PeerId,
        /// Who answered.
        found: PeerId,
    },
    /// The other side broke the protocol.
    #[error("{peer:?} broke the protocol: {what}")]
    Protocol {
        /// The other side.
        peer: PeerId,
        /// The rule.
        what: String,
    },
    /// An address of this host cannot be listened at.
    #[error("cannot bind {protocol} {addr}: {source}")]
    Bind {
        /// UDP or TCP.
        protocol: &'static str,
        /// Which address.
        addr: SocketAddr,
        /// Why, such as [`AddrInUse`](std::io::ErrorKind::AddrInUse).
        source: std::io::Error,
    },
    /// A transport is bound within a tokio runtime, which makes it go.
    #[error("a transport is bound within a tokio runtime: enter one first")]
    NoRuntime,
    /// A certificate or another local thing failed.
    #[error("{0}")]
    Local(String),
}

impl NetError {
    /// Whether dialling again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Dial { .. })
    }

    /// An error where no runtime is entered, instead of tokio's panic.
    #[cfg(any(feature = "quic", feature = "tcp"))]
    pub(crate) fn unless_within_runtime() -> Result<(), Self> {
        let entered = tokio::runtime::Handle::try_current();
        entered.map(drop).map_err(|_| Self::NoRuntime)
    }
}
