//! What to try again, and when.

pub mod backoff;
