//! How Kraken's processes talk to each other.
//!
//! - [`transport`]: links between peers; over QUIC, or in memory for tests.
//! - [`discovery`]: who has a blob, and what it consists of.

pub mod discovery;
pub mod transport;

pub use discovery::{Discovery, DiscoveryError};
pub use transport::{Frame, NetError, PeerConn, Transport};
