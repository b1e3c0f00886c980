//! The files of an identity.

use std::path::{Path, PathBuf};

use super::error::IdentityError;

/// What the files of an identity hold.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Pem {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) ca: String,
    pub(crate) crl: Option<String>,
    pub(crate) passphrase: Option<String>,
}

/// The PEM files of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdentityFiles {
    /// The certificate, with the chain behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities.
    pub ca: PathBuf,
    /// The lists of revoked certificates.
    pub crl: Option<PathBuf>,
    /// A file whose first line is the key's passphrase.
    pub key_password: Option<PathBuf>,
}

impl IdentityFiles {
    /// These three, and no others.
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>, ca: impl Into<PathBuf>) -> Self {
        Self {
            cert: cert.into(),
            key: key.into(),
            ca: ca.into(),
            crl: None,
            key_password: None,
        }
    }

    pub(crate) fn read(&self) -> Result<Pem, IdentityError> {
        let key_password = self.key_password.as_deref();
        Ok(Pem {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            ca: read(&self.ca)?,
            crl: self.crl.as_deref().map(read).transpose()?,
            passphrase: key_password.map(passphrase).transpose()?,
        })
    }
}

/// The passphrase in a file: its first line.
pub(crate) fn passphrase(path: &Path) -> Result<String, IdentityError> {
    let text = read(path)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

pub(crate) fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(|source| IdentityError::Read {
        path: path.to_path_buf(),
        source,
    })
}
