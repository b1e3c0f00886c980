//! A tracker: tells peers whom to connect to, and stays out of the data path.

mod metainfo;
mod service;

pub use service::{Tracker, TrackerBuilder};
