//! How a collector of garbage talks to origins.

use kraken_proto::{Digest, Namespace};
use serde::{Deserialize, Serialize};

/// A step with some blobs that nobody refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GarbageAsked {
    /// The name that the collector chose for these blobs.
    pub token: u64,
    /// What is to be done.
    pub step: GarbageStep,
    /// With which blobs, at most [`MOST`](super::MOST).
    pub digests: Vec<Digest>,
}

/// What is to be done with garbage; the answer names the blobs with which it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum GarbageStep {
    /// From now on they count as not there, except those that somebody asked about lately or that are
    /// being worked on.
    Condemn {
        /// How long nobody may have asked about them, in milliseconds.
        grace_ms: u64,
    },
    /// What was condemned goes from this origin's disk.
    Remove,
    /// What was condemned goes from the storage behind this namespace.
    RemoveStored {
        /// One of those that are kept there.
        namespace: Namespace,
    },
    /// They are free again.
    Release,
}

/// A page of blobs, to find garbage among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GarbagePage {
    /// In the storage behind this namespace; without one, on this origin's disk.
    pub namespace: Option<Namespace>,
    /// Behind this one.
    pub after: Option<Digest>,
}

/// In which storages the blobs of namespaces are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    /// At most [`MOST`](super::MOST).
    pub namespaces: Vec<Namespace>,
}
