//! What origins tell each other about what they hold, so that lost copies are made again.

use kraken_proto::ring::compare::Prints;
use kraken_proto::{Digest, Namespace};
use serde::{Deserialize, Serialize};

/// The most blobs in one question or answer.
pub const MOST: usize = 1000;

/// An origin asks another one what that one holds of its share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldingsAsked {
    /// Who asks.
    pub asker: String,
    /// The members of the ring as the asker sees it: both count shares by these.
    pub members: Vec<String>,
    /// Which blobs to list; only the prints when it is absent.
    #[serde(default)]
    pub list: Option<Listed>,
}

/// Which of the blobs that the asker owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Listed {
    /// Those of one bucket that the other one owns as well, from the one after `after` on.
    Bucket {
        /// The bucket.
        bucket: u8,
        /// Where to go on.
        after: Option<Digest>,
    },
    /// Those that the other one does not own, from the one after `after` on.
    Strays {
        /// Where to go on.
        after: Option<Digest>,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holdings {
    /// Of the blobs that both own.
    #[serde(default)]
    pub prints: Prints,
    /// How many blobs the asker owns and the other one does not.
    #[serde(default)]
    pub strays: u64,
    /// What was to be listed, at most [`MOST`], by the digests.
    #[serde(default)]
    pub blobs: Vec<Held>,
}

/// A blob that an origin holds whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The blob.
    pub digest: Digest,
    /// The namespaces under which it is not in the backend yet.
    #[serde(default)]
    pub unwritten: Vec<Namespace>,
}

/// An origin asks which of some blobs another one holds whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// At most [`MOST`].
    pub digests: Vec<Digest>,
}
