//! A blob's name: the SHA-256 of its bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a blob, which is also its name.
///
/// The text form is `sha256:` and 64 lower-case hexadecimal digits. Upper case is refused rather
/// than folded, so that a blob never has two names.
///
/// ```
/// use kraken_proto::Digest;
///
/// let digest = Digest::of(b"");
/// assert_eq!(
///     digest.to_string(),
///     "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
/// );
/// assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Parses 64 lower-case hexadecimal digits without the `sha256:` in front.
    ///
    /// # Errors
    /// [`DigestError`] says which rule the text breaks.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        if text.len() != 64 {
            return Err(DigestError::Length(text.len()));
        }
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(DigestError::UpperCase);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError::NotHex)?;
        Ok(Self(bytes))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.split_once(':') {
            Some(("sha256", digits)) => Self::from_hex(digits),
            Some((algorithm, _)) => {
                Err(DigestError::Algorithm(algorithm.chars().take(16).collect()))
            }
            None => Err(DigestError::NoAlgorithm),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    /// The first 12 digits: enough to tell blobs apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", &self.hex()[..12])
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// There is no colon: the algorithm is missing.
    #[error("a digest is written sha256:<64 hexadecimal digits>, and this one has no algorithm")]
    NoAlgorithm,
    /// The algorithm is not SHA-256.
    #[error("digest algorithm {0:?} is not supported, only sha256")]
    Algorithm(String),
    /// The number of digits is wrong.
    #[error("a sha256 digest has 64 hexadecimal digits, this one has {0}")]
    Length(usize),
    /// A digit is in upper case.
    #[error("a digest is written in lower case")]
    UpperCase,
    /// A character is not a hexadecimal digit.
    #[error("a digest holds hexadecimal digits only")]
    NotHex,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let digest = Digest::of(b"kraken");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(Digest::from_hex(&digest.hex()), Ok(digest));
        assert_eq!(format!("{digest:?}").len(), "sha256:".len() + 12);
    }

    #[test]
    fn wrong_texts_are_refused_with_the_rule_they_break() {
        let good = Digest::of(b"x").to_string();
        let cases = [
            (good.to_uppercase(), DigestError::Algorithm("SHA256".into())),
            (good[7..].to_string(), DigestError::NoAlgorithm),
            (
                good.replace("sha256", "sha512"),
                DigestError::Algorithm("sha512".into()),
            ),
            (good[..70].to_string(), DigestError::Length(63)),
            (format!("sha256:{}", "A".repeat(64)), DigestError::UpperCase),
            (format!("sha256:{}", "g".repeat(64)), DigestError::NotHex),
            (format!("sha256:{}", "é".repeat(32)), DigestError::NotHex),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }
}
