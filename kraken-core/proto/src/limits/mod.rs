//! Limits on rates, over virtual time.

pub mod bucket;
