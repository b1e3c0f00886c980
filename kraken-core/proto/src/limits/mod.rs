//! Limits on rates and on memory, and fair shares of both.

pub mod bucket;
pub mod budget;
pub mod fair;
pub mod shaper;
