//! What a host counts, in the Prometheus text format or in a registry of the program's.

use kraken_proto::{Event, PeerRole};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[cfg(all(feature = "http", feature = "fs"))]
use crate::origin::Counts;

/// Where [`Metrics::register_in`] takes its registry from.
pub use prometheus_client;

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
    /// What an origin counts besides.
    #[cfg(all(feature = "http", feature = "fs"))]
    of_origin: Option<Counts>,
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
            #[cfg(all(feature = "http", feature = "fs"))]
            of_origin: None,
        };
        let mut registry = std::mem::take(&mut metrics.registry);
        metrics.register_in(&mut registry);
        metrics.registry = registry;
        metrics
    }

    /// Adds what an origin counts besides.
    #[cfg(all(feature = "http", feature = "fs"))]
    pub(crate) fn with_origin(mut self, counts: Counts) -> Self {
        counts.register(&mut self.registry);
        self.of_origin = Some(counts);
        self
    }

    /// Shows all counters in a registry of the program's as well, from now on.
    ///
    /// ```no_run
    /// # fn example(agent: &kraken_core::Agent) {
    /// use kraken_core::metrics::prometheus_client::registry::Registry;
    ///
    /// let mut registry = Registry::with_prefix("deployd");
    /// // deployd_kraken_links and so on; where several agents are in one process, a label tells them apart.
    /// let kraken = registry.sub_registry_with_prefix("kraken");
    /// agent.metrics().register_in(kraken);
    /// # }
    /// ```
    pub fn register_in(&self, registry: &mut Registry) {
        self.register(registry);
        #[cfg(all(feature = "http", feature = "fs"))]
        if let Some(counts) = &self.of_origin {
            counts.register(registry);
        }
    }

    /// All counters in the text format of OpenMetrics, which ends with the line `# EOF`: leave that out
    /// where more follows.
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

    /// How often a peer owed pieces and was silent.
    pub fn peers_stalled(&self) -> u64 {
        self.stalled.get()
    }

    /// Blobs of which the last piece came.
    pub fn blobs_completed(&self) -> u64 {
        self.completed.get()
    }

    /// Connections to peers at this moment.
    pub fn open_links(&self) -> usize {
        usize::try_from(self.links.get()).unwrap_or_default()
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

    fn register(&self, registry: &mut Registry) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_of_the_programs_shows_what_the_text_does() {
        let metrics = Metrics::new();
        #[cfg(all(feature = "http", feature = "fs"))]
        let metrics = metrics.with_origin(Counts::new());
        let mut registry = Registry::with_prefix("kraken");
        metrics.register_in(&mut registry);
        // Counted after it was registered.
        metrics.damaged();
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("kraken_blobs_damaged_total 1"), "{text}");
        #[cfg(all(feature = "http", feature = "fs"))]
        assert!(text.contains("kraken_tasks_dead 0"), "{text}");
        assert_eq!(text, metrics.text());
    }

    #[test]
    fn every_number_can_be_asked_for() {
        let metrics = Metrics::new();
        metrics.links(3);
        metrics.evicted();
        metrics.completed.inc();
        metrics.stalled.inc_by(2);
        assert_eq!(metrics.open_links(), 3);
        assert_eq!(metrics.blobs_evicted(), 1);
        assert_eq!(metrics.blobs_completed(), 1);
        assert_eq!(metrics.peers_stalled(), 2);
    }
}
