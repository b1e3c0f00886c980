//! Lists of the certificates that an authority has taken back.

use std::time::SystemTime;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::certificate::{self, Parts, hex, text_of};
use crate::identity::IdentityError;

/// What errors call a list.
const LIST: &str = "list of revoked certificates";

/// What a list of revoked certificates says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RevocationList {
    /// Who made it: the authority's common name.
    pub issuer: Option<String>,
    /// When it was made.
    pub updated: SystemTime,
    /// Until when there is to be another one, if it says so.
    pub next: Option<SystemTime>,
    /// The certificates on it, by their serial numbers in hexadecimal, and since when each is revoked.
    pub revoked: Vec<(String, SystemTime)>,
}

impl RevocationList {
    /// Reads the first list in a PEM text. Whether its signature is right is not looked at.
    ///
    /// # Errors
    /// There is none, or it is not an X.509 list.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let der = der(text)?;
        let (_, list) = CertificateRevocationList::from_der(&der).map_err(wrong)?;
        let revoked = list.iter_revoked_certificates().map(|it| {
            let since = certificate::time(it.revocation_date);
            (hex(it.raw_serial()), since)
        });
        Ok(Self {
            issuer: text_of(list.issuer().iter_common_name().next()),
            updated: certificate::time(list.last_update()),
            next: list.next_update().map(certificate::time),
            revoked: revoked.collect(),
        })
    }
}

/// Whether a list of revoked certificates names a certificate; both are PEM. One of another authority names
/// none.
///
/// # Errors
/// One of them is not PEM.
pub fn is_revoked(cert: &str, list: &str) -> Result<bool, IdentityError> {
    let parts = Parts::of(cert)?;
    let (issuer, revoked) = entries(list)?;
    let is_named = revoked.iter().any(|(serial, _)| *serial == parts.serial);
    Ok(issuer == parts.issuer && is_named)
}

/// A certificate by its serial number, and since when it is revoked.
pub(crate) type Revoked = (Vec<u8>, SystemTime);

/// Who made a list, as a name in DER, and who is on it.
pub(crate) fn entries(list: &str) -> Result<(Vec<u8>, Vec<Revoked>), IdentityError> {
    let der = der(list)?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(wrong)?;
    let revoked = list.iter_revoked_certificates();
    let entry = |it: &x509_parser::revocation_list::RevokedCertificate<'_>| {
        let since = certificate::time(it.revocation_date);
        (it.raw_serial().to_vec(), since)
    };
    Ok((
        list.issuer().as_raw().to_vec(),
        revoked.map(entry).collect(),
    ))
}

fn der(text: &str) -> Result<CertificateRevocationListDer<'static>, IdentityError> {
    CertificateRevocationListDer::from_pem_slice(text.as_bytes()).map_err(wrong)
}

fn wrong(reason: impl std::fmt::Display) -> IdentityError {
    IdentityError::pem(LIST, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertAuthority, CertInfo};

    #[test]
    fn a_list_says_who_made_it_and_who_is_on_it() {
        let ca = CertAuthority::create().unwrap();
        let (cert, _) = ca.issue("agent", &[]).unwrap();
        let list = RevocationList::from_pem(&ca.revoke(&cert, None).unwrap()).unwrap();
        let info = CertInfo::from_pem(&cert).unwrap().remove(0);
        assert_eq!(list.issuer, info.issuer);
        assert!(list.issuer.unwrap().starts_with("Kraken authority "));
        let [(serial, since)] = &list.revoked[..] else {
            panic!("{:?}", list.revoked);
        };
        assert_eq!(*serial, info.serial);
        assert!(*since <= list.updated && list.next.unwrap() > list.updated);
        let error = RevocationList::from_pem(&cert).unwrap_err().to_string();
        assert!(error.contains(LIST), "{error}");
    }
}
