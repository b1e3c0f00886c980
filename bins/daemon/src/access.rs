//! Who may use a registry, as it is configured, and how it shows who it is.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use kraken_core::net::http::{HttpServer, OutsideTls, ServeError, serve_on, serve_outside};
use kraken_registry::access::{Access, AccessRule, May, TokenConfig, TokenServerConfig};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::process::StartError;
use crate::store::Age;

/// How a registry shows clients who it is, and how these may show who they are: paths of PEM files, which
/// are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// Its certificate, with the chain behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority whose certificates clients may show: what stands there is a name for the rules.
    #[serde(default)]
    pub clients_ca: Option<PathBuf>,
}

/// Serves a registry to its clients, with TLS if that is configured.
///
/// # Errors
/// The socket or a file cannot be used.
pub(crate) fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<&ClientTls>,
    shutdown: CancellationToken,
) -> Result<HttpServer, ServeError> {
    let Some(tls) = tls.cloned() else {
        return serve_on(listener, router, None, shutdown);
    };
    serve_outside(listener, router, &tls.into(), shutdown)
}

impl From<ClientTls> for OutsideTls {
    fn from(tls: ClientTls) -> Self {
        let mut outside = Self::new(tls.cert, tls.key);
        outside.clients_ca = tls.clients_ca;
        outside
    }
}

/// Who may use a registry. Whoever is on the same host, and nobody else, when absent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessConfig {
    /// Users and the hashes of their passwords, as `htpasswd -B` writes them; read again when it changes.
    #[serde(default)]
    pub users_file: Option<PathBuf>,
    /// The tokens that this registry gives; none when absent.
    #[serde(default)]
    pub tokens: Option<TokensConfig>,
    /// Somebody else's token server, whose tokens are taken; none when absent.
    #[serde(default)]
    pub token_server: Option<TokenServer>,
    /// What is granted: what no rule, and no token of `token_server`, grants is refused.
    #[serde(default)]
    pub rules: Option<Vec<AccessRuleConfig>>,
}

/// The tokens that a registry gives to whoever says by name and password who he is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokensConfig {
    /// Where clients reach it, such as `https://registry.example.com/v2/token`.
    pub realm: String,
    /// The issuer and the audience of the tokens, the same for all that take them.
    #[serde(default = "service")]
    pub service: String,
    /// Files with private keys (P-256, PKCS #8, PEM), the same for all that take the tokens: the first
    /// signs, the others are known. Read again when they change.
    pub keys: Vec<PathBuf>,
    /// How long a token is good for; `5m` when absent.
    #[serde(default = "lifetime")]
    pub lifetime: Age,
    /// How long a client may get new ones without the password; not at all when absent.
    #[serde(default)]
    pub refresh: Option<Age>,
}

fn service() -> String {
    "kraken".into()
}

const fn lifetime() -> Age {
    Age(Duration::from_secs(300))
}

/// A token server whose tokens are taken.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenServer {
    /// Where clients get tokens.
    pub realm: String,
    /// What this registry is called there: the audience of the tokens.
    pub service: String,
    /// What the server calls itself in its tokens.
    pub issuer: String,
    /// Files with its public keys: PEM, or JSON (RFC 7517). Read again when they change.
    pub keys: Vec<PathBuf>,
}

/// What is granted to whom.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessRuleConfig {
    /// A regular expression that matches anywhere in the repository; all of them when absent.
    #[serde(default)]
    pub repositories: String,
    /// To whom; to everybody when absent.
    #[serde(default)]
    pub users: Option<BTreeSet<String>>,
    /// What: `pull`, `push`, `delete`.
    pub may: Vec<MayConfig>,
}

/// What can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MayConfig {
    /// Reading.
    Pull,
    /// Pushing.
    Push,
    /// Deleting.
    Delete,
}

impl From<MayConfig> for May {
    fn from(config: MayConfig) -> Self {
        match config {
            MayConfig::Pull => Self::Pull,
            MayConfig::Push => Self::Push,
            MayConfig::Delete => Self::Delete,
        }
    }
}

/// What a configuration grants.
///
/// # Errors
/// A pattern is none, a rule names users and there is no way to be one, or a file cannot be used.
pub(crate) fn access(
    config: Option<&AccessConfig>,
    tls: Option<&ClientTls>,
) -> Result<Arc<Access>, StartError> {
    let has_certificates = tls.is_some_and(|tls| tls.clients_ca.is_some());
    let Some(config) = config else {
        if has_certificates {
            return Err(wrong("clients_ca lets nobody in: write rules"));
        }
        return Ok(Arc::new(Access::this_host()));
    };
    if config.rules.is_none() && config.token_server.is_none() {
        return Err(wrong("write rules: what none grants is refused"));
    }
    if config.tokens.is_some() && config.users_file.is_none() && !has_certificates {
        return Err(wrong("tokens are for users: give their users_file"));
    }
    let mut rules = Vec::new();
    for rule in config.rules.iter().flatten() {
        if rule.users.is_some() && config.users_file.is_none() && !has_certificates {
            return Err(wrong("a rule names users: give their users_file"));
        }
        let repositories = Regex::new(&rule.repositories);
        rules.push(AccessRule {
            repositories: repositories.map_err(wrong)?,
            users: rule.users.clone(),
            may: rule.may.iter().copied().map(May::from).collect(),
        });
    }
    let mut access = Access::new(rules, config.users_file.clone()).map_err(wrong)?;
    if let Some(tokens) = config.tokens.clone() {
        let tokens = TokenConfig {
            realm: tokens.realm,
            service: tokens.service,
            keys: tokens.keys,
            lifetime: tokens.lifetime.0,
            refresh: tokens.refresh.map(|age| age.0),
        };
        access = access.tokens(tokens).map_err(wrong)?;
    }
    if let Some(server) = config.token_server.clone() {
        let server = TokenServerConfig {
            realm: server.realm,
            service: server.service,
            issuer: server.issuer,
            keys: server.keys,
        };
        access = access.token_server(server).map_err(wrong)?;
    }
    Ok(Arc::new(access))
}

fn wrong(what: impl std::fmt::Display) -> StartError {
    StartError::Config(format!("access: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn access_of(text: &str) -> Result<Arc<Access>, String> {
        let config: AccessConfig = parse(text)?;
        access(Some(&config), None).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_of_access_are_checked() {
        assert!(access_of("rules: [{may: [pull]}]").is_ok());
        for (wrong, says) in [
            ("rules: [{may: [pull], users: [a]}]", "users_file"),
            ("rules: [{may: [read]}]", "delete"),
            ("rules: [{may: [pull], repositories: '('}]", "access"),
            ("users_file: /none\nrules: []", "/none"),
            ("rule: []", "rules"),
            ("{}", "rules"),
        ] {
            let error = access_of(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn tokens_are_checked_and_so_are_their_keys() {
        let tokens = |more: &str| {
            format!("rules: [{{may: [pull]}}]\nusers_file: /dev/null\ntokens: {{{more}}}")
        };
        let server = |more: &str| format!("token_server: {{{more}}}");
        let realm = "realm: https://r/v2/token";
        for (wrong, says) in [
            (tokens("keys: [/none]"), "realm"),
            (tokens(&format!("{realm}, keys: [/none]")), "/none"),
            (tokens(&format!("{realm}, keys: []")), "at least one"),
            (tokens(&format!("{realm}, keys: [/dev/null]")), "P-256"),
            (tokens("realm: r, keys: [/none]"), "no URL"),
            (tokens(&format!("{realm}, key: /none")), "keys"),
            (
                tokens(&format!("{realm}, keys: [], lifetime: 1s")),
                "1m at least",
            ),
            (
                server(&format!("{realm}, service: r, keys: [/none]")),
                "issuer",
            ),
            (
                server(&format!("{realm}, service: r, issuer: a, keys: [/none]")),
                "/none",
            ),
            (
                format!("rules: []\ntokens: {{{realm}, keys: [/none]}}"),
                "users_file",
            ),
        ] {
            let error = access_of(&wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn rules_may_name_who_shows_a_certificate() {
        let rules: AccessConfig = parse("rules: [{users: [ci], may: [pull]}]").unwrap();
        let tls: ClientTls = parse("{cert: a, key: b, clients_ca: c}").unwrap();
        assert!(access(Some(&rules), Some(&tls)).is_ok());
        assert!(access(None, Some(&tls)).is_err());
        let tls: ClientTls = parse("{cert: a, key: b}").unwrap();
        assert!(access(Some(&rules), Some(&tls)).is_err());
        assert!(access(None, Some(&tls)).is_ok());
        assert!(parse::<ClientTls>("{cert: a, key: b, ca: c}").is_err());
    }
}
