//! The registry and the build-index over real HTTP on loopback, with blobs and tags in memory.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail by panicking, as tests do"
)]

mod access;
mod backend;
mod clients;
mod common;
#[path = "../conformance/mod.rs"]
mod conformance;
mod garbage;
mod links;
mod members;
mod odd;
mod parts;
mod pull;
mod push;
mod replicate;
mod ring;
mod rules;
mod tags;
mod tokens;
mod upstream;
