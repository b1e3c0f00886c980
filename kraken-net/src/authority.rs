//! A certificate authority for one cluster: enough for a lab, a test and a small installation.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};

use crate::identity::{IdentityError, ROLE_PREFIX};

/// How long certificates are valid from the day they are made: ten years, so that a cluster does
/// not stop on the day nobody remembers. Renew earlier where policy asks for it.
pub const VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);

/// A certificate authority made by Kraken (ECDSA P-256). Its `Debug` never shows the key.
pub struct CertAuthority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertAuthority {
    /// Makes a new authority with a key of its own.
    ///
    /// # Errors
    /// The machine has no randomness to give.
    pub fn create() -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(issue)?;
        let params = authority_params(&key);
        let cert = params.self_signed(&key).map_err(issue)?;
        Ok(Self {
            cert_pem: cert.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The certificate, which every member of the cluster needs, and the key, which nobody but
    /// the issuer of certificates should ever see.
    pub fn to_pem(&self) -> (String, String) {
        (self.cert_pem.clone(), self.issuer.key().serialize_pem())
    }

    /// Reads what [`CertAuthority::to_pem`] gave.
    ///
    /// # Errors
    /// The texts are not PEM, do not belong together, or come from an authority that another tool
    /// made: certificates of such a one are issued by that tool and read by
    /// [`crate::Identity::from_pem`].
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(key).map_err(issue)?;
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).map_err(issue)?;
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(issue)?;
        let params = authority_params(&key);
        let twin = params.self_signed(&key).map_err(issue)?;
        let expected = webpki::anchor_from_trusted_cert(twin.der()).map_err(issue)?;
        if anchor.subject != expected.subject
            || anchor.subject_public_key_info != expected.subject_public_key_info
        {
            return Err(IdentityError::Issue(
                "this key and certificate are not an authority that Kraken made: issue \
                 certificates with the tool that made it"
                    .to_string(),
            ));
        }
        Ok(Self {
            cert_pem: cert.to_string(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Issues a certificate with a key of its own, for servers and clients alike, and returns both
    /// as PEM. `names` are the DNS names and addresses under which others reach the process.
    ///
    /// # Errors
    /// A name is neither a DNS name nor an address, or the role cannot stand in a URI.
    pub fn issue(&self, role: &str, names: &[String]) -> Result<(String, String), IdentityError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if role.is_empty() || !role.chars().all(plain) {
            return Err(IdentityError::Issue(format!(
                "role {role:?} must consist of lower-case letters, digits and hyphens"
            )));
        }
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(issue)?;
        let uri = format!("{ROLE_PREFIX}{role}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().map_err(issue)?));
        params.distinguished_name = name_of(role);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        limit(&mut params);
        let cert = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok((cert.pem(), key.serialize_pem()))
    }
}

impl fmt::Debug for CertAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertAuthority").finish_non_exhaustive()
    }
}

/// Everything about an authority but its dates follows from its key, so that
/// [`CertAuthority::from_pem`] need not parse a certificate. The key's hash in the name keeps two
/// authorities of one company apart.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let hash = Sha256::digest(key.public_key_raw());
    let short: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = name_of(&format!("Kraken authority {short}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut params);
    params
}

fn name_of(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Kraken");
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from an hour ago, because clocks differ, until [`VALIDITY`] from now.
fn limit(params: &mut CertificateParams) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(Duration::from_hours(1));
    params.not_after = epoch + (now + VALIDITY);
}

fn issue(error: impl fmt::Display) -> IdentityError {
    IdentityError::Issue(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_do_not_mix() {
        let (one, other) = (
            CertAuthority::create().unwrap(),
            CertAuthority::create().unwrap(),
        );
        let ((cert, _), (_, key)) = (one.to_pem(), other.to_pem());
        let error = CertAuthority::from_pem(&cert, &key).unwrap_err();
        assert!(
            error.to_string().contains("the tool that made it"),
            "{error}"
        );
    }

    #[test]
    fn odd_names_and_roles_are_refused() {
        let ca = CertAuthority::create().unwrap();
        assert!(ca.issue("Agent!", &[]).is_err());
        assert!(ca.issue("", &[]).is_err());
        assert!(ca.issue("agent", &["nämlich".into()]).is_err());
        assert!(
            ca.issue("agent", &["::1".into(), "host-1.example".into()])
                .is_ok()
        );
    }
}
