//! What is distributed: blobs, their names, their pieces and the proof of each piece.

pub mod bitfield;
pub mod digest;
pub mod metainfo;
pub mod namespace;
mod open;
pub mod piece;
