//! Who a process is: a certificate, its key, and the authority of its cluster.

mod error;
mod files;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use kraken_proto::{PeerId, Zone};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::certificate::CertInfo;
use crate::credentials::Credentials;
use crate::roles::{Bearer, Callers, Role, RoleNames};
use crate::verifier::{Believes, Expected, Shown};

pub use error::IdentityError;
pub use files::IdentityFiles;
pub(crate) use files::Pem;
#[cfg(feature = "http")]
pub(crate) use files::{passphrase, read};

/// A certificate chain, its private key, the roots that this process trusts, and whom it trusts no
/// more.
///
/// Cheap to clone; all clones change when [`Identity::follow`] finds new files. Its `Debug` shows the
/// [`PeerId`] and never the key.
///
/// ```
/// use kraken_net::{CertAuthority, Identity};
///
/// let authority = CertAuthority::create()?;
/// let (cert, key) = authority.issue("agent", &["host-7.internal".to_owned()])?;
/// let identity = Identity::from_pem(&cert, &key, &authority.to_pem().0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

struct Shared {
    now: RwLock<Arc<Credentials>>,
    roles: RoleNames,
    /// Whether a certificate of another key is refused.
    keeps_key: AtomicBool,
    /// Changes with what is revoked.
    lists: watch::Sender<u64>,
    counts: Counts,
    /// Who was refused and named in the log.
    named: Mutex<HashSet<PeerId>>,
}

/// What has happened to an identity.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reloads: AtomicU64,
    pub(crate) failed_reloads: AtomicU64,
    pub(crate) wrong_roles: AtomicU64,
    pub(crate) revoked: AtomicU64,
}

/// How an identity stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdentityStatus {
    /// Until when the certificate is valid.
    pub certificate_expiry: SystemTime,
    /// Until when the first of the authorities is.
    pub authority_expiry: SystemTime,
    /// How often changed files were taken.
    pub reloads: u64,
    /// How often changed files could not be taken.
    pub failed_reloads: u64,
    /// Requests and connections that were refused for the role of a certificate.
    pub wrong_roles: u64,
    /// Requests refused, and connections closed, because a certificate was revoked meanwhile.
    pub revoked: u64,
}

/// The most that are remembered as named in the log; then all may be named again.
const NAMED: usize = 1024;

impl Identity {
    /// Reads the three PEM texts: a certificate (its chain may follow), its private key, and the
    /// cluster's authority (one certificate or several).
    ///
    /// # Errors
    /// A text is not PEM, the key is not the certificate's, or the certificate was not issued by
    /// the authority or is not valid now. Nothing would work later, so it fails here.
    pub fn from_pem(cert: &str, key: &str, ca: &str) -> Result<Self, IdentityError> {
        let pem = Pem {
            cert: cert.to_owned(),
            key: key.to_owned(),
            ca: ca.to_owned(),
            ..Pem::default()
        };
        Self::of(&pem, RoleNames::Written)
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
        let files = IdentityFiles::new(cert.as_ref(), key.as_ref(), ca.as_ref());
        Self::read(&files, RoleNames::Written)
    }

    /// Reads PEM files, with roles found as `roles` has it. Blocks while it reads.
    ///
    /// # Errors
    /// As [`Identity::from_files`]; the key does not open with the password; or the lists are none.
    pub fn read(files: &IdentityFiles, roles: RoleNames) -> Result<Self, IdentityError> {
        Self::of(&files.read()?, roles)
    }

    fn of(pem: &Pem, roles: RoleNames) -> Result<Self, IdentityError> {
        Ok(Self::with(Credentials::read(pem, &roles)?, roles))
    }

    fn with(now: Credentials, roles: RoleNames) -> Self {
        Self {
            shared: Arc::new(Shared {
                now: RwLock::new(Arc::new(now)),
                roles,
                keeps_key: AtomicBool::new(false),
                lists: watch::Sender::new(0),
                counts: Counts::default(),
                named: Mutex::default(),
            }),
        }
    }

    /// One that may be expired or revoked.
    #[cfg(test)]
    pub(crate) fn unchecked(pem: &Pem) -> Self {
        Self::unchecked_with(pem, RoleNames::Written)
    }

    #[cfg(test)]
    pub(crate) fn unchecked_with(pem: &Pem, roles: RoleNames) -> Self {
        let now = Credentials::parse(pem, &roles).unwrap();
        Self::with(now, roles)
    }

    /// The identity that the certificate proves: the SHA-256 of its public key (DER
    /// SubjectPublicKeyInfo). It stays when the certificate is renewed with the same key.
    pub fn peer_id(&self) -> PeerId {
        self.now().peer_id
    }

    /// The role that the certificate is for, if it says one.
    pub fn role(&self) -> Option<Role> {
        self.now().bearer.role
    }

    /// The role that another's certificate is for; none where roles are not checked.
    pub fn role_of(&self, certificate: &CertInfo) -> Option<Role> {
        let roles = &self.shared.roles;
        roles
            .are_checked()
            .then(|| certificate.bearer(roles).role)
            .flatten()
    }

    /// The zone of this process: that of its certificate, if that names one.
    ///
    /// # Errors
    /// `configured` is another one: trackers would refuse its announces.
    pub fn zone(&self, configured: Option<Zone>) -> Result<Option<Zone>, IdentityError> {
        let certified = self.now().bearer.zone.clone();
        match (certified, configured) {
            (Some(certified), Some(configured)) if certified != configured => {
                Err(IdentityError::OtherZone {
                    certified,
                    configured: Some(configured),
                })
            }
            (certified, configured) => Ok(certified.or(configured)),
        }
    }

    /// Whether this process may be one of `role`, by its own certificate.
    ///
    /// # Errors
    /// It is for another role, and others would refuse it.
    pub fn check_own_role(&self, role: Role) -> Result<(), IdentityError> {
        let found = &self.now().bearer;
        if self.shared.roles.are_checked() && found.role != Some(role) {
            return Err(IdentityError::WrongRole {
                found: found.told(),
                wanted: role,
            });
        }
        Ok(())
    }

    /// Lets [`Identity::follow`] refuse certificates of another key: for a process that others know
    /// by this one.
    pub fn keep_key(&self) {
        self.shared.keeps_key.store(true, Ordering::Relaxed);
    }

    /// How it stands.
    pub fn status(&self) -> IdentityStatus {
        let (certificate_expiry, authority_expiry) = self.now().expiry;
        let counts = &self.shared.counts;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        IdentityStatus {
            certificate_expiry,
            authority_expiry,
            reloads: count(&counts.reloads),
            failed_reloads: count(&counts.failed_reloads),
            wrong_roles: count(&counts.wrong_roles),
            revoked: count(&counts.revoked),
        }
    }

    pub(crate) fn now(&self) -> Arc<Credentials> {
        let now = self.shared.now.read();
        now.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Takes what changed files hold; connections that there are go on.
    ///
    /// # Errors
    /// As of [`Identity::read`], or it would be somebody else. Nothing has changed then.
    pub(crate) fn take(&self, pem: &Pem) -> Result<(), IdentityError> {
        let new = Credentials::read(pem, &self.shared.roles)?;
        let old = self.now();
        if self.shared.keeps_key.load(Ordering::Relaxed) && new.peer_id != old.peer_id {
            return Err(IdentityError::OtherKey);
        }
        if let Some(wanted) = old.bearer.role
            && new.bearer.role != Some(wanted)
        {
            let found = new.bearer.told();
            return Err(IdentityError::WrongRole { found, wanted });
        }
        if let Some(certified) = &new.bearer.zone
            && self.shared.keeps_key.load(Ordering::Relaxed)
            && old.bearer.zone.as_ref() != Some(certified)
        {
            return Err(IdentityError::OtherZone {
                certified: certified.clone(),
                configured: old.bearer.zone.clone(),
            });
        }
        let are_same = new.same_lists(&old);
        *self
            .shared
            .now
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        if !are_same {
            self.shared.lists.send_modify(|version| *version += 1);
        }
        Ok(())
    }

    /// Whether a certificate is for one of these roles; in words, if not.
    pub(crate) fn check_role(
        &self,
        leaf: &CertificateDer<'_>,
        wanted: Callers,
    ) -> Result<(), String> {
        if wanted == Callers::Anyone || !self.shared.roles.are_checked() {
            return Ok(());
        }
        let found = self.bearer(leaf);
        if wanted.include(found.role) {
            return Ok(());
        }
        let found = found.told();
        Err(format!(
            "a certificate {found}, where one of role {wanted} is needed"
        ))
    }

    /// Whom a certificate is for.
    pub(crate) fn bearer(&self, leaf: &CertificateDer<'_>) -> Bearer {
        let info = CertInfo::from_der(leaf).ok();
        info.map_or_else(Bearer::default, |info| info.bearer(&self.shared.roles))
    }

    #[cfg(feature = "http")]
    pub(crate) fn checks_roles(&self) -> bool {
        self.shared.roles.are_checked()
    }

    /// Who is on the other side of a connection between peers, from the chain that the handshake has
    /// verified.
    ///
    /// # Errors
    /// In words: it showed none, or one that is not a peer's.
    #[cfg(any(feature = "quic", feature = "tcp"))]
    pub(crate) fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<PeerId, String> {
        let leaf = chain.first().ok_or("it showed no certificate")?;
        let id = peer_id_of(leaf).map_err(|error| error.to_string())?;
        let right = self.check_role(leaf, Callers::Roles(crate::roles::PEERS));
        right.inspect_err(|what| self.refuse(id, what))?;
        Ok(id)
    }

    /// Counts somebody who was refused for the role, and names it in the log once.
    #[cfg_attr(
        not(any(feature = "quic", feature = "tcp", feature = "http")),
        expect(dead_code, reason = "nobody connects without QUIC, TCP and HTTP")
    )]
    pub(crate) fn refuse(&self, who: PeerId, what: &str) {
        self.shared
            .counts
            .wrong_roles
            .fetch_add(1, Ordering::Relaxed);
        let named = self.shared.named.lock();
        let mut named = named.unwrap_or_else(PoisonError::into_inner);
        if named.len() >= NAMED {
            named.clear();
        }
        if named.insert(who) {
            tracing::warn!(
                ?who,
                what,
                "refused; further refusals of this one are counted only"
            );
        }
    }

    /// Which lists of revoked certificates count: the number changes with them.
    #[cfg(feature = "http")]
    pub(crate) fn lists(&self) -> u64 {
        *self.shared.lists.borrow()
    }

    /// Whether a chain that was trusted at `then` has been revoked since.
    #[cfg_attr(
        not(any(feature = "quic", feature = "tcp", feature = "http")),
        expect(dead_code, reason = "nobody connects without QUIC, TCP and HTTP")
    )]
    pub(crate) fn has_revoked(&self, chain: &[CertificateDer<'_>], then: UnixTime) -> bool {
        self.now().has_revoked(chain, then)
    }

    /// Waits until a chain that is trusted now is revoked, and counts that.
    #[cfg(any(feature = "quic", feature = "tcp"))]
    pub(crate) async fn until_revoked(&self, chain: Vec<CertificateDer<'static>>) {
        let then = UnixTime::now();
        let mut lists = self.shared.lists.subscribe();
        while !self.has_revoked(&chain, then) {
            if lists.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        self.shared.counts.revoked.fetch_add(1, Ordering::Relaxed);
    }

    /// For a client that knows the other side by its key, not by a name: the chain must lead to
    /// the cluster's authority, any name is accepted, and the caller compares the [`PeerId`].
    #[cfg(any(feature = "quic", feature = "tcp"))]
    pub(crate) fn peer_client_config(&self, alpn: &[u8]) -> Result<ClientConfig, IdentityError> {
        self.client_config(alpn, Expected::Peer)
    }

    /// For a client that knows the other side by its host name or address, and its role.
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "only HTTP dials by name")
    )]
    pub(crate) fn named_client_config(
        &self,
        alpn: &[u8],
        roles: Callers,
    ) -> Result<ClientConfig, IdentityError> {
        self.client_config(alpn, Expected::Named(roles))
    }

    fn client_config(
        &self,
        alpn: &[u8],
        expected: Expected,
    ) -> Result<ClientConfig, IdentityError> {
        let verifier = Believes::servers(self.clone(), expected);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Shown(self.clone())));
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
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::tls)?
            .with_client_cert_verifier(Arc::new(Believes::clients(self.clone())))
            .with_cert_resolver(Arc::new(Shown(self.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.now();
        f.debug_struct("Identity")
            .field("peer_id", &now.peer_id)
            .field("role", &now.bearer.role)
            .finish_non_exhaustive()
    }
}

/// The identity that a certificate proves.
pub(crate) fn peer_id_of(cert: &CertificateDer<'_>) -> Result<PeerId, IdentityError> {
    let cert = webpki::EndEntityCert::try_from(cert)
        .map_err(|error| IdentityError::pem("certificate", error))?;
    let key = cert.subject_public_key_info();
    Ok(PeerId::from_bytes(Sha256::digest(key).into()))
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
        assert_eq!(
            (one.role(), other.role()),
            (Some(Role::Agent), Some(Role::Origin))
        );
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
