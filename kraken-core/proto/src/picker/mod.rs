//! Which piece next, from whom.

pub(crate) mod inflight;
pub(crate) mod rarest;
pub(crate) mod readahead;
pub(crate) mod window;
