//! Tokens of somebody else's server: it decides, and its signature proves it.

use std::path::PathBuf;

use super::challenge::{check_realm, quotable};
use super::keys::{self, PublicKey};
use super::token::{self, Said, TokenError};
use super::watched::Watched;
use super::{AccessError, Caller};

/// A token server whose tokens are taken.
#[derive(Debug, Clone)]
pub struct TokenServerConfig {
    /// Where clients get tokens.
    pub realm: String,
    /// What this registry is called there: the audience of the tokens.
    pub service: String,
    /// What the server calls itself in its tokens.
    pub issuer: String,
    /// Files with the public keys of the server: PEM (public keys or certificates), or JSON (a key or a
    /// set of them, RFC 7517). They are read again when they change.
    pub keys: Vec<PathBuf>,
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct TokenServer {
    config: TokenServerConfig,
    keys: Watched<Vec<PublicKey>>,
}

impl TokenServer {
    pub(super) fn new(config: TokenServerConfig) -> Result<Self, AccessError> {
        check_realm(&config.realm)?;
        quotable("service", &config.service)?;
        if config.keys.is_empty() {
            return Err(AccessError::NoKeys);
        }
        let keys = Watched::open(config.keys.clone(), keys::public)?;
        Ok(Self { config, keys })
    }

    pub(super) fn realm(&self) -> (&str, &str) {
        (&self.config.realm, &self.config.service)
    }

    pub(super) fn caller(&self, token: &str) -> Result<Caller, TokenError> {
        let wanted = (self.config.issuer.as_str(), self.config.service.as_str());
        let said: Said = token::verify(token, &self.keys.now(), wanted)?;
        Ok(Caller::Foreign(said.access.unwrap_or_default()))
    }
}
