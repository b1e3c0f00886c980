//! TLS for peers: both sides show a certificate of the cluster, names do not matter.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{Identity, IdentityError};

/// The protocol's name and version in the handshake. A change that an old peer cannot read takes
/// the next number.
pub(crate) const ALPN: &[u8] = b"kraken/1";

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

/// Accepts every certificate that leads to the cluster's authority, whatever names it holds: a
/// peer is known by its key, and whoever dials compares that.
#[derive(Debug)]
pub(crate) struct AnyNameVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl AnyNameVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>) -> Self {
        Self { roots, provider }
    }
}

impl ServerCertVerifier for AnyNameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
