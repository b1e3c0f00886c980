//! Private keys in PEM, plain or encrypted with a passphrase (PKCS#8, PBES2).

use pkcs8::der::pem::LineEnding;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfo, PrivateKeyInfo, SecretDocument};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::identity::{IdentityError, provider};

/// What the PEM of an encrypted key begins with.
const LABEL: &str = "ENCRYPTED PRIVATE KEY";

/// N = 2^14, r = 8 and p = 5 of scrypt: of the settings that OWASP's cheat sheet on password storage holds
/// for equally strong, one whose 16 MiB OpenSSL allows.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);

/// Reads a private key; `passphrase` opens one that is encrypted.
pub(crate) fn read(
    pem: &str,
    passphrase: Option<&str>,
) -> Result<PrivateKeyDer<'static>, IdentityError> {
    if pem.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(wrong(
            "it is encrypted in the old way of OpenSSL: convert it with `openssl pkcs8 -topk8`",
        ));
    }
    match (is_encrypted(pem), passphrase) {
        (false, _) => PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(wrong),
        (true, None) => Err(wrong("it is encrypted, and no passphrase is given")),
        (true, Some(passphrase)) => {
            let (_, sealed) = SecretDocument::from_pem(pem).map_err(wrong)?;
            let sealed = EncryptedPrivateKeyInfo::try_from(sealed.as_bytes()).map_err(wrong)?;
            let opened = sealed
                .decrypt(passphrase)
                .map_err(|_| wrong("it does not open with the passphrase that is given"))?;
            Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
        }
    }
}

/// Whether a key needs a passphrase.
pub(crate) fn is_encrypted(pem: &str) -> bool {
    pem.contains(&format!("-----BEGIN {LABEL}-----"))
}

/// Encrypts a PKCS#8 key with AES-256, by a key that scrypt makes of the passphrase.
pub(crate) fn encrypt(pem: &str, passphrase: &str) -> Result<String, IdentityError> {
    let (_, plain) = SecretDocument::from_pem(pem).map_err(wrong)?;
    let plain = PrivateKeyInfo::try_from(plain.as_bytes()).map_err(wrong)?;
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    random(&mut salt)?;
    random(&mut iv)?;
    let (log_n, block, parallel) = SCRYPT;
    let cost = scrypt::Params::new(log_n, block, parallel, 32).map_err(wrong)?;
    let scheme = pbes2::Parameters::scrypt_aes256cbc(cost, &salt, &iv);
    let sealed = plain
        .encrypt_with_params(scheme.map_err(wrong)?, passphrase)
        .map_err(wrong)?;
    let pem = sealed.to_pem(LABEL, LineEnding::LF).map_err(wrong)?;
    Ok(pem.to_string())
}

/// Fills `bytes` from the system's randomness.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), IdentityError> {
    let filled = provider().secure_random.fill(bytes);
    filled.map_err(|_| IdentityError::Issue("the system gives no randomness".into()))
}

fn wrong(reason: impl std::fmt::Display) -> IdentityError {
    IdentityError::pem("private key", reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertAuthority;

    #[test]
    fn a_key_opens_with_its_passphrase_and_no_other() {
        let (_, plain) = CertAuthority::create().unwrap().to_pem();
        let sealed = encrypt(&plain, "open sesame").unwrap();
        assert!(is_encrypted(&sealed) && !is_encrypted(&plain));
        let opened = read(&sealed, Some("open sesame")).unwrap();
        assert_eq!(opened, read(&plain, None).unwrap());
        let said = |passphrase| read(&sealed, passphrase).unwrap_err().to_string();
        assert!(said(None).contains("no passphrase is given"));
        assert!(said(Some("open barley")).contains("does not open"));
    }

    /// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:kraken`
    #[test]
    fn a_key_of_openssl_opens() {
        let sealed = include_str!("../testdata/openssl.key");
        read(sealed, Some("kraken")).unwrap();
        let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
        let told = read(old, Some("kraken")).unwrap_err().to_string();
        assert!(told.contains("openssl pkcs8 -topk8"), "{told}");
    }
}
