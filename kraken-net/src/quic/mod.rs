//! Peers over QUIC: one connection per pair, mutual TLS 1.3, ALPN `kraken/1`.
//!
//! The dialer opens one bidirectional stream, the control stream. Both sides first send an empty
//! frame on it: so the stream exists for the acceptor before anybody has something to say, and
//! the dialer learns that its certificate was accepted. Then frames of [`kraken_proto::wire::codec`]
//! follow, both ways. Each piece travels on a unidirectional stream of its own: a frame
//! [`kraken_proto::Message::Piece`], then the bytes it announces, then the end.

mod batch;
mod conn;
mod endpoint;
mod frame;
mod options;
mod probe;
mod socket;
mod tls;

pub use crate::stats::TransportStats as QuicStats;
pub use conn::QuicConn;
pub use endpoint::{HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, KEEP_ALIVE, Quic};
pub use options::QuicOptions;
pub use probe::QuicPath;
pub use socket::BUFFER as SOCKET_BUFFER;

#[cfg(test)]
mod tests;
