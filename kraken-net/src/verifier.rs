//! What the TLS library asks during a handshake, answered with what an [`Identity`] has at that
//! moment.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::credentials::{Side, other_error};
use crate::identity::{Identity, provider};
use crate::roles::Callers;

/// Shows the certificate that the identity has now.
pub(crate) struct Shown(pub(crate) Identity);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.now().certified.clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.now().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Which server is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Whoever has a certificate of the authority, whatever names it holds: a peer is known by its
    /// key, and whoever dials compares that and its role.
    #[cfg_attr(
        not(any(feature = "quic", feature = "tcp")),
        expect(dead_code, reason = "only peers are dialled by key")
    )]
    Peer,
    /// Who has one that is valid for the name, and for a role among these.
    Named(Callers),
}

/// Believes whom the identity believes now.
pub(crate) struct Believes {
    identity: Identity,
    server: Option<Expected>,
}

impl Believes {
    /// For a server.
    pub(crate) fn clients(identity: Identity) -> Self {
        Self {
            identity,
            server: None,
        }
    }

    /// For a client.
    pub(crate) fn servers(identity: Identity, expected: Expected) -> Self {
        Self {
            identity,
            server: Some(expected),
        }
    }

    fn check_role(&self, leaf: &CertificateDer<'_>, wanted: Callers) -> Result<(), Error> {
        let is_right = self.identity.check_role(leaf, wanted);
        is_right.map_err(|words| other_error(words).into())
    }
}

impl fmt::Debug for Believes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Believes").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let credentials = self.identity.now();
        credentials.verify(&chain(leaf, others), now, Side::Server)?;
        if let Some(Expected::Named(roles)) = self.server {
            verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
            self.check_role(leaf, roles)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Believes {
    /// None: the authorities may be others tomorrow, and a client has one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let credentials = self.identity.now();
        credentials.verify(&chain(leaf, others), now, Side::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

fn chain<'a>(leaf: &CertificateDer<'a>, others: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    let mut chain = vec![leaf.clone()];
    chain.extend_from_slice(others);
    chain
}

fn tls12_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls12_signature(message, cert, dss, algorithms)
}

fn tls13_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls13_signature(message, cert, dss, algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider()
        .signature_verification_algorithms
        .supported_schemes()
}

/// A client of the cluster's authority that has no certificate.
#[cfg(test)]
#[cfg(any(feature = "quic", feature = "tcp"))]
pub(crate) fn anonymous(ca: &crate::CertAuthority, alpn: &[u8]) -> rustls::ClientConfig {
    let (cert, key) = ca.issue("agent", &[]).unwrap();
    let identity = Identity::from_pem(&cert, &key, &ca.to_pem().0).unwrap();
    let verifier = Believes::servers(identity, Expected::Peer);
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}
