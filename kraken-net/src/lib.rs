//! How Kraken's processes talk to each other.
//!
//! - [`transport`]: links between peers; [`quic`] in production, [`mem`] for tests.
//! - [`throttle`]: limits on the bytes that links carry.
//! - [`discovery`]: who has a blob, and what it consists of; [`announce`] asks trackers.
//! - [`origin`]: the origins' HTTP face, and a client that falls through a ring of them.
//! - [`identity`] and [`authority`]: the certificates by which all of them know each other.
//!
//! Everything inside a cluster is mutual TLS 1.3 against one certificate authority. No process
//! default of the TLS library is used: two providers in one build do no harm here.

#[cfg(feature = "http")]
pub mod announce;
#[cfg(feature = "tls")]
pub mod authority;
pub mod discovery;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "tls")]
pub mod identity;
pub mod mem;
#[cfg(feature = "http")]
pub mod origin;
#[cfg(feature = "quic")]
pub mod quic;
pub mod throttle;
pub mod transport;

#[cfg(feature = "tls")]
pub use authority::CertAuthority;
pub use discovery::{Discovery, DiscoveryError};
#[cfg(feature = "tls")]
pub use identity::{Identity, IdentityError};
pub use mem::{MemNetwork, MemTransport};
#[cfg(feature = "quic")]
pub use quic::Quic;
pub use throttle::Throttle;
pub use transport::{Frame, NetError, PeerConn, Transport};
