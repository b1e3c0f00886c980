//! The token server of this registry, as the Docker project's specifications have it: "Token
//! Authentication" (`GET`) and "OAuth2 Token Authentication" (`POST`).

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::Query;
use axum::response::{IntoResponse as _, Response};
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use jiff::Timestamp;
use kraken_proto::Digest;
use serde_json::json;
use tokio::time::timeout;

use super::challenge::{basic_please, check_realm, quotable};
use super::keys::{self, OwnKeys};
use super::scope::{self, Grant, bad};
use super::token::{self, Claims, Said, SaidAgain, TokenError};
use super::users::LoginError;
use super::watched::Watched;
use super::{Access, AccessError, Caller, Refused, certified};
use crate::error::{Code, RegistryError};
use crate::web::{header, param};

/// The tokens that a registry gives.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// Where clients reach this registry's `/v2/token`.
    pub realm: String,
    /// The issuer and the audience of the tokens, the same for all that take them.
    pub service: String,
    /// Files with private keys of the curve P-256 (PKCS #8 in PEM), the same for all that take the
    /// tokens: the first signs, the others are known. They are read again when they change.
    pub keys: Vec<PathBuf>,
    /// How long a token is good for.
    pub lifetime: Duration,
    /// How long a token is good for that gets new ones without the password; none is given when absent.
    pub refresh: Option<Duration>,
}

/// Makes tokens, and checks them.
pub(super) struct Tokens {
    config: TokenConfig,
    /// The audience of tokens that get new ones: they are taken nowhere else.
    refreshing: String,
    keys: Watched<OwnKeys>,
}

/// Bytes of a request's form or query.
const LONGEST: usize = 16 << 10;
/// How long a form may take.
const TIME: Duration = Duration::from_secs(10);

/// Who gets a token, and whether it was by a password, which may get him one to refresh it with.
struct Holder {
    user: Option<String>,
    refresh: Option<String>,
}

impl Tokens {
    pub(super) fn new(config: TokenConfig) -> Result<Self, AccessError> {
        check_realm(&config.realm)?;
        quotable("service", &config.service)?;
        let keys = Watched::open(config.keys.clone(), keys::own)?;
        Ok(Self {
            refreshing: format!("{} (refresh)", config.service),
            config,
            keys,
        })
    }

    #[cfg(test)]
    pub(super) const fn config(&self) -> &TokenConfig {
        &self.config
    }

    pub(super) fn realm(&self) -> (&str, &str) {
        (&self.config.realm, &self.config.service)
    }

    pub(super) fn caller(&self, token: &str) -> Result<Caller, TokenError> {
        let service = self.config.service.as_str();
        let said: Said = token::verify(token, &self.keys.now().known, (service, service))?;
        let user = said.sub.filter(|user| !user.is_empty());
        Ok(Caller::Token(user, said.access.unwrap_or_default()))
    }

    /// A token that gets new ones, as long as the user's password stays.
    fn refresh(&self, user: &str, hash: &str) -> Result<Option<String>, TokenError> {
        let Some(lifetime) = self.config.refresh else {
            return Ok(None);
        };
        let parties = (self.config.service.as_str(), self.refreshing.as_str());
        let login = of_login(hash);
        let mut claims = Claims::new(parties, Some(user), lifetime);
        claims.login = Some(&login);
        token::sign(&claims, &self.keys.now()).map(Some)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Tells one password's hash from another.
fn of_login(hash: &str) -> String {
    let mut hex = Digest::of(hash.as_bytes()).hex();
    hex.truncate(32);
    hex
}

/// What a client asks for.
struct Asked {
    pairs: Vec<(String, String)>,
}

impl Asked {
    async fn read(parts: &Parts, body: Body) -> Result<Self, RegistryError> {
        let text = match parts.method {
            Method::GET => parts.uri.query().unwrap_or_default().to_owned(),
            Method::POST => {
                let kind = header(&parts.headers, CONTENT_TYPE).unwrap_or_default();
                if !kind.starts_with("application/x-www-form-urlencoded") {
                    return Err(bad("send a form: application/x-www-form-urlencoded"));
                }
                let long = |_| bad(format!("a form of {LONGEST} bytes at most"));
                let read = timeout(TIME, to_bytes(body, LONGEST)).await;
                let late = |_| bad(format!("the form did not come within {} s", TIME.as_secs()));
                let bytes = read.map_err(late)?.map_err(long)?;
                String::from_utf8(bytes.to_vec()).map_err(|_| bad("the form is no UTF-8"))?
            }
            _ => {
                let allowed = HeaderValue::from_static("GET, POST");
                let error = RegistryError::new(Code::Unsupported, "ask by GET or POST");
                return Err(error.with_header(ALLOW, allowed));
            }
        };
        if text.len() > LONGEST {
            return Err(bad(format!("{LONGEST} bytes at most")));
        }
        // The form as a query, which is written the same way.
        let uri = Uri::builder().path_and_query(format!("/?{text}")).build();
        let uri = uri.map_err(|_| bad("the query makes no sense"))?;
        let pairs = Query::try_from_uri(&uri).map_err(|_| bad("the query makes no sense"))?;
        Ok(Self { pairs: pairs.0 })
    }

    fn one(&self, name: &str) -> Option<&str> {
        param(&self.pairs, name).filter(|value| !value.is_empty())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.pairs.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }
}

impl Access {
    /// Whether [`Access::issue`] has something to give.
    pub(crate) fn issues(&self) -> bool {
        match self.newer() {
            Some(newer) => newer.tokens.is_some(),
            None => self.tokens.is_some(),
        }
    }

    /// Answers a request for a token.
    pub(crate) async fn issue(&self, parts: Parts, body: Body) -> Result<Response, RegistryError> {
        match self.newer() {
            Some(newer) => newer.issue_by_own(parts, body).await,
            None => self.issue_by_own(parts, body).await,
        }
    }

    async fn issue_by_own(&self, parts: Parts, body: Body) -> Result<Response, RegistryError> {
        let Some(tokens) = &self.tokens else {
            let what = "no tokens are given here";
            return Err(RegistryError::new(Code::Unsupported, what));
        };
        let asked = Asked::read(&parts, body).await?;
        let service = tokens.config.service.as_str();
        if let Some(other) = asked.one("service").filter(|it| *it != service) {
            let other: String = other.chars().take(64).collect();
            return Err(bad(format!("service {other:?}: here is {service:?}")));
        }
        let scopes = scope::parse(asked.all("scope"))?;
        let holder = match parts.method {
            Method::POST => self.by_form(tokens, &asked).await?,
            _ => self.by_header(tokens, &parts, &asked).await?,
        };
        let user = holder.user.as_deref();
        let is_known_to_rules = self.rules.iter().flatten().any(|rule| rule.users.is_none());
        if user.is_none() && !is_known_to_rules {
            return Err(basic_please(super::SAY));
        }
        let grants = scopes.iter().filter_map(|scope| {
            let is_granted = |may| self.grants(user, &scope.name, may);
            Grant::new(scope, is_granted)
        });
        let grants: Vec<_> = grants.collect();
        answer(tokens, &holder, &grants)
    }

    /// By name and password in the header, by a certificate, or without any.
    async fn by_header(
        &self,
        tokens: &Tokens,
        parts: &Parts,
        asked: &Asked,
    ) -> Result<Holder, RegistryError> {
        let user = match header(&parts.headers, AUTHORIZATION) {
            Some(login) => Some(self.user(login).await.map_err(refused)?),
            None => None,
        };
        if let (Some(account), Some(user)) = (asked.one("account"), &user)
            && account != user
        {
            return Err(bad("account: this is not the name of the login"));
        }
        let is_offline = asked.one("offline_token") == Some("true");
        let refresh = match user.as_deref().filter(|_| is_offline) {
            Some(user) => self.refresh_token(tokens, user)?,
            None => None,
        };
        let user = user.or_else(|| certified(parts));
        Ok(Holder { user, refresh })
    }

    /// By what a form says.
    async fn by_form(&self, tokens: &Tokens, asked: &Asked) -> Result<Holder, RegistryError> {
        let need = |name: &str| {
            let missing = || bad(format!("{name}: it is missing"));
            asked.one(name).ok_or_else(missing)
        };
        match need("grant_type")? {
            "password" => {
                let (user, password) = (need("username")?, need("password")?);
                let wrong = || refused(Refused::Login(WRONG.into(), None));
                let users = self.users.as_ref().ok_or_else(wrong)?;
                match users.check(user, password.to_owned()).await {
                    Ok(()) => {}
                    Err(LoginError::Wrong) => return Err(wrong()),
                    Err(LoginError::Busy(error)) => return Err(error),
                }
                let is_offline = asked.one("access_type") == Some("offline");
                let refresh = match is_offline {
                    true => self.refresh_token(tokens, user)?,
                    false => None,
                };
                let user = Some(user.to_owned());
                Ok(Holder { user, refresh })
            }
            "refresh_token" => {
                let token = need("refresh_token")?;
                let wrong = |_| basic_please("the refresh token is not taken: docker login");
                let parties = (tokens.config.service.as_str(), tokens.refreshing.as_str());
                let known = &tokens.keys.now().known;
                let said: SaidAgain = token::verify(token, known, parties).map_err(wrong)?;
                let hash = self.users.as_ref().and_then(|users| users.hash(&said.sub));
                if hash.is_none_or(|hash| of_login(&hash) != said.login) {
                    return Err(wrong(TokenError("another password")));
                }
                Ok(Holder {
                    user: Some(said.sub),
                    refresh: Some(token.to_owned()),
                })
            }
            _ => Err(bad("grant_type: password or refresh_token")),
        }
    }

    fn refresh_token(&self, tokens: &Tokens, user: &str) -> Result<Option<String>, RegistryError> {
        let hash = self.users.as_ref().and_then(|users| users.hash(user));
        let made = hash.map(|hash| tokens.refresh(user, &hash));
        Ok(made.transpose().map_err(unsigned)?.flatten())
    }
}

const WRONG: &str = "the name or the password is wrong";

fn refused(why: Refused) -> RegistryError {
    match why {
        Refused::Login(why, _) => basic_please(&why),
        Refused::Busy(error) => error,
    }
}

fn unsigned(error: TokenError) -> RegistryError {
    RegistryError::new(Code::Unknown, format!("no token can be signed: {error}"))
}

fn answer(tokens: &Tokens, holder: &Holder, grants: &[Grant]) -> Result<Response, RegistryError> {
    let (service, lifetime) = (tokens.config.service.as_str(), tokens.config.lifetime);
    let mut claims = Claims::new((service, service), holder.user.as_deref(), lifetime);
    claims.access = Some(grants);
    let token = token::sign(&claims, &tokens.keys.now()).map_err(unsigned)?;
    let scope: Vec<_> = grants.iter().map(Grant::text).collect();
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut told = json!({
        "token": token,
        "access_token": token,
        "expires_in": lifetime.as_secs(),
        "issued_at": format!("{now:.0}"),
        "scope": scope.join(" "),
    });
    if let Some(refresh) = &holder.refresh {
        told["refresh_token"] = json!(refresh);
    }
    let mut response = Json(told).into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    Ok(response)
}
