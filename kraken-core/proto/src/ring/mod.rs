//! Who owns a digest, who is there, and whether they hold the same.

pub mod compare;
pub mod health;
pub mod rendezvous;
