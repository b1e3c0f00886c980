//! What peers say to each other. Every length and index is bounded in [`codec`] and only there.

pub mod codec;
pub mod message;
