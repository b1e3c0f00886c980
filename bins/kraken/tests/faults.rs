//! What must stay true when processes die, peers lie, storage is away and input is wrong: over
//! real QUIC, TLS, files and processes on loopback.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

#[path = "../../../kraken-registry/tests/conformance/mod.rs"]
mod conformance;

mod common;
#[path = "clients/namespace.rs"]
mod namespace;

#[path = "faults/certificates.rs"]
mod certificates;
#[path = "faults/demo.rs"]
mod demo;
#[path = "faults/doctor.rs"]
mod doctor;
#[path = "faults/explain.rs"]
mod explain;
#[path = "faults/full.rs"]
mod full;
#[path = "faults/garbage.rs"]
mod garbage;
#[path = "faults/health.rs"]
mod health;
#[path = "faults/idle.rs"]
mod idle;
#[path = "faults/input.rs"]
mod input;
#[path = "faults/kill.rs"]
mod kill;
#[path = "faults/login.rs"]
mod login;
#[path = "faults/logs.rs"]
mod logs;
#[path = "faults/operators.rs"]
mod operators;
#[path = "faults/outage.rs"]
mod outage;
#[path = "faults/rebuild.rs"]
mod rebuild;
#[path = "faults/registries.rs"]
mod registries;
#[path = "faults/remotes.rs"]
mod remotes;
#[path = "faults/replicate.rs"]
mod replicate;
#[path = "faults/rogue.rs"]
mod rogue;
#[path = "faults/rules.rs"]
mod rules;
#[path = "faults/siege.rs"]
mod siege;
#[path = "faults/simulate.rs"]
mod simulate;
#[path = "faults/sources.rs"]
mod sources;
#[path = "faults/tags.rs"]
mod tags;
#[cfg(feature = "otel")]
#[path = "faults/traces.rs"]
mod traces;
#[path = "faults/upstream.rs"]
mod upstream;
