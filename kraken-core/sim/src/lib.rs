//! A cluster in virtual time: the machines that ship, under a network that they cannot tell from a
//! real one, replayable from one seed.
//!
//! [`run`] takes a [`Plan`] (how many hosts, which blobs, which faults) and gives a [`Report`] (how
//! long each host took, what the origins sent, which rule was broken). The schedulers and the
//! trackers are the real ones; only sockets, disks and clocks are played.
//!
//! The network is at least as hard as the one that the policies were chosen in: each host's egress
//! and ingress are serialised apart at a cap and in order, every pair has its own round trip of
//! 0.5 to 1 ms, each message costs 0.1 ms, a piece is hashed and written at 1,000 MB/s before it
//! can be passed on, and a connection costs a round trip. On top of that a plan can ask for
//! jitter, losses, noise, pauses, slow hosts, thin paths, oversubscribed racks, crashes, cuts and
//! outages.

mod agenda;
mod events;
mod file;
mod host;
mod invariants;
mod net;
mod output;
mod plan;
#[cfg(feature = "plot")]
mod plot;
mod report;
mod shell;
mod trace;
mod world;

pub use file::PlanError;
pub use plan::{
    Arrival, Blob, Churn, Crash, Faults, KilledOrigin, Network, Partition, Pauses, Plan, Racks,
    Slow, ThinPaths,
};
#[cfg(feature = "plot")]
pub use plot::{PlotError, PlotFile};
pub use report::{Percentiles, Ratios, Report};
pub use world::run;
