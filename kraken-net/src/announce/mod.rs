//! Announcing to trackers over HTTP, and answering as one.

pub mod client;
mod reports;
pub mod server;

pub use client::TrackerClient;
pub use server::{TrackerApi, router};

/// The media type of [`kraken_proto::MetaInfo::encode`].
pub const METAINFO_TYPE: &str = "application/vnd.kraken.metainfo";

#[cfg(test)]
mod tests;
