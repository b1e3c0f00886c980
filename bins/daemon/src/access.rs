//! Who may use a registry, as it is configured, and how it shows who it is.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use kraken_core::net::http::{HttpServer, OutsideTls, ServeError, serve_on, serve_outside};
use kraken_registry::access::{
    Access, AccessError, AccessRule, May, TokenConfig, TokenServerConfig,
};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::pattern::Pattern;
use crate::problems::Problems;
use crate::store::Age;
use crate::tls::{KeyPassword, certificates};

/// How a registry shows clients who it is, and how these may show who they are: paths of PEM files, which
/// are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// Its certificate, with the chain behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// What opens the key, if it is encrypted.
    #[serde(default)]
    pub key_password: Option<KeyPassword>,
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
        outside.key_password = tls.key_password.map(|it| it.file);
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
    /// How long a token is good for.
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
    pub repositories: Pattern,
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

/// What a configuration grants; what is odd about it goes to the log.
///
/// # Errors
/// Something contradicts itself, a rule names users and there is no way to be one, or a file cannot be used.
pub(crate) fn access(
    config: Option<&AccessConfig>,
    tls: Option<&ClientTls>,
) -> Result<Arc<Access>, Problems> {
    let access = granted(config, tls)?;
    if config.is_some_and(AccessConfig::asks_nobody) {
        tracing::warn!(
            "everybody may do something and there are no `tokens`: container clients are not asked for a password, and come as nobody"
        );
    }
    Ok(access)
}

fn granted(
    config: Option<&AccessConfig>,
    tls: Option<&ClientTls>,
) -> Result<Arc<Access>, Problems> {
    let has_certificates = tls.is_some_and(|tls| tls.clients_ca.is_some());
    let Some(config) = config else {
        if has_certificates {
            let what = "whom it names nobody lets in: write `access` with rules for them";
            return Err(Problems::one("client_tls.clients_ca", what));
        }
        return Ok(Arc::new(Access::this_host()));
    };
    let made = contradictions(config, has_certificates).and_then(|()| config.make());
    made.map(Arc::new).map_err(|wrong| wrong.under("access"))
}

/// Keys that contradict each other, or mean nothing.
fn contradictions(config: &AccessConfig, has_certificates: bool) -> Result<(), Problems> {
    let mut found = Problems::default();
    if config.rules.is_none() && config.token_server.is_none() {
        found.add("", "write rules: what none grants is refused");
    }
    let has_users = config.users_file.is_some() || has_certificates;
    if let Some(tokens) = &config.tokens {
        if !has_users {
            found.add("tokens", "tokens are for users: give their users_file");
        }
        if config.token_server.is_some() {
            let what =
                "clients are told of one server only: give tokens, or take those of a token_server";
            found.add("token_server", what);
        }
        if let Some(refresh) = tokens.refresh.filter(|it| it.0 <= tokens.lifetime.0) {
            let what = format!(
                "{refresh} is over before the token itself, whose lifetime is {}: write more, or leave this out",
                tokens.lifetime
            );
            found.add("tokens.refresh", what);
        }
    }
    for (index, rule) in config.rules.iter().flatten().enumerate() {
        if rule.may.is_empty() {
            let what = "this grants nothing: write pull, push or delete, or leave the rule out";
            found.add(format!("rules[{index}].may"), what);
        }
        let Some(users) = &rule.users else { continue };
        let key = format!("rules[{index}].users");
        if users.is_empty() {
            let what = "nobody is named: name users, or leave this out for everybody";
            found.add(key, what);
        } else if !has_users {
            found.add(key, "a rule names users: give their users_file");
        }
    }
    found.done(())
}

impl AccessConfig {
    /// Whether there are users, and nothing that makes clients say that they are one: they ask `/v2/`, which is open
    /// when everybody may do something.
    fn asks_nobody(&self) -> bool {
        let is_open = self.rules.iter().flatten().any(|it| it.users.is_none());
        let has_tokens = self.tokens.is_some() || self.token_server.is_some();
        self.users_file.is_some() && is_open && !has_tokens
    }

    fn make(&self) -> Result<Access, Problems> {
        let rules = self.rules.iter().flatten().map(|rule| AccessRule {
            repositories: rule.repositories.regex(),
            users: rule.users.clone(),
            may: rule.may.iter().copied().map(May::from).collect(),
        });
        let made = Access::new(rules.collect(), self.users_file.clone());
        let mut access = made.map_err(|error| Problems::one("users_file", error))?;
        if let Some(tokens) = self.tokens.clone() {
            let keys = tokens.keys.clone();
            let tokens = TokenConfig {
                realm: tokens.realm,
                service: tokens.service,
                keys: tokens.keys,
                lifetime: tokens.lifetime.0,
                refresh: tokens.refresh.map(|age| age.0),
            };
            let made = access.tokens(tokens);
            access = made.map_err(|error| of_tokens(&error, &keys).under("tokens"))?;
        }
        if let Some(server) = self.token_server.clone() {
            let keys = server.keys.clone();
            let server = TokenServerConfig {
                realm: server.realm,
                service: server.service,
                issuer: server.issuer,
                keys: server.keys,
            };
            let made = access.token_server(server);
            access = made.map_err(|error| of_tokens(&error, &keys).under("token_server"))?;
        }
        Ok(access)
    }
}

/// Which key is wrong with tokens of one kind, whose keys are in these files.
fn of_tokens(error: &AccessError, keys: &[PathBuf]) -> Problems {
    let key = match error {
        AccessError::Read { file, .. } | AccessError::Keys { file, .. } => {
            let at = keys.iter().position(|it| it == file);
            at.map_or_else(|| "keys".into(), |at| format!("keys[{at}]"))
        }
        AccessError::NoKeys => "keys".into(),
        // Texts begin with their keys.
        error => {
            let text = error.to_string();
            let word = text.split(':').next().unwrap_or_default();
            let is_key = ["realm", "service", "issuer"].contains(&word);
            return match text.split_once(": ").filter(|_| is_key) {
                Some((key, what)) => Problems::one(key, what),
                None => Problems::one("", text),
            };
        }
    };
    Problems::one(key, error)
}

impl Problems {
    /// Users, rules and certificates of a registry.
    pub(crate) fn of_access(&mut self, config: Option<&AccessConfig>, tls: Option<&ClientTls>) {
        self.of(granted(config, tls));
        if let Some(tls) = tls {
            let mut files = vec![("cert", tls.cert.as_path()), ("key", &tls.key)];
            let password = tls.key_password.as_ref();
            files.extend(password.map(|it| ("key_password.file", it.file.as_path())));
            files.extend(tls.clients_ca.as_deref().map(|it| ("clients_ca", it)));
            let read = certificates(&files, || OutsideTls::from(tls.clone()).check());
            self.of(read.map_err(|wrong| wrong.under("client_tls")));
        }
    }
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
            (
                "rules: [{may: [pull], repositories: '('}]",
                "rules[0].repositories: ",
            ),
            ("users_file: /none\nrules: []", "/none"),
            ("rule: []", "rules"),
            ("{}", "rules"),
            (
                "rules: [{may: []}]",
                "access.rules[0].may: this grants nothing",
            ),
            (
                "users_file: /dev/null\nrules: [{may: [pull]}, {may: [pull], users: []}]",
                "access.rules[1].users: nobody is named",
            ),
        ] {
            let error = access_of(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    const SERVER: &str = "realm: https://r/v2/token, service: r, issuer: a, keys: [/none]";

    #[test]
    fn tokens_are_checked_and_so_are_their_keys() {
        let tokens = |more: &str| {
            format!("rules: [{{may: [pull]}}]\nusers_file: /dev/null\ntokens: {{{more}}}")
        };
        let server = |more: &str| format!("token_server: {{{more}}}");
        let realm = "realm: https://r/v2/token";
        for (wrong, says) in [
            (tokens("keys: [/none]"), "realm"),
            (
                tokens(&format!("{realm}, keys: [/none]")),
                "access.tokens.keys[0]: cannot read /none",
            ),
            (
                tokens(&format!("{realm}, keys: [/none], refresh: 5m")),
                "access.tokens.refresh: 5m is over before",
            ),
            (
                tokens(&format!("{realm}, keys: [/none]")) + "\n" + &server(SERVER),
                "access.token_server: clients are told of one server only",
            ),
            (tokens(&format!("{realm}, keys: []")), "at least one"),
            (tokens(&format!("{realm}, keys: [/dev/null]")), "P-256"),
            (
                tokens("realm: r, keys: [/none]"),
                "access.tokens.realm: \"r\" is no URL",
            ),
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
