#![doc = include_str!("../README.md")]

pub mod agent;
mod clock;
mod dynamic;
pub mod error;
pub mod metrics;
#[cfg(all(feature = "http", feature = "fs"))]
pub mod origin;
mod seldom;
pub mod sweep;
mod tasks;
#[cfg(feature = "http")]
pub mod tracker;

pub use agent::{Agent, AgentBuilder, BlobReader, FetchError, Limits, SpawnError};
pub use error::{OpenError, ReadError};
pub use kraken_net as net;
pub use kraken_proto as proto;
pub use kraken_proto::{Config, Digest, MetaInfo, Namespace, PeerId, PeerInfo, Zone};
pub use kraken_storage as storage;
pub use metrics::Metrics;
#[cfg(all(feature = "http", feature = "fs"))]
pub use origin::Origin;
pub use sweep::Swept;
#[cfg(feature = "http")]
pub use tracker::Tracker;
