//! What a process shows and whom it believes, at one moment: [`crate::Identity`] swaps one of these
//! for another when its files change.

use std::sync::Arc;
use std::time::SystemTime;

use kraken_proto::PeerId;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use crate::certificate::CertInfo;
use crate::identity::{IdentityError, Pem, certificates, peer_id_of, provider};
use crate::key;
use crate::roles::{Bearer, RoleNames};

/// A chain with its key, the roots, and the lists of what is revoked.
pub(crate) struct Credentials {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) peer_id: PeerId,
    pub(crate) bearer: Bearer,
    /// Until when the certificate is valid, and until when the first of the roots.
    pub(crate) expiry: (SystemTime, SystemTime),
    roots: RootCertStore,
    revoked: Vec<CertRevocationList<'static>>,
    /// The lists as they were read: others are others.
    lists: Vec<CertificateRevocationListDer<'static>>,
}

/// On which side of a connection somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Credentials {
    pub(crate) fn read(pem: &Pem, roles: &RoleNames) -> Result<Self, IdentityError> {
        let credentials = Self::parse(pem, roles)?;
        // Nothing would work later, so it fails here.
        let own = &credentials.certified.cert;
        let checked = credentials.check(own, UnixTime::now(), Side::Server);
        checked.map_err(|error| IdentityError::tls_untrusted(&certificate_error(&error).into()))?;
        Ok(credentials)
    }

    pub(crate) fn parse(pem: &Pem, roles: &RoleNames) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", &pem.cert)?;
        let key = key::read(&pem.key, pem.passphrase.as_deref())?;
        let mut roots = RootCertStore::empty();
        let mut roots_end = Vec::new();
        for root in certificates("authority", &pem.ca)? {
            roots_end.push(CertInfo::from_der(&root)?.not_after);
            let added = roots.add(root);
            added.map_err(|error| IdentityError::pem("authority", error))?;
        }
        let info = CertInfo::from_der(&chain[0])?;
        let provider = provider();
        let certified = CertifiedKey::from_der(chain, key, &provider);
        let certified = Arc::new(certified.map_err(IdentityError::tls)?);
        let lists = match &pem.crl {
            Some(text) => revocation_lists(text)?,
            None => Vec::new(),
        };
        let list = |der: &CertificateRevocationListDer<'_>| {
            OwnedCertRevocationList::from_der(der).map(CertRevocationList::Owned)
        };
        let revoked = lists.iter().map(list).collect::<Result<_, _>>();
        Ok(Self {
            peer_id: peer_id_of(&certified.cert[0])?,
            certified,
            bearer: info.bearer(roles),
            expiry: (
                info.not_after,
                roots_end.into_iter().min().unwrap_or(info.not_after),
            ),
            roots,
            revoked: revoked.map_err(|error| IdentityError::pem(LIST, error))?,
            lists,
        })
    }

    /// Whether the chain leads to the authority, is valid now, is for this side, and has not been
    /// revoked.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<(), rustls::Error> {
        let checked = self.check(chain, now, side);
        checked.map_err(|error| certificate_error(&error).into())
    }

    /// Whether a chain that was trusted at `then` has been revoked since.
    pub(crate) fn has_revoked(&self, chain: &[CertificateDer<'_>], then: UnixTime) -> bool {
        let checked = self.check(chain, then, Side::Client);
        matches!(checked, Err(webpki::Error::CertRevoked))
    }

    pub(crate) fn same_lists(&self, other: &Self) -> bool {
        self.lists == other.lists
    }

    fn check(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<(), webpki::Error> {
        let (leaf, others) = chain.split_first().ok_or(webpki::Error::BadDer)?;
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let lists: Vec<_> = self.revoked.iter().collect();
        // A list says nothing about the certificates of other authorities, and one that is past its
        // date still says who was revoked.
        let revocation = RevocationOptionsBuilder::new(&lists).ok();
        let revocation =
            revocation.map(|it| it.with_status_policy(UnknownStatusPolicy::Allow).build());
        let leaf = EndEntityCert::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let path = leaf.verify_for_usage(
            algorithms,
            &self.roots.roots,
            others,
            now,
            usage,
            revocation,
            None,
        );
        path.map(drop)
    }
}

/// What a list of revoked certificates is called in errors.
const LIST: &str = "list of revoked certificates";

fn revocation_lists(
    text: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(text.as_bytes());
    let lists: Vec<_> = lists
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::pem(LIST, error))?;
    // An empty file is rather half a file than a list without entries.
    if lists.is_empty() {
        return Err(IdentityError::pem(LIST, "it holds none"));
    }
    Ok(lists)
}

/// What the TLS library tells the other side.
fn certificate_error(error: &webpki::Error) -> CertificateError {
    use webpki::Error;
    match error {
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => CertificateError::BadEncoding,
        Error::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext {
            time: *time,
            not_before: *not_before,
        },
        Error::CertExpired { time, not_after } => CertificateError::ExpiredContext {
            time: *time,
            not_after: *not_after,
        },
        Error::InvalidCertValidity => CertificateError::Expired,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::CertRevoked => CertificateError::Revoked,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => other_error(other.to_string()),
    }
}

/// An error in words.
pub(crate) fn other_error(words: String) -> CertificateError {
    CertificateError::Other(rustls::OtherError(Arc::new(Words(words))))
}

/// An error whose `Debug` is readable, because the TLS library prints that.
struct Words(String);

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Words {}
