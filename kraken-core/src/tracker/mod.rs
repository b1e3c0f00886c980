//! A tracker: tells peers whom to connect to, and stays out of the data path.

pub mod look;
mod metainfo;
mod service;

pub use service::{OriginSeen, Tracker, TrackerBuilder};
