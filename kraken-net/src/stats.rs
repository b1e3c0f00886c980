//! What a transport has lived through.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts since the transport was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TransportStats {
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
    /// Datagrams that were handed to the kernel; none over TCP.
    pub datagrams: u64,
    /// Calls in which they were: with fewer than some 20 datagrams per call at full speed, sending
    /// costs more than it should.
    pub sends: u64,
    /// Whether the kernel splits what is sent in one call into datagrams (GSO); false over TCP.
    /// Without it QUIC costs three times the processor time.
    pub offload: bool,
}

/// The counters behind [`TransportStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) dialed: Counter,
    pub(crate) accepted: Counter,
    pub(crate) handshake_failures: Counter,
    pub(crate) refused: Counter,
    pub(crate) protocol_errors: Counter,
    pub(crate) datagrams: Counter,
    pub(crate) sends: Counter,
    pub(crate) offload: AtomicBool,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> TransportStats {
        TransportStats {
            dialed: self.dialed.get(),
            accepted: self.accepted.get(),
            handshake_failures: self.handshake_failures.get(),
            refused: self.refused.get(),
            protocol_errors: self.protocol_errors.get(),
            datagrams: self.datagrams.get(),
            sends: self.sends.get(),
            offload: self.offload.load(Ordering::Relaxed),
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, many: usize) {
        self.0.fetch_add(many as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
