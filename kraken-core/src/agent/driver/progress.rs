//! How far a blob is, as its readers see it.

use kraken_proto::Bitfield;

use crate::error::ReadError;

/// How far a blob is.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) have: Bitfield,
    /// All pieces are there and durable.
    pub(crate) sealed: bool,
    /// Nothing more will come.
    pub(crate) failed: Option<ReadError>,
    /// Peers said what its metainfo is: until it is whole, nothing of it is proved.
    pub(crate) is_hearsay: bool,
    /// How many pieces, from the first on, are proved by what is no hearsay.
    pub(crate) sure: u32,
}

impl Progress {
    /// Whether a piece may be read: what a peer said of a blob is proved by its last piece only, so that
    /// up to then its bytes may be anything.
    pub(crate) fn is_proved(&self, piece: u32) -> bool {
        let is_sure = !self.is_hearsay || piece < self.sure;
        self.sealed || (self.have.has(piece) && is_sure)
    }
}
