//! A swarm in virtual time: the machines that ship, under a network that they cannot tell from a
//! real one, replayable from one seed.
//!
//! [`run`] takes a [`Plan`] (how many hosts, which blobs, which faults) and gives a [`Report`] (how
//! long each host took, what the origins sent, which rule was broken). The schedulers and the
//! tracker are the real ones; only sockets, disks and clocks are played.
//!
//! The network is at least as hard as the one that the policies were chosen in: each host's egress
//! and ingress are serialised apart at a cap and in order, every pair has its own round trip of
//! 0.5 to 1 ms, each message costs 0.1 ms, a piece is hashed and written at 1,000 MB/s before it
//! can be passed on, and a connection costs a round trip.

mod events;
mod host;
mod invariants;
mod net;
mod plan;
mod report;
mod shell;
mod world;

pub use plan::{Crash, Faults, Plan};
pub use report::{Percentiles, Report};
pub use world::run;
