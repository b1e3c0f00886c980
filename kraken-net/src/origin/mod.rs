//! Origins over HTTP: what they offer, and how to find the one that has a blob.

pub mod api;
mod appending;
mod body;
pub mod client;
pub mod cluster;
pub mod garbage;
pub mod holdings;
pub mod members;
mod range;
pub mod server;
mod uploads;

pub use api::{BlobRead, Copies, OriginApi, Prefetch};
pub use client::OriginClient;
pub use cluster::OriginCluster;
pub use garbage::{GarbageAsked, GarbagePage, GarbageStep, Places};
pub use holdings::{Digests, Held, Holdings, HoldingsAsked, Listed, MOST};
pub use members::RingMember;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use range::fuzz as fuzz_ranges;
pub use server::router;

/// The header with an upload's id.
pub(crate) const UPLOAD_ID: &str = "upload-id";
/// The header with an upload's length so far, in bytes.
pub(crate) const UPLOAD_OFFSET: &str = "upload-offset";
/// The header with the owners of a blob, comma separated.
pub(crate) const LOCATIONS: &str = "origin-locations";
/// The header that says that an origin hands its share over and leaves.
pub(crate) const LEAVING: &str = "origin-leaving";
/// The header with a blob's digest, as registries write it.
pub(crate) const CONTENT_DIGEST: &str = "docker-content-digest";

#[cfg(test)]
mod tests;
