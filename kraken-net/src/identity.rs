//! Who a process is: a certificate, its key, and the authority of its cluster.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kraken_proto::PeerId;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sha2::{Digest as _, Sha256};

/// A certificate chain, its private key, and the roots that this process trusts.
///
/// Cheap to clone. Its `Debug` shows the [`PeerId`] and never the key.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    peer_id: PeerId,
    role: Option<String>,
}

impl Identity {
    /// Reads the three PEM texts: a certificate (its chain may follow), its private key, and the
    /// cluster's authority (one certificate or several).
    ///
    /// # Errors
    /// A text is not PEM, the key is not the certificate's, or the certificate was not issued by
    /// the authority or is not valid now. Nothing would work later, so it fails here.
    pub fn from_pem(cert: &str, key: &str, ca: &str) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", cert)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| IdentityError::pem("private key", error))?;
        let mut roots = RootCertStore::empty();
        for root in certificates("authority", ca)? {
            roots
                .add(root)
                .map_err(|error| IdentityError::pem("authority", error))?;
        }
        let peer_id = peer_id_of(&chain[0])?;
        let identity = Self {
            inner: Arc::new(Inner {
                role: role_of(&chain[0]),
                chain,
                key,
                roots: Arc::new(roots),
                peer_id,
            }),
        };
        identity.check()?;
        Ok(identity)
    }

    /// Reads three PEM files; see [`Identity::from_pem`]. Blocks while it reads.
    ///
    /// # Errors
    /// As [`Identity::from_pem`], and files that cannot be read.
    pub fn from_files(
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
        ca: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| IdentityError::Read {
                path: path.to_path_buf(),
                source,
            })
        };
        Self::from_pem(
            &read(cert.as_ref())?,
            &read(key.as_ref())?,
            &read(ca.as_ref())?,
        )
    }

    /// The identity that the certificate proves: the SHA-256 of its public key (DER
    /// SubjectPublicKeyInfo). It stays when the certificate is renewed with the same key.
    pub fn peer_id(&self) -> PeerId {
        self.inner.peer_id
    }

    /// The role that [`crate::CertAuthority::issue`] wrote into the certificate, if any.
    pub fn role(&self) -> Option<&str> {
        self.inner.role.as_deref()
    }

    /// For a client that knows the other side by its key, not by a name: the chain must lead to
    /// the cluster's authority, any name is accepted, and the caller compares the [`PeerId`].
    #[cfg(any(feature = "quic", feature = "tcp"))]
    pub(crate) fn peer_client_config(&self, alpn: &[u8]) -> Result<ClientConfig, IdentityError> {
        let provider = provider();
        let verifier = Arc::new(crate::verifier::AnyNameVerifier::new(
            self.inner.roots.clone(),
            provider.clone(),
        ));
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        self.finish_client(builder, alpn)
    }

    /// For a client that knows the other side by its host name or address.
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "only HTTP dials by name")
    )]
    pub(crate) fn named_client_config(&self, alpn: &[u8]) -> Result<ClientConfig, IdentityError> {
        let provider = provider();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(self.inner.roots.clone(), provider.clone())
                .build()
                .map_err(|error| IdentityError::Tls(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::tls)?
            .with_webpki_verifier(verifier);
        self.finish_client(builder, alpn)
    }

    fn finish_client(
        &self,
        builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
        alpn: &[u8],
    ) -> Result<ClientConfig, IdentityError> {
        let mut config = builder
            .with_client_auth_cert(self.inner.chain.clone(), self.inner.key.clone_key())
            .map_err(IdentityError::tls)?;
        // A resumed session skips the certificates, and with them the proof of who answers.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }

    /// For a server that lets in holders of a certificate of the cluster, and nobody else.
    #[cfg_attr(
        not(any(feature = "quic", feature = "tcp", feature = "http")),
        expect(dead_code, reason = "nobody serves without QUIC, TCP and HTTP")
    )]
    pub(crate) fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, IdentityError> {
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.inner.roots.clone(), provider.clone())
                .build()
                .map_err(|error| IdentityError::Tls(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.inner.chain.clone(), self.inner.key.clone_key())
            .map_err(IdentityError::tls)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// The key fits the certificate, and the authority stands behind it.
    fn check(&self) -> Result<(), IdentityError> {
        let provider = provider();
        rustls::sign::CertifiedKey::from_der(
            self.inner.chain.clone(),
            self.inner.key.clone_key(),
            &provider,
        )
        .map_err(IdentityError::tls)?;
        let leaf = ParsedCertificate::try_from(&self.inner.chain[0]).map_err(IdentityError::tls)?;
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.inner.roots,
            &self.inner.chain[1..],
            UnixTime::now(),
            provider.signature_verification_algorithms.all,
        )
        .map_err(|error| IdentityError::Untrusted(error.to_string()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer_id", &self.inner.peer_id)
            .field("role", &self.inner.role)
            .finish_non_exhaustive()
    }
}

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A text is not the PEM that it should be.
    #[error("the {what} is not valid PEM: {reason}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The certificate does not lead to the authority, or is not valid now.
    #[error("the certificate is not one of this cluster's authority, or not valid now: {0}")]
    Untrusted(String),
    /// Key and certificate do not fit, or cannot be used for TLS 1.3.
    #[error("certificate and key cannot be used: {0}")]
    Tls(String),
    /// A certificate cannot be made.
    #[error("cannot make the certificate: {0}")]
    Issue(String),
}

impl IdentityError {
    pub(crate) fn pem(what: &'static str, reason: impl fmt::Display) -> Self {
        Self::Pem {
            what,
            reason: reason.to_string(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
    pub(crate) fn tls(error: rustls::Error) -> Self {
        Self::Tls(error.to_string())
    }
}

/// The identity that a certificate proves.
pub(crate) fn peer_id_of(cert: &CertificateDer<'_>) -> Result<PeerId, IdentityError> {
    let cert = webpki::EndEntityCert::try_from(cert)
        .map_err(|error| IdentityError::pem("certificate", error))?;
    let key = cert.subject_public_key_info();
    Ok(PeerId::from_bytes(Sha256::digest(key).into()))
}

fn role_of(cert: &CertificateDer<'_>) -> Option<String> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    cert.valid_uri_names()
        .find_map(|name| name.strip_prefix(crate::roles::ROLE_PREFIX))
        .map(str::to_string)
}

/// Ring, with AES-128-GCM in front: the cheapest of the three on every processor with AES
/// instructions, and 256-bit keys buy nothing inside a cluster.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::{cipher_suite, default_provider};

    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    })
}

pub(crate) fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| IdentityError::pem(what, error))?;
    if found.is_empty() {
        return Err(IdentityError::pem(what, "it holds no certificate"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertAuthority;

    fn names() -> Vec<String> {
        vec!["localhost".into(), "127.0.0.1".into()]
    }

    #[test]
    fn an_identity_is_its_key() {
        let ca = CertAuthority::create().unwrap();
        let (cert, key) = ca.issue("agent", &names()).unwrap();
        let (ca_pem, _) = ca.to_pem();
        let one = Identity::from_pem(&cert, &key, &ca_pem).unwrap();
        let again = Identity::from_pem(&cert, &key, &ca_pem).unwrap();
        let (cert, key) = ca.issue("origin", &names()).unwrap();
        let other = Identity::from_pem(&cert, &key, &ca_pem).unwrap();
        assert_eq!(one.peer_id(), again.peer_id());
        assert_ne!(one.peer_id(), other.peer_id());
        assert_eq!((one.role(), other.role()), (Some("agent"), Some("origin")));
    }

    #[test]
    fn what_cannot_work_later_fails_when_read() {
        let ca = CertAuthority::create().unwrap();
        let (ca_pem, ca_key) = ca.to_pem();
        let (cert, key) = ca.issue("agent", &names()).unwrap();
        let (_, other_key) = ca.issue("agent", &names()).unwrap();
        let (foreign, _) = CertAuthority::create().unwrap().to_pem();

        let error = Identity::from_pem(&cert, &key, &foreign).unwrap_err();
        assert!(matches!(error, IdentityError::Untrusted(_)), "{error}");
        let error = Identity::from_pem(&cert, &other_key, &ca_pem).unwrap_err();
        assert!(matches!(error, IdentityError::Tls(_)), "{error}");
        for (cert, key, ca) in [
            ("", &*key, &*ca_pem),
            (&cert, "nonsense", &ca_pem),
            (&cert, &key, ""),
        ] {
            let error = Identity::from_pem(cert, key, ca).unwrap_err();
            assert!(matches!(error, IdentityError::Pem { .. }), "{error}");
        }
        let error = Identity::from_files("/nowhere/a", "/nowhere/b", "/nowhere/c").unwrap_err();
        assert!(error.to_string().contains("/nowhere/a"), "{error}");

        let again = CertAuthority::from_pem(&ca_pem, &ca_key).unwrap();
        let (cert, key) = again.issue("agent", &names()).unwrap();
        Identity::from_pem(&cert, &key, &ca_pem).unwrap();
    }

    #[test]
    fn keys_are_not_shown() {
        let ca = CertAuthority::create().unwrap();
        let (cert, key) = ca.issue("agent", &names()).unwrap();
        let identity = Identity::from_pem(&cert, &key, &ca.to_pem().0).unwrap();
        let shown = format!("{identity:?} {ca:?}");
        assert!(!shown.contains("PRIVATE") && shown.len() < 300, "{shown}");
    }
}
