//! The keys that sign tokens, and those that tell whether one was signed.

use std::path::{Path, PathBuf};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use kraken_proto::Digest;
use ring::signature::KeyPair as _;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;
use serde_json::Value;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::oid_registry::{OID_PKCS1_RSAENCRYPTION, Oid};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{AccessError, signing, watched};

/// Keys in use at once: more would let a client have a signature checked against all of them.
const MOST: usize = 16;

/// A key that tells whether a token was signed by its other half.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    pub(super) id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// Keys of our own: the first signs, all of them are known.
pub(super) struct OwnKeys {
    pub(super) signs: EncodingKey,
    pub(super) id: String,
    pub(super) known: Vec<PublicKey>,
}

/// Reads private keys of the curve P-256, one a file, PKCS #8 in PEM.
///
/// # Errors
/// A file cannot be read or holds something else.
pub(super) fn own(files: &[PathBuf]) -> Result<OwnKeys, AccessError> {
    signing::install();
    let mut known = Vec::new();
    let mut first = None;
    for file in files {
        let wrong = || AccessError::Keys {
            file: file.clone(),
            why: "this is no private key of the curve P-256: write one with \
                  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
                .into(),
        };
        let text = watched::text(file)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong())?;
        let pair = signing::key_pair(der.secret_pkcs8_der()).ok_or_else(wrong)?;
        let point = pair.public_key().as_ref();
        let id = key_id(&[P256, point].concat());
        known.push(PublicKey {
            id: Some(id.clone()),
            algorithms: vec![Algorithm::ES256],
            key: DecodingKey::from_ec_der(point),
        });
        let signs = || (EncodingKey::from_ec_der(der.secret_pkcs8_der()), id);
        first.get_or_insert_with(signs);
    }
    let (signs, id) = first.ok_or(AccessError::NoKeys)?;
    bounded(&known, &files[0])?;
    Ok(OwnKeys { signs, id, known })
}

/// What a SubjectPublicKeyInfo of the curve P-256 has before the point (RFC 5480).
pub(super) const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// How the registry of the Docker project names a key: 240 bits of the SHA-256 of its
/// SubjectPublicKeyInfo in base 32, in groups of four.
fn key_id(info: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Digest::of(info);
    let mut id = String::with_capacity(60);
    for (place, five) in digest.as_bytes()[..30].chunks(5).enumerate() {
        let bits = five
            .iter()
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for half in 0..2 {
            if place + half > 0 {
                id.push(':');
            }
            let letter = |at: usize| {
                let shift = 35 - 5 * (4 * half + at);
                char::from(LETTERS[(bits >> shift & 31) as usize])
            };
            id.extend((0..4).map(letter));
        }
    }
    id
}

/// Reads public keys: PEM with public keys and certificates, or JSON with a key or a set of them.
///
/// # Errors
/// A file cannot be read, or has none, or one that is of no use.
pub(super) fn public(files: &[PathBuf]) -> Result<Vec<PublicKey>, AccessError> {
    signing::install();
    let mut keys = Vec::new();
    for file in files {
        let text = watched::text(file)?;
        let found = match text.trim_start().starts_with('{') {
            true => from_json(&text),
            false => from_pem(&text),
        };
        let wrong = |why: String| AccessError::Keys {
            file: file.clone(),
            why,
        };
        let found = found.map_err(wrong)?;
        if found.is_empty() {
            return Err(wrong("there is no public key in it".into()));
        }
        keys.extend(found);
        bounded(&keys, file)?;
    }
    Ok(keys)
}

fn bounded(keys: &[PublicKey], file: &Path) -> Result<(), AccessError> {
    match keys.len() {
        0..=MOST => Ok(()),
        count => Err(AccessError::Keys {
            file: file.to_path_buf(),
            why: format!("{count} keys: {MOST} at most"),
        }),
    }
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

fn from_json(text: &str) -> Result<Vec<PublicKey>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let set = match value.get("keys") {
        Some(_) => serde_json::from_value(value).map_err(|error| error.to_string()),
        None => Ok(JwkSet { keys: vec![value] }),
    };
    let keys = set?.keys.into_iter().map(from_jwk);
    keys.filter_map(Result::transpose).collect()
}

/// None for keys of other purposes.
fn from_jwk(value: Value) -> Result<Option<PublicKey>, String> {
    let jwk: Jwk = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let purpose = jwk.common.public_key_use.as_ref();
    if purpose.is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Ok(None);
    }
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA.to_vec(),
        AlgorithmParameters::EllipticCurve(params) => match params.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return Ok(None),
        },
        AlgorithmParameters::OctetKey(_) => {
            return Err("a secret is no public key: who checks tokens could make some".into());
        }
        _ => return Ok(None),
    };
    if let Some(only) = jwk.common.key_algorithm {
        algorithms.retain(|it| named(*it) == Some(only));
    }
    if algorithms.is_empty() {
        return Ok(None);
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
    let id = jwk.common.key_id;
    Ok(Some(PublicKey {
        id,
        algorithms,
        key,
    }))
}

const RSA: [Algorithm; 3] = [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];

const fn named(algorithm: Algorithm) -> Option<KeyAlgorithm> {
    Some(match algorithm {
        Algorithm::RS256 => KeyAlgorithm::RS256,
        Algorithm::RS384 => KeyAlgorithm::RS384,
        Algorithm::RS512 => KeyAlgorithm::RS512,
        Algorithm::ES256 => KeyAlgorithm::ES256,
        Algorithm::ES384 => KeyAlgorithm::ES384,
        _ => return None,
    })
}

fn from_pem(text: &str) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        let (kind, der) = section.map_err(|error| format!("this is no PEM: {error:?}"))?;
        match kind {
            SectionKind::Certificate => {
                let broken = |_| "a certificate is broken".to_owned();
                let (_, cert) = X509Certificate::from_der(&der).map_err(broken)?;
                keys.push(from_info(cert.public_key())?);
            }
            SectionKind::PublicKey => {
                let broken = |_| "a public key is broken".to_owned();
                let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(broken)?;
                keys.push(from_info(&info)?);
            }
            SectionKind::PrivateKey | SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey => {
                return Err("a private key has no place here: openssl pkey -pubout".into());
            }
            _ => {}
        }
    }
    Ok(keys)
}

fn from_info(info: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, String> {
    let bytes = &*info.subject_public_key.data;
    let curve = info.algorithm.parameters.as_ref();
    let curve: Option<Oid<'_>> = curve.and_then(|it| it.as_oid().ok());
    let is = |oid: &Oid<'_>| info.algorithm.algorithm == *oid;
    let (algorithms, key) = if is(&OID_PKCS1_RSAENCRYPTION) {
        (RSA.to_vec(), DecodingKey::from_rsa_der(bytes))
    } else if is(&OID_KEY_TYPE_EC_PUBLIC_KEY) && curve == Some(OID_EC_P256) {
        (vec![Algorithm::ES256], DecodingKey::from_ec_der(bytes))
    } else if is(&OID_KEY_TYPE_EC_PUBLIC_KEY) && curve == Some(OID_NIST_EC_P384) {
        (vec![Algorithm::ES384], DecodingKey::from_ec_der(bytes))
    } else {
        return Err("a key is neither of RSA nor of the curves P-256 and P-384".into());
    };
    Ok(PublicKey {
        id: Some(key_id(info.raw)),
        algorithms,
        key,
    })
}
