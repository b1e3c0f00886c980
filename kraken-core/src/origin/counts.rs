//! What an origin counts besides what every host does.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The counters of one origin.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    pub(super) backend_reads: Counter,
    dead: Gauge,
    healed: Counter,
    healed_bytes: Counter,
    handed_over: Counter,
    commit_durable: Histogram,
    commit_copies: Histogram,
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            backend_reads: Counter::default(),
            dead: Gauge::default(),
            healed: Counter::default(),
            healed_bytes: Counter::default(),
            handed_over: Counter::default(),
            commit_durable: Histogram::new(buckets()),
            commit_copies: Histogram::new(buckets()),
        }
    }

    /// Shows them in `registry`, with the others of the host.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "backend_reads",
            "Blobs that this origin began to read from its backend",
            self.backend_reads.clone(),
        );
        registry.register(
            "tasks_dead",
            "Write-backs and copies that were given up: see kraken queue ls --dead",
            self.dead.clone(),
        );
        registry.register(
            "blobs_healed",
            "Blobs of its share that this origin lacked and copied from others",
            self.healed.clone(),
        );
        registry.register_with_unit(
            "blobs_healed",
            "What it copied so",
            Unit::Bytes,
            self.healed_bytes.clone(),
        );
        registry.register(
            "blobs_handed_over",
            "Blobs of others' shares that it let go when those had them",
            self.handed_over.clone(),
        );
        registry.register_with_unit(
            "commit_durable",
            "What a commit took until the blob was durable here",
            Unit::Seconds,
            self.commit_durable.clone(),
        );
        registry.register_with_unit(
            "commit_copies",
            "What a commit took from there on until its copies were durable at other origins",
            Unit::Seconds,
            self.commit_copies.clone(),
        );
    }

    /// How many tasks were given up by now.
    pub(super) fn dead(&self, tasks: u64) {
        self.dead.set(i64::try_from(tasks).unwrap_or(i64::MAX));
    }

    /// Whether any task was given up.
    pub(super) fn some_dead(&self) -> bool {
        self.dead.get() > 0
    }

    /// A blob of so many bytes was copied here, as this origin is to have it.
    pub(super) fn healed(&self, bytes: u64) {
        self.healed.inc();
        self.healed_bytes.inc_by(bytes);
    }

    /// A blob went that others own.
    pub(super) fn handed_over(&self) {
        self.handed_over.inc();
    }

    /// A commit that was acknowledged.
    pub(super) fn committed(&self, durable: Duration, copies: Duration) {
        self.commit_durable.observe(durable.as_secs_f64());
        self.commit_copies.observe(copies.as_secs_f64());
    }
}

/// From 5 ms, a small blob on a fast disk, to 11 minutes, a huge one that is copied.
fn buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.005, 2.0, 18)
}
