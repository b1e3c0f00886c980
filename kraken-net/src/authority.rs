//! A certificate authority for one cluster: enough for a lab, a test and a small installation.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kraken_proto::Zone;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::certificate::{self, Parts, hex};
use crate::identity::{IdentityError, provider};
use crate::key;
use crate::revocation::{Revoked, entries};
use crate::roles::{ROLE_PREFIX, ZONE_PREFIX};

/// How long certificates are valid from the day they are made when nothing else is said: ten years,
/// so that a cluster does not stop on the day nobody remembers. Renew earlier where policy asks for
/// it.
pub const VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);

/// The name of the cluster when none is given: the organization in all its certificates.
const CLUSTER: &str = "Kraken";
/// The longest name of a cluster or a process in a certificate: X.520's bound of a common name.
const LONGEST: usize = 64;
/// The curve of every key here, in the DER of its algorithm: id-ecPublicKey.
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// Bytes of a point of P-256, uncompressed.
const POINT: usize = 65;

/// A certificate authority made by Kraken (ECDSA P-256). Its `Debug` never shows the key.
pub struct CertAuthority {
    cert_pem: String,
    cluster: String,
    until: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct CertRequest<'a> {
    /// The role, such as `agent`.
    pub role: &'a str,
    /// Whose it is.
    pub name: &'a str,
    /// The DNS names and addresses under which others reach the process.
    pub hosts: &'a [String],
    /// Where it stands.
    pub zone: Option<&'a Zone>,
    /// From now on. It ends with the authority at the latest.
    pub validity: Duration,
}

impl CertAuthority {
    /// Makes a new authority with a key of its own.
    ///
    /// # Errors
    /// The machine has no randomness to give.
    pub fn create() -> Result<Self, IdentityError> {
        Self::create_named(CLUSTER, VALIDITY)
    }

    /// The same for a cluster of this name, valid for so long.
    ///
    /// # Errors
    /// The name cannot stand in a certificate.
    pub fn create_named(cluster: &str, validity: Duration) -> Result<Self, IdentityError> {
        check_name("cluster", cluster)?;
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = authority_params(&key, cluster);
        let until = SystemTime::now() + validity;
        limit(&mut params, until);
        let cert = params.self_signed(&key).map_err(issue)?;
        Ok(Self {
            cert_pem: cert.pem(),
            cluster: cluster.to_owned(),
            until,
            issuer: Issuer::new(params, key),
        })
    }

    /// The certificate, which every member of the cluster needs, and the key, which nobody but
    /// the issuer of certificates should ever see.
    pub fn to_pem(&self) -> (String, String) {
        (self.cert_pem.clone(), self.issuer.key().serialize_pem())
    }

    /// The certificate, and the key encrypted with a passphrase.
    ///
    /// # Errors
    /// The machine has no randomness to give.
    pub fn to_sealed_pem(&self, passphrase: &str) -> Result<(String, String), IdentityError> {
        let (cert, key) = self.to_pem();
        Ok((cert, key::encrypt(&key, passphrase)?))
    }

    /// Reads what [`CertAuthority::to_pem`] gave.
    ///
    /// # Errors
    /// The texts are not PEM, do not belong together, or come from an authority that another tool
    /// made: certificates of such a one are issued by that tool and read by
    /// [`crate::Identity::from_pem`].
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, IdentityError> {
        Self::open(cert, key, None)
    }

    /// Reads what [`CertAuthority::to_sealed_pem`] gave, or [`CertAuthority::to_pem`].
    ///
    /// # Errors
    /// As of [`CertAuthority::from_pem`], or the passphrase is missing or wrong.
    pub fn open(cert: &str, key: &str, passphrase: Option<&str>) -> Result<Self, IdentityError> {
        let key = key::read(key, passphrase)?;
        let key = KeyPair::try_from(&key).map_err(issue)?;
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).map_err(issue)?;
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(issue)?;
        let info = certificate::CertInfo::from_der(&der)?;
        let cluster = info.organization.unwrap_or_default();
        let params = authority_params(&key, &cluster);
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
            cluster,
            until: info.not_after,
            issuer: Issuer::new(params, key),
        })
    }

    /// Until when it is valid, and with it all that it issued.
    pub fn until(&self) -> SystemTime {
        self.until
    }

    /// Issues a certificate with a key of its own, for servers and clients alike, and returns both
    /// as PEM. `names` are the DNS names and addresses under which others reach the process.
    ///
    /// # Errors
    /// A name is neither a DNS name nor an address, or the role cannot stand in a URI.
    pub fn issue(&self, role: &str, names: &[String]) -> Result<(String, String), IdentityError> {
        self.issue_as(&CertRequest {
            role,
            name: role,
            hosts: names,
            zone: None,
            validity: VALIDITY,
        })
    }

    /// The same with more in it.
    ///
    /// # Errors
    /// As of [`CertAuthority::issue`], or the process's name is too long or odd.
    pub fn issue_as(&self, wanted: &CertRequest<'_>) -> Result<(String, String), IdentityError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if wanted.role.is_empty() || !wanted.role.chars().all(plain) {
            let role = wanted.role;
            return Err(IdentityError::Name(format!(
                "role {role:?} must consist of lower-case letters, digits and hyphens"
            )));
        }
        check_name("process", wanted.name)?;
        wanted.hosts.iter().try_for_each(|host| check_host(host))?;
        let key = KeyPair::generate().map_err(issue)?;
        let mut uris = vec![format!("{ROLE_PREFIX}{}", wanted.role)];
        uris.extend(wanted.zone.map(|zone| format!("{ZONE_PREFIX}{zone}")));
        let params = self.params(wanted.name, (wanted.hosts, &uris), wanted.validity)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    /// Issues a certificate anew, with its key, names and role: the holder keeps its identity.
    ///
    /// # Errors
    /// It is not PEM, or not of this authority.
    pub fn renew(&self, cert: &str, validity: Duration) -> Result<String, IdentityError> {
        self.issue_anew(&self.own(cert)?, validity)
    }

    fn issue_anew(&self, parts: &Parts, validity: Duration) -> Result<String, IdentityError> {
        let (algorithm, point) = &parts.key;
        if algorithm != EC || point.len() != POINT {
            return Err(IdentityError::Issue("its key is not one of P-256".into()));
        }
        let info = &parts.info;
        let name = info.common_name.as_deref().unwrap_or_default();
        let params = self.params(name, (&info.hosts, &info.uris), validity)?;
        let key = Point(point);
        let cert = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(cert.pem())
    }

    /// The same for a certificate of another authority, which this one follows: `former` is that
    /// one's certificate.
    ///
    /// # Errors
    /// It is not of that authority, not valid any more, or its key is not one of P-256.
    pub fn adopt(
        &self,
        cert: &str,
        former: &str,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        let parts = Parts::of(cert)?;
        verify(cert, former, UnixTime::now())?;
        self.issue_anew(&parts, validity)
    }

    /// Puts a certificate on the list of those that are not to be trusted any more; `list` is the
    /// one so far. Whoever is on it already stays there once.
    ///
    /// # Errors
    /// The certificate or the list is not PEM, or not of this authority.
    pub fn revoke(&self, cert: &str, list: Option<&str>) -> Result<String, IdentityError> {
        let parts = self.own(cert)?;
        let mut revoked = match list {
            Some(list) => self.revoked(list)?,
            None => Vec::new(),
        };
        if revoked.iter().all(|(serial, _)| *serial != parts.serial) {
            revoked.push((parts.serial, SystemTime::now()));
        }
        let (epoch, now) = (rcgen::date_time_ymd(1970, 1, 1), SystemTime::now());
        let entry = |(serial, since): &(Vec<u8>, SystemTime)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: epoch + since_epoch(*since),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: epoch + since_epoch(now),
            next_update: epoch + since_epoch(now + VALIDITY),
            // It only grows, and so does its number.
            crl_number: SerialNumber::from(revoked.len() as u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).map_err(issue)?;
        list.pem().map_err(issue)
    }

    /// What is on a list of this authority, and since when.
    fn revoked(&self, list: &str) -> Result<Vec<Revoked>, IdentityError> {
        let (issuer, revoked) = entries(list)?;
        if issuer != Parts::of(&self.cert_pem)?.subject {
            let what = "the list of revoked certificates is another authority's";
            return Err(IdentityError::Unfit(what.into()));
        }
        Ok(revoked)
    }

    /// A certificate that this authority has issued.
    fn own(&self, cert: &str) -> Result<Parts, IdentityError> {
        let parts = Parts::of(cert)?;
        let own = Parts::of(&self.cert_pem)?;
        if parts.issuer != own.subject {
            let name = |name: Option<String>| name.unwrap_or_else(|| "nobody by name".to_owned());
            return Err(IdentityError::NotIssued {
                subject: name(parts.info.common_name),
                issuer: name(parts.info.issuer),
                authority: name(own.info.common_name),
            });
        }
        if parts.info.is_authority {
            let what = "the certificate is the authority's own: make a new authority instead";
            return Err(IdentityError::Unfit(what.into()));
        }
        // One that has ended is renewed, too.
        let begun = parts.info.not_before.duration_since(UNIX_EPOCH);
        let begun = UnixTime::since_unix_epoch(begun.unwrap_or_default());
        verify(cert, &self.cert_pem, begun)?;
        Ok(parts)
    }

    fn params(
        &self,
        name: &str,
        (hosts, uris): (&[String], &[String]),
        validity: Duration,
    ) -> Result<CertificateParams, IdentityError> {
        let now = SystemTime::now();
        if self.until <= now {
            let what = "the authority's own certificate has expired: make a new one";
            return Err(IdentityError::Issue(what.into()));
        }
        let mut params = CertificateParams::new(hosts.to_vec()).map_err(issue)?;
        for uri in uris {
            let uri = uri.as_str().try_into().map_err(issue)?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let mut serial = [0; 16];
        key::random(&mut serial)?;
        // Positive, and of full length.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = name_of(&self.cluster, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        limit(&mut params, self.until.min(now + validity));
        Ok(params)
    }
}

impl fmt::Debug for CertAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertAuthority").finish_non_exhaustive()
    }
}

/// The public key of a certificate that is issued anew.
struct Point<'a>(&'a [u8]);

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Encrypts a private key with a passphrase, as [`CertAuthority::to_sealed_pem`] does.
///
/// # Errors
/// It is not PKCS#8 in PEM, or the machine has no randomness to give.
pub fn encrypt_key(key: &str, passphrase: &str) -> Result<String, IdentityError> {
    key::encrypt(key, passphrase)
}

/// Everything about an authority but its dates follows from its key and its cluster's name. The key's
/// hash in the name keeps two authorities of one company apart.
fn authority_params(key: &KeyPair, cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let hash = Sha256::digest(key.public_key_raw());
    let short = hex(&hash[..4]);
    params.distinguished_name = name_of(cluster, &format!("Kraken authority {short}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn name_of(cluster: &str, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, cluster);
    name.push(DnType::CommonName, common_name);
    name
}

/// Whether an authority has signed a certificate that is valid at `then`.
fn verify(cert: &str, authority: &str, then: UnixTime) -> Result<(), IdentityError> {
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).map_err(issue);
    let (cert, authority) = (pem(cert)?, pem(authority)?);
    let anchor = webpki::anchor_from_trusted_cert(&authority).map_err(issue)?;
    let cert = webpki::EndEntityCert::try_from(&cert).map_err(issue)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let usage = webpki::KeyUsage::client_auth();
    let anchors = [anchor];
    let path = cert.verify_for_usage(algorithms, &anchors, &[], then, usage, None, None);
    let refused =
        |error| format!("the certificate is not of that authority, or has ended: {error}");
    path.map_err(|error| IdentityError::Unfit(refused(error)))?;
    Ok(())
}

fn check_name(whose: &str, name: &str) -> Result<(), IdentityError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > LONGEST || !name.chars().all(plain) || name.starts_with('.')
    {
        return Err(IdentityError::Name(format!(
            "the {whose}'s name {name:?} must consist of 1 to {LONGEST} letters, digits, '.', '_' and '-', and not begin with '.'"
        )));
    }
    Ok(())
}

/// A DNS name, also one whose first label is `*`, or an address.
fn check_host(host: &str) -> Result<(), IdentityError> {
    let name = host.strip_prefix("*.");
    let is_host = match name {
        Some(name) => DnsName::try_from(name).is_ok(),
        None => ServerName::try_from(host).is_ok(),
    };
    // Names in certificates are absolute without a dot at their end.
    if is_host && !host.ends_with('.') {
        return Ok(());
    }
    Err(IdentityError::Name(format!(
        "host {host:?} is neither a DNS name, such as origin-1.example.com, nor an IP address"
    )))
}

/// Valid from an hour ago, because clocks differ.
fn limit(params: &mut CertificateParams, until: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(SystemTime::now() - Duration::from_hours(1));
    params.not_after = epoch + since_epoch(until);
}

/// The time since 1970, in the whole seconds that certificates know.
fn since_epoch(time: SystemTime) -> Duration {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(since.as_secs())
}

fn issue(error: impl fmt::Display) -> IdentityError {
    IdentityError::Issue(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::CertInfo;
    use crate::roles::{Role, RoleNames};

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

    fn days(days: u64) -> Duration {
        Duration::from_hours(24 * days)
    }

    #[test]
    fn a_certificate_says_what_was_asked_for_and_its_renewal_too() {
        let ca = CertAuthority::create_named("east", days(100)).unwrap();
        let (ca_pem, sealed) = ca.to_sealed_pem("secret").unwrap();
        assert!(CertAuthority::from_pem(&ca_pem, &sealed).is_err());
        let ca = CertAuthority::open(&ca_pem, &sealed, Some("secret")).unwrap();
        let zone = "rack-17".parse().unwrap();
        let hosts = [
            "origin-1.example".to_owned(),
            "10.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let wanted = CertRequest {
            role: "origin",
            name: "origin-1",
            hosts: &hosts,
            zone: Some(&zone),
            validity: days(10),
        };
        let (cert, key) = ca.issue_as(&wanted).unwrap();
        let again = ca.renew(&cert, days(1000)).unwrap();
        let read = |pem: &str| CertInfo::from_pem(pem).unwrap().remove(0);
        let (first, second) = (read(&cert), read(&again));
        for info in [&first, &second] {
            let bearer = info.bearer(&RoleNames::Written);
            assert_eq!(bearer.role, Some(Role::Origin));
            assert_eq!(bearer.name.as_deref(), Some("origin-1"));
            assert_eq!(bearer.zone.as_ref(), Some(&zone));
            assert_eq!(info.hosts, hosts);
            assert_eq!(info.organization.as_deref(), Some("east"));
        }
        assert_eq!(first.peer_id, second.peer_id);
        assert_ne!(first.serial, second.serial);
        // No certificate outlives its authority.
        assert!(first.not_after < second.not_after && second.not_after <= ca.until());
        crate::Identity::from_pem(&again, &key, &ca_pem).unwrap();
    }

    #[test]
    fn only_its_own_certificates_are_renewed_and_revoked() {
        let (ca, other) = (
            CertAuthority::create().unwrap(),
            CertAuthority::create().unwrap(),
        );
        let (foreign, _) = other.issue("agent", &[]).unwrap();
        for error in [
            ca.renew(&foreign, days(1)).unwrap_err(),
            ca.revoke(&foreign, None).unwrap_err(),
        ] {
            let info = |pem: &str| CertInfo::from_pem(pem).unwrap().remove(0);
            let issuer = info(&foreign).issuer.unwrap();
            let own = info(&ca.to_pem().0).common_name.unwrap();
            assert_eq!(
                error.to_string(),
                format!(
                    "the certificate of agent was not issued by this authority, {own}, but by {issuer}"
                )
            );
        }
        let error = ca.renew(&ca.to_pem().0, days(1)).unwrap_err();
        assert!(error.to_string().contains("authority's own"), "{error}");
        let (cert, _) = ca.issue("agent", &[]).unwrap();
        let list = other.revoke(&foreign, None).unwrap();
        let error = ca.revoke(&cert, Some(&list)).unwrap_err();
        assert!(error.to_string().contains("another authority's"), "{error}");
    }

    #[test]
    fn a_new_authority_takes_over_what_the_former_one_issued() {
        let (old, new) = (
            CertAuthority::create().unwrap(),
            CertAuthority::create().unwrap(),
        );
        let (cert, key) = old.issue("origin", &["a".into()]).unwrap();
        let (old_pem, new_pem) = (old.to_pem().0, new.to_pem().0);
        let adopted = new.adopt(&cert, &old_pem, days(1)).unwrap();
        let identity = crate::Identity::from_pem(&adopted, &key, &new_pem).unwrap();
        let before = crate::Identity::from_pem(&cert, &key, &old_pem).unwrap();
        assert_eq!(
            (identity.peer_id(), identity.role()),
            (before.peer_id(), before.role())
        );
        let error = new.adopt(&cert, &new_pem, days(1)).unwrap_err();
        assert!(
            error.to_string().contains("not of that authority"),
            "{error}"
        );
    }

    #[test]
    fn a_list_keeps_who_is_on_it() {
        let ca = CertAuthority::create().unwrap();
        let certs: Vec<_> = (0..2).map(|_| ca.issue("agent", &[]).unwrap().0).collect();
        let one = ca.revoke(&certs[0], None).unwrap();
        let two = ca.revoke(&certs[1], Some(&one)).unwrap();
        let again = ca.revoke(&certs[0], Some(&two)).unwrap();
        let serials = |list: &str| ca.revoked(list).unwrap().into_iter().map(|(it, _)| it);
        let own = |at: usize| Parts::of(&certs[at]).unwrap().serial;
        assert!(serials(&one).eq([own(0)]));
        assert!(serials(&two).eq([own(0), own(1)]));
        assert!(serials(&again).eq(serials(&two)));
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
