//! Peers over TCP: one connection per pair, mutual TLS 1.3, ALPN `kraken-tcp/1`; for networks in
//! which UDP is slow or blocked.
//!
//! What QUIC does with streams, records do here: a head of nine bytes says what follows. Both sides
//! first send an empty record, by which the dialer learns that its certificate was accepted; later,
//! empty records keep a silent connection alive. Messages travel whole. A piece is a stream of its
//! own: a record with its [`kraken_proto::Message::Piece`], then its bytes in records of at most
//! 64 KiB, between which messages and other pieces pass.
//!
//! Three credits keep a receiver's memory its own: how many pieces may be on their way at once
//! ([`crate::transport::MAX_PIECES_IN_FLIGHT`], given back when one is taken), how many bytes of a
//! piece may lie in front of the receiver's limits (given back as they pass), and how many bytes of
//! messages may wait (given back when they are taken). Nobody reads slowly to hold the other side
//! up, since that would hold up everything.

mod conn;
mod endpoint;
mod link;
mod outgoing;
mod reader;
mod record;
mod writer;

pub use conn::TcpConn;
pub use endpoint::{HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, KEEP_ALIVE, Tcp};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use record::fuzz as fuzz_records;

pub use crate::stats::TransportStats as TcpStats;

#[cfg(test)]
mod tests;
