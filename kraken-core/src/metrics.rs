//! What a host counts, in the Prometheus text format.

use kraken_proto::{Event, PeerRole};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The counters of one host. Each handle has its own registry, so that many can share a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    received_origin: Counter,
    received_agent: Counter,
    received_ahead: Counter,
    sent: Counter,
    rejected: Counter,
    banned: Counter,
    stalled: Counter,
    completed: Counter,
    evicted: Counter,
    damaged: Counter,
    links: Gauge,
    offload: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("kraken"),
            received_origin: Counter::default(),
            received_agent: Counter::default(),
            received_ahead: Counter::default(),
            sent: Counter::default(),
            rejected: Counter::default(),
            banned: Counter::default(),
            stalled: Counter::default(),
            completed: Counter::default(),
            evicted: Counter::default(),
            damaged: Counter::default(),
            links: Gauge::default(),
            offload: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    /// Where an origin adds what it counts besides.
    #[cfg(all(feature = "http", feature = "fs"))]
    pub(crate) fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// All counters in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all text");
        text
    }

    /// Bytes of verified pieces that came from origins.
    pub fn bytes_from_origins(&self) -> u64 {
        self.received_origin.get()
    }

    /// Bytes of verified pieces that came from agents.
    pub fn bytes_from_agents(&self) -> u64 {
        self.received_agent.get()
    }

    /// Bytes of verified pieces that came before a reader asked for them, of blobs of which only
    /// parts are fetched.
    pub fn bytes_ahead(&self) -> u64 {
        self.received_ahead.get()
    }

    /// Bytes of pieces that were sent to peers.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.get()
    }

    /// Pieces whose bytes were wrong.
    pub fn pieces_rejected(&self) -> u64 {
        self.rejected.get()
    }

    /// How often a peer was banned.
    pub fn peers_banned(&self) -> u64 {
        self.banned.get()
    }

    pub(crate) fn event(&self, event: &Event) {
        if let Event::PieceDone {
            bytes,
            is_ahead: true,
            ..
        } = event
        {
            self.received_ahead.inc_by(*bytes);
        }
        match event {
            Event::PieceDone {
                bytes,
                role: PeerRole::Origin,
                ..
            } => {
                self.received_origin.inc_by(*bytes);
            }
            Event::PieceDone {
                bytes,
                role: PeerRole::Agent,
                ..
            } => {
                self.received_agent.inc_by(*bytes);
            }
            Event::PieceSent { bytes, .. } => drop(self.sent.inc_by(*bytes)),
            Event::PeerBanned { .. } => drop(self.banned.inc()),
            Event::PeerStalled { .. } => drop(self.stalled.inc()),
            Event::BlobDone { .. } => drop(self.completed.inc()),
            _ => {}
        }
    }

    /// Blobs that were removed to make room.
    pub fn blobs_evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Blobs that turned out damaged on disk, and were dropped.
    pub fn blobs_damaged(&self) -> u64 {
        self.damaged.get()
    }

    pub(crate) fn damaged(&self) {
        self.damaged.inc();
    }

    pub(crate) fn evicted(&self) {
        self.evicted.inc();
    }

    pub(crate) fn rejected(&self) {
        self.rejected.inc();
    }

    pub(crate) fn links(&self, count: usize) {
        self.links.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether the kernel splits what is sent over UDP; nothing where nothing is.
    pub(crate) fn offload(&self, offload: Option<bool>) {
        self.offload.set(offload.map_or(-1, i64::from));
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let counters = [
            (
                "piece_bytes_from_origins",
                "Bytes of verified pieces from origins",
                &self.received_origin,
            ),
            (
                "piece_bytes_from_agents",
                "Bytes of verified pieces from agents",
                &self.received_agent,
            ),
            (
                "piece_bytes_ahead",
                "Bytes of verified pieces that came before a reader asked for them, of blobs that are read in parts",
                &self.received_ahead,
            ),
            (
                "piece_bytes_sent",
                "Bytes of pieces sent to peers",
                &self.sent,
            ),
            (
                "pieces_rejected",
                "Pieces whose bytes were wrong",
                &self.rejected,
            ),
            (
                "peers_banned",
                "Bans of peers that lied or broke the protocol",
                &self.banned,
            ),
            (
                "peers_stalled",
                "Times that a peer owed pieces and was silent",
                &self.stalled,
            ),
            (
                "blobs_completed",
                "Blobs of which the last piece came",
                &self.completed,
            ),
            (
                "blobs_evicted",
                "Blobs that were removed to make room for others",
                &self.evicted,
            ),
            (
                "blobs_damaged",
                "Blobs that turned out damaged on disk, and were dropped to be fetched anew",
                &self.damaged,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("links", "Connections to peers", self.links.clone());
        registry.register(
            "quic_gso",
            "Whether the kernel splits what QUIC sends into datagrams: at 0 sending costs three times the processor time; -1 without QUIC",
            self.offload.clone(),
        );
    }
}
