//! What a QUIC endpoint has lived through.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the endpoint was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct QuicStats {
    /// Connections that we opened.
    pub dialed: u64,
    /// Connections that others opened, after their handshake.
    pub accepted: u64,
    /// Handshakes of others that failed: no certificate or a foreign one, another protocol, or
    /// silence.
    pub handshake_failures: u64,
    /// Attempts turned away because too many handshakes ran, or because nobody took the finished
    /// connections.
    pub refused: u64,
    /// Connections that were closed because the other side broke the protocol.
    pub protocol_errors: u64,
}

/// The counters behind [`QuicStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) dialed: Counter,
    pub(super) accepted: Counter,
    pub(super) handshake_failures: Counter,
    pub(super) refused: Counter,
    pub(super) protocol_errors: Counter,
}

impl Counters {
    pub(super) fn snapshot(&self) -> QuicStats {
        QuicStats {
            dialed: self.dialed.get(),
            accepted: self.accepted.get(),
            handshake_failures: self.handshake_failures.get(),
            refused: self.refused.get(),
            protocol_errors: self.protocol_errors.get(),
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
