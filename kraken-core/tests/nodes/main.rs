//! Agents, origins and trackers in one process, over real sockets or a network in memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cold;
mod common;
mod disk;
mod heal;
mod hearsay;
mod limits;
mod origins;
mod parts;
mod peers;
mod swarm;
mod transports;
