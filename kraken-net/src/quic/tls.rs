//! TLS for peers over QUIC: both sides show a certificate of the cluster, names do not matter.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

use crate::identity::{Identity, IdentityError};

/// The protocol's name and version in the handshake. A change that an old peer cannot read takes
/// the next number.
pub(super) const ALPN: &[u8] = b"kraken/1";

/// What quinn needs to accept connections.
pub(super) fn server(identity: &Identity) -> Result<Arc<QuicServerConfig>, IdentityError> {
    let config = identity.server_config(&[ALPN])?;
    let config = QuicServerConfig::try_from(config)
        .map_err(|error| IdentityError::Tls(error.to_string()))?;
    Ok(Arc::new(config))
}

/// What quinn needs to open connections.
pub(super) fn client(identity: &Identity) -> Result<Arc<QuicClientConfig>, IdentityError> {
    let mut config = identity.peer_client_config(ALPN)?;
    config.enable_sni = false;
    let config = QuicClientConfig::try_from(config)
        .map_err(|error| IdentityError::Tls(error.to_string()))?;
    Ok(Arc::new(config))
}
