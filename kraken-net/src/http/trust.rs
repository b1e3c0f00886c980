//! TLS of a client of services that are not of the cluster's own authority, such as registries.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::ring::default_provider;
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::outside::{proof, roots};
use crate::identity::IdentityError;

/// Whom a client trusts, and what it shows: paths of PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutsideTrust {
    /// The authorities to trust instead of those that this host trusts.
    pub ca: Option<PathBuf>,
    /// A certificate with its chain, and its private key, for servers that ask who it is.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl OutsideTrust {
    pub(super) fn config(&self) -> Result<ClientConfig, IdentityError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(IdentityError::tls)?;
        let builder = match &self.ca {
            Some(file) => builder.with_root_certificates(roots("authority", file)?),
            None => builder
                .with_platform_verifier()
                .map_err(IdentityError::tls)?,
        };
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, key) = proof(cert, key, None)?;
                let shown = builder.with_client_auth_cert(chain, key);
                shown.map_err(IdentityError::tls)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}
