//! Tokens: JSON Web Tokens (RFC 7519) with what they grant, as the specification of the Docker project's
//! registry has them.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::keys::{OwnKeys, PublicKey};
use super::scope::Grant;

/// Bytes of a token, at most: clients send it with every request.
const LONGEST: usize = 16 << 10;
/// How far apart the clocks of two hosts may be, in seconds.
const LEEWAY: u64 = 60;

/// What a token for this registry says.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Said {
    /// Who; empty, as servers write it, or absent when nobody has said who he is.
    pub(super) sub: Option<String>,
    /// What is granted. Some servers leave it out, or write `null`, when that is nothing.
    pub(super) access: Option<Vec<Grant>>,
}

/// What a token says that gets new ones.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct SaidAgain {
    pub(super) sub: String,
    /// Of the password that was right: another one ends it.
    pub(super) login: String,
}

/// What we write into one.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    exp: u64,
    nbf: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access: Option<&'a [Grant]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) login: Option<&'a str>,
}

impl<'a> Claims<'a> {
    /// Of now, for so long; who says nothing of himself is called by an empty name.
    pub(super) fn new(
        (issuer, audience): (&'a str, &'a str),
        user: Option<&'a str>,
        lifetime: Duration,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        Self {
            iss: issuer,
            sub: user.unwrap_or_default(),
            aud: audience,
            exp: now + lifetime.as_secs(),
            nbf: now,
            iat: now,
            access: None,
            login: None,
        }
    }
}

/// Signs one.
pub(super) fn sign(claims: &impl Serialize, keys: &OwnKeys) -> Result<String, TokenError> {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(keys.id.clone());
    encode(&header, claims, &keys.signs).map_err(TokenError::from)
}

/// What a token says that one of the keys has signed, if it is from `issuer`, for `audience` and for now.
pub(super) fn verify<T: DeserializeOwned>(
    token: &str,
    keys: &[PublicKey],
    (issuer, audience): (&str, &str),
) -> Result<T, TokenError> {
    if token.len() > LONGEST {
        return Err(TokenError("it is too long"));
    }
    let header = decode_header(token)?;
    if header.crit.is_some() {
        return Err(TokenError("it asks for what is not known here"));
    }
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.required_spec_claims = ["exp", "iss", "aud"].map(str::to_owned).into();
    // The key says what it signs with, not the token.
    let fits = |key: &&PublicKey| key.algorithms.contains(&header.alg);
    let named: HashSet<_> = keys.iter().filter_map(|key| key.id.as_ref()).collect();
    let id = header.kid.as_ref().filter(|id| named.contains(id));
    let candidates = keys.iter().filter(fits);
    let candidates = candidates.filter(|key| id.is_none() || key.id.as_ref() == id);
    let mut refused = TokenError("it is signed by none of the keys that are known here");
    for key in candidates {
        match decode::<T>(token, &key.key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
            Err(error) => refused = error.into(),
        }
    }
    Err(refused)
}

/// Why a token is not taken. The text is for the client, and holds nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenError(pub(super) &'static str);

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl From<jsonwebtoken::errors::Error> for TokenError {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        Self(match error.kind() {
            ErrorKind::ExpiredSignature => "it has run out",
            ErrorKind::ImmatureSignature => "it is not valid yet",
            ErrorKind::InvalidIssuer => "it is of another issuer",
            ErrorKind::InvalidAudience => "it is for another service",
            ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
                "it does not say what it must"
            }
            ErrorKind::InvalidSignature => "its signature is wrong",
            _ => "it makes no sense",
        })
    }
}
