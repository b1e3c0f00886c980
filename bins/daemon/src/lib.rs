//! What Kraken's processes have in common.
//!
//! Each process is a configuration and a `start`: [`agent`], [`origin`], [`tracker`], [`proxy`]
//! and [`build_index`]. The binaries run one of them; `kraken dev` runs all of them in one process.

pub mod access;
mod address;
pub mod agent;
pub mod answers;
mod arguments;
pub mod backends;
pub mod build_index;
pub mod check;
pub mod config;
pub mod console;
pub mod descriptors;
pub mod dns;
pub mod doctor;
pub mod explain;
pub mod garbage;
mod guard;
pub mod leave;
pub mod limits;
pub mod log;
mod members;
mod metrics;
pub mod origin;
mod pages;
pub mod pattern;
pub mod preload;
pub mod problems;
pub mod process;
mod profile;
pub mod proxy;
pub mod queue;
pub mod reload;
pub mod remotes;
pub mod settings;
mod sockets;
pub mod store;
pub mod tags_backend;
pub mod tls;
pub mod traces;
pub mod tracker;
mod units;

pub use arguments::ConfigArgs;
pub use config::{ConfigError, OriginEntry, Tls};
pub use limits::{LimitsConfig, PeerRate, Rate};
pub use process::{StartError, run};
pub use settings::Sources;
