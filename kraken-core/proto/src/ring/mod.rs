//! Who owns a digest.

pub mod rendezvous;
