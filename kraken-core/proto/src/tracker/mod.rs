//! The tracker: announce in, peer list out.

mod choice;
#[cfg(test)]
mod crowd;
pub mod handout;
pub mod history;
mod hosts;
pub mod pace;
mod peers;
#[cfg(test)]
mod properties;
pub mod report;
pub mod reports;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod view;
mod zones;

use serde::{Deserialize, Serialize};

use crate::blob::digest::Digest;
use crate::blob::namespace::Namespace;
use crate::peer::PeerInfo;

/// What a host tells its tracker: who it is, and how far each of its blobs is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnounceRequest {
    /// The host.
    pub peer: PeerInfo,
    /// Its blobs, at most [`AnnounceRequest::MAX_BLOBS`].
    pub blobs: Vec<AnnounceBlob>,
}

impl AnnounceRequest {
    /// The most blobs in one announce.
    pub const MAX_BLOBS: usize = 256;
}

/// One blob in an announce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnounceBlob {
    /// What the blob belongs to.
    pub namespace: Namespace,
    /// The blob.
    pub digest: Digest,
    /// How far the host is with it.
    pub state: AnnounceState,
    /// How many peers the host is connected to for this blob; as many as hosts should have when it
    /// wants no more.
    pub links: u32,
    /// How many of the blob's pieces it has, where it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// It wants pieces, and none of its peers has one that it lacks: links do not help it, other
    /// peers do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needy: bool,
}

/// How many of a blob's pieces a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Pieces that it has.
    pub have: u32,
    /// Pieces that the blob has, as far as the host knows.
    pub of: u32,
}

/// How far a host is with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnnounceState {
    /// It wants pieces.
    Leeching,
    /// It has every piece.
    Seeding,
    /// It has left the swarm.
    Left,
}

/// The tracker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnounceReply {
    /// When to announce again, in milliseconds.
    pub interval_ms: u64,
    /// Whom to connect to, per blob that was announced as leeching.
    pub handouts: Vec<Handout>,
}

/// Whom to connect to for one blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handout {
    /// The blob.
    pub digest: Digest,
    /// Peers, those to dial first in front; origins are among them.
    pub peers: Vec<PeerInfo>,
}
