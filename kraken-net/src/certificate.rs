//! What a certificate says, in words of Kraken.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kraken_proto::PeerId;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use crate::identity::{IdentityError, certificates, peer_id_of};
use crate::roles::{Bearer, RoleNames};

/// The longest name that is read out of a certificate, in bytes.
const LONGEST: usize = 255;

/// A certificate, read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertInfo {
    /// Whose it is: the common name.
    pub common_name: Option<String>,
    /// The organization; certificates of [`crate::CertAuthority`] have the cluster's name there.
    pub organization: Option<String>,
    /// Who issued it: the issuer's common name.
    pub issuer: Option<String>,
    /// Its number among those of its issuer, in hexadecimal.
    pub serial: String,
    /// The DNS names and addresses that it is valid for.
    pub hosts: Vec<String>,
    /// Its URIs, which name the role.
    pub uris: Vec<String>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Whether it may issue others.
    pub is_authority: bool,
    /// The identity that it proves.
    pub peer_id: PeerId,
}

impl CertInfo {
    /// Reads each certificate in a PEM text.
    ///
    /// # Errors
    /// There is none, or one is not an X.509 certificate.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, IdentityError> {
        let read = certificates("certificate", text)?;
        read.iter().map(Self::from_der).collect()
    }

    /// The certificates in a PEM file, in its order. Blocks while it reads.
    ///
    /// # Errors
    /// The file cannot be read, or as [`CertInfo::from_pem`].
    pub fn in_file(path: &Path) -> Result<Vec<Self>, IdentityError> {
        let text = std::fs::read_to_string(path).map_err(|source| IdentityError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Self::from_pem(&text)
    }

    pub(crate) fn from_der(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(wrong)?;
        let others = cert.subject_alternative_name().map_err(wrong)?;
        let others = others.map(|it| it.value.general_names.as_slice());
        let (mut hosts, mut uris) = (Vec::new(), Vec::new());
        for name in others.unwrap_or_default() {
            match name {
                GeneralName::DNSName(name) => hosts.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => hosts.extend(addr(bytes).map(|it| it.to_string())),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        Ok(Self {
            common_name: text_of(cert.subject().iter_common_name().next()),
            organization: text_of(cert.subject().iter_organization().next()),
            issuer: text_of(cert.issuer().iter_common_name().next()),
            serial: hex(cert.raw_serial()),
            hosts,
            uris,
            not_before: time(cert.validity().not_before),
            not_after: time(cert.validity().not_after),
            is_authority: cert.is_ca(),
            peer_id: peer_id_of(der)?,
        })
    }

    /// Its role, name and zone, where these are said as `names` has it.
    pub fn bearer(&self, names: &RoleNames) -> Bearer {
        names.bearer(self)
    }
}

/// The parts of a certificate that its renewal keeps, and those that identify it.
pub(crate) struct Parts {
    pub(crate) info: CertInfo,
    /// The subject's and the issuer's names, in DER.
    pub(crate) subject: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    /// The algorithm of the key, in DER, and the key itself.
    pub(crate) key: (Vec<u8>, Vec<u8>),
}

impl Parts {
    pub(crate) fn of(pem: &str) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", pem)?;
        let (_, cert) = X509Certificate::from_der(&chain[0]).map_err(wrong)?;
        let raw = |name: &X509Name<'_>| name.as_raw().to_vec();
        let oids = cert.public_key().algorithm.algorithm.as_bytes().to_vec();
        Ok(Self {
            info: CertInfo::from_der(&chain[0])?,
            subject: raw(cert.subject()),
            issuer: raw(cert.issuer()),
            serial: cert.raw_serial().to_vec(),
            key: (oids, cert.public_key().subject_public_key.data.to_vec()),
        })
    }
}

/// Bytes as colon-free lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String grows");
        text
    })
}

pub(crate) fn text_of(
    name: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>,
) -> Option<String> {
    let name = name?.as_str().ok()?;
    let fits = !name.is_empty() && name.len() <= LONGEST && !name.contains(char::is_control);
    fits.then(|| name.to_owned())
}

fn addr(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|it| Ipv4Addr::from(it).into());
    let sixteen = || <[u8; 16]>::try_from(bytes).map(|it| Ipv6Addr::from(it).into());
    four.or_else(|_| sixteen()).ok()
}

pub(crate) fn time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn wrong(reason: impl std::fmt::Display) -> IdentityError {
    IdentityError::pem("certificate", reason)
}
