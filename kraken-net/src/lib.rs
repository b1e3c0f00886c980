//! How Kraken's processes talk to each other.
//!
//! - [`transport`]: links between peers; [`quic`] or [`tcp`] or [`dual`], which offers both, in
//!   production; [`mem`] for tests.
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
#[cfg(feature = "quic")]
mod buffers;
#[cfg(feature = "tls")]
pub mod certificate;
#[cfg(test)]
#[cfg(any(feature = "quic", feature = "tcp"))]
mod contract;
#[cfg(feature = "tls")]
mod credentials;
pub mod discovery;
#[cfg(all(feature = "quic", feature = "tcp"))]
pub mod dual;
#[cfg(feature = "tls")]
mod follow;
#[cfg(any(feature = "tcp", feature = "http"))]
mod gate;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "tls")]
pub mod identity;
#[cfg(feature = "tls")]
mod key;
pub mod mem;
#[cfg(feature = "http")]
pub mod origin;
#[cfg(feature = "quic")]
pub mod quic;
#[cfg(feature = "tls")]
pub mod revocation;
#[cfg(feature = "tls")]
pub mod roles;
#[cfg(any(feature = "quic", feature = "tcp"))]
mod stats;
#[cfg(feature = "tcp")]
pub mod tcp;
#[cfg(test)]
#[cfg(feature = "tls")]
mod testing;
pub mod throttle;
pub mod trace;
pub mod transport;
#[cfg(feature = "tls")]
mod verifier;

#[cfg(feature = "tls")]
pub use authority::{CertAuthority, CertRequest};
#[cfg(feature = "tls")]
pub use certificate::CertInfo;
pub use discovery::{Discovery, DiscoveryError};
#[cfg(all(feature = "quic", feature = "tcp"))]
pub use dual::{Dual, PathChoice, PathProbe};
#[cfg(feature = "tls")]
pub use identity::{Identity, IdentityError, IdentityFiles, IdentityStatus};
pub use mem::{MemNetwork, MemTransport};
#[cfg(feature = "quic")]
pub use quic::{Quic, QuicOptions};
#[cfg(feature = "tls")]
pub use revocation::RevocationList;
#[cfg(feature = "tls")]
pub use roles::{Role, RoleError};
#[cfg(any(feature = "quic", feature = "tcp"))]
pub use stats::TransportStats;
#[cfg(feature = "tcp")]
pub use tcp::Tcp;
pub use throttle::Throttle;
pub use transport::{Frame, NetError, PeerConn, Transport};
