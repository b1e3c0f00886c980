//! Who may do what with which repository.
//!
//! Rules grant; what none grants is refused. A user proves who it is by name and password (basic
//! authentication), against a file as `htpasswd -B` writes it, by a client certificate, or by a token,
//! which this registry gives for the others ([`TokenConfig`]). A token server of somebody else
//! ([`TokenServerConfig`]) may grant as well. Without any rules, whoever is on the same host may do
//! everything, and nobody else anything.

mod challenge;
mod error;
mod issue;
mod keys;
mod scope;
mod server;
mod signing;
mod token;
mod users;
mod watched;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::ConnectInfo;
use http::Method;
use http::header::AUTHORIZATION;
use http::request::Parts;
use kraken_core::net::http::TlsClient;
use regex::Regex;

use crate::error::{Code, RegistryError};
use crate::name::RepoName;
use crate::route::Route;
use crate::web::header;
use challenge::{basic_please, bearer};
use issue::Tokens;
use scope::{CATALOG, Grant};
use server::TokenServer;
use users::{LoginError, Users};

pub use error::AccessError;
pub use issue::TokenConfig;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use scope::fuzz as fuzz_scopes;
pub use server::TokenServerConfig;

/// What can be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum May {
    /// Read it, its tags and referrers.
    Pull,
    /// Push blobs and manifests, and set tags.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
}

/// One rule: it grants.
#[derive(Debug, Clone)]
pub struct AccessRule {
    /// What the repository looks like; it may match anywhere in it.
    pub repositories: Regex,
    /// To whom; to everybody, also without a name, when absent.
    pub users: Option<BTreeSet<String>>,
    /// What.
    pub may: BTreeSet<May>,
}

/// Who may do what.
#[derive(Debug)]
pub struct Access {
    /// Only this host when absent.
    rules: Option<Vec<AccessRule>>,
    users: Option<Users>,
    tokens: Option<Tokens>,
    server: Option<TokenServer>,
    /// What holds instead.
    newer: RwLock<Option<Arc<Self>>>,
}

/// Who asks, as far as that was proved.
#[derive(Debug)]
enum Caller {
    Nobody,
    User(String),
    /// Somebody, or nobody, with a token of ours, which may say less than the rules.
    Token(Option<String>, Vec<Grant>),
    /// Who has a token of the other server.
    Foreign(Vec<Grant>),
}

/// How a request is answered.
enum Verdict {
    Granted,
    /// Whoever it is may not.
    Refused(String),
    /// Another login, or another token, may help.
    Login(&'static str, Option<&'static str>),
}

impl Default for Access {
    fn default() -> Self {
        Self::this_host()
    }
}

impl Access {
    /// Everything for whoever is on the same host, nothing for anybody else.
    pub const fn this_host() -> Self {
        Self {
            rules: None,
            users: None,
            tokens: None,
            server: None,
            newer: RwLock::new(None),
        }
    }

    /// Lets something else hold from the next request on, wherever this one is used.
    pub fn replace(&self, by: Arc<Self>) {
        *self.newer.write().unwrap_or_else(PoisonError::into_inner) = Some(by);
    }

    /// What holds instead of this, if anything.
    pub(crate) fn newer(&self) -> Option<Arc<Self>> {
        self.newer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Everything for everybody.
    pub fn everybody() -> Self {
        let rule = AccessRule {
            repositories: Regex::new("").expect("it is one"),
            users: None,
            may: [May::Pull, May::Push, May::Delete].into(),
        };
        Self {
            rules: Some(vec![rule]),
            ..Self::this_host()
        }
    }

    /// What these rules grant; users prove who they are against a file with lines of `name:hash`, whose
    /// hashes are of bcrypt, which is read again when it changes.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it makes no sense.
    pub fn new(rules: Vec<AccessRule>, users: Option<PathBuf>) -> Result<Self, AccessError> {
        Ok(Self {
            rules: Some(rules),
            users: users.map(Users::open).transpose()?,
            ..Self::this_host()
        })
    }

    /// Gives tokens to those whom the rules grant something, at `/v2/token`, and takes them. Clients are
    /// told to get one; names and passwords are still taken.
    ///
    /// # Errors
    /// A key cannot be read or used, or the realm is no URL.
    pub fn tokens(mut self, config: TokenConfig) -> Result<Self, AccessError> {
        self.tokens = Some(Tokens::new(config)?);
        self.one_kind()
    }

    /// Takes the tokens of somebody else's server: they grant what they say, beside the rules. Clients
    /// are told to get one there.
    ///
    /// # Errors
    /// A key cannot be read or used, or the realm is no URL.
    pub fn token_server(mut self, config: TokenServerConfig) -> Result<Self, AccessError> {
        self.server = Some(TokenServer::new(config)?);
        self.one_kind()
    }

    /// Clients are told of one token server only.
    fn one_kind(self) -> Result<Self, AccessError> {
        match (&self.tokens, &self.server) {
            (Some(_), Some(_)) => Err(AccessError::Text(
                "give tokens, or take those of a token_server: not both".into(),
            )),
            _ => Ok(self),
        }
    }

    /// Lets a client read from a repository, or says why not.
    ///
    /// # Errors
    /// 401 or 403.
    pub async fn check_pull(&self, parts: &Parts, repo: &RepoName) -> Result<(), RegistryError> {
        let mut reading = parts.clone();
        reading.method = Method::GET;
        self.check(&reading, &Route::Tags(repo.clone())).await
    }

    /// The same for all repositories at once.
    ///
    /// # Errors
    /// 401 or 403.
    pub async fn check_pull_all(&self, parts: &Parts) -> Result<(), RegistryError> {
        self.check(parts, &Route::Catalog).await
    }

    /// Lets only clients on this host through, whatever the rules are.
    ///
    /// # Errors
    /// 403.
    pub fn check_this_host(parts: &Parts) -> Result<(), RegistryError> {
        from_this_host(parts)
    }

    /// Lets a request through, or says why not.
    pub(crate) async fn check(&self, parts: &Parts, route: &Route) -> Result<(), RegistryError> {
        match self.newer() {
            Some(newer) => newer.check_by_own(parts, route).await,
            None => self.check_by_own(parts, route).await,
        }
    }

    async fn check_by_own(&self, parts: &Parts, route: &Route) -> Result<(), RegistryError> {
        let Some(rules) = &self.rules else {
            return from_this_host(parts);
        };
        let needed = needed(&parts.method, route);
        let caller = match self.caller(parts).await {
            Ok(caller) => caller,
            Err(Refused::Login(why, hint)) => return Err(self.unknown(&why, hint, needed)),
            Err(Refused::Busy(error)) => return Err(error),
        };
        let verdict = match needed {
            None => self.ping(&caller, rules),
            Some((repository, what)) => self.decide(&caller, repository, what),
        };
        match verdict {
            Verdict::Granted => Ok(()),
            Verdict::Refused(why) => Err(RegistryError::new(Code::Denied, why)),
            Verdict::Login(why, hint) => Err(self.unknown(why, hint, needed)),
        }
    }

    /// Clients find out here whether they have to say who they are. Where there are tokens, everybody
    /// gets one.
    fn ping(&self, caller: &Caller, rules: &[AccessRule]) -> Verdict {
        let is_open = rules.iter().any(|rule| rule.users.is_none());
        match caller {
            Caller::Nobody if self.realm().is_some() => Verdict::Login(SAY, None),
            Caller::Nobody if is_open => Verdict::Granted,
            Caller::Nobody => self.nobody(),
            _ => Verdict::Granted,
        }
    }

    fn decide(&self, caller: &Caller, repository: &str, what: May) -> Verdict {
        let more = Verdict::Login("the token does not grant this", Some("insufficient_scope"));
        let covers = |granted: &[Grant]| granted.iter().any(|it| it.covers(repository, what));
        let refused = |user: &str| {
            let why = format!("{user} may not do this: ask for a rule that grants it");
            Verdict::Refused(why)
        };
        // What everybody may needs no token that says so.
        if self.grants(None, repository, what) {
            return Verdict::Granted;
        }
        match caller {
            Caller::Nobody => self.nobody(),
            Caller::Foreign(granted) if covers(granted) => Verdict::Granted,
            Caller::Foreign(_) | Caller::Token(None, _) => more,
            Caller::User(user) | Caller::Token(Some(user), _)
                if !self.grants(Some(user), repository, what) =>
            {
                refused(user)
            }
            Caller::Token(_, granted) if !covers(granted) => more,
            Caller::User(_) | Caller::Token(..) => Verdict::Granted,
        }
    }

    fn nobody(&self) -> Verdict {
        if self.users.is_some() || self.realm().is_some() {
            return Verdict::Login(SAY, None);
        }
        Verdict::Refused("nobody may do this here: no rule of `access` grants it".into())
    }

    /// Whether the rules grant it.
    fn grants(&self, user: Option<&str>, repository: &str, what: May) -> bool {
        self.rules.iter().flatten().any(|rule| {
            let users = rule.users.as_ref();
            let to = users.is_none_or(|users| user.is_some_and(|it| users.contains(it)));
            to && rule.may.contains(&what) && rule.repositories.is_match(repository)
        })
    }

    async fn caller(&self, parts: &Parts) -> Result<Caller, Refused> {
        let login = header(&parts.headers, AUTHORIZATION);
        if let Some(token) = login.and_then(bearer)
            && self.realm().is_some()
        {
            let invalid = |error: token::TokenError| {
                let why = format!("the token is not taken: {error}");
                Refused::Login(why, Some("invalid_token"))
            };
            return match (&self.tokens, &self.server) {
                (Some(tokens), _) => tokens.caller(token).map_err(invalid),
                (None, Some(server)) => server.caller(token).map_err(invalid),
                (None, None) => Ok(Caller::Nobody),
            };
        }
        match (login, &self.users) {
            (Some(login), Some(_)) => Ok(Caller::User(self.user(login).await?)),
            // Some clients send what they have, also where nobody asks for it.
            _ => Ok(certified(parts).map_or(Caller::Nobody, Caller::User)),
        }
    }

    /// Who sends this login.
    async fn user(&self, login: &str) -> Result<String, Refused> {
        let wrong = || Refused::Login("the name or the password is wrong".into(), None);
        let (name, password) = users::basic(login).ok_or_else(wrong)?;
        let users = self.users.as_ref().ok_or_else(wrong)?;
        match users.check(&name, password).await {
            Ok(()) => Ok(name),
            Err(LoginError::Wrong) => Err(wrong()),
            Err(LoginError::Busy(error)) => Err(Refused::Busy(error)),
        }
    }

    /// Where clients are told to get a token, and for which service.
    fn realm(&self) -> Option<(&str, &str)> {
        let own = self.tokens.as_ref().map(Tokens::realm);
        own.or_else(|| self.server.as_ref().map(TokenServer::realm))
    }

    /// 401: another login may help.
    fn unknown(
        &self,
        message: &str,
        hint: Option<&str>,
        needed: Option<(&str, May)>,
    ) -> RegistryError {
        let Some((realm, service)) = self.realm() else {
            return basic_please(message);
        };
        challenge::bearer_please(message, (realm, service), hint, needed)
    }
}

/// Who proves by a certificate who it is.
fn certified(parts: &Parts) -> Option<String> {
    let client = parts.extensions.get::<TlsClient>()?;
    client.name().map(str::to_owned)
}

const SAY: &str = "say who you are: docker login";

/// Why it is not known who asks.
enum Refused {
    Login(String, Option<&'static str>),
    Busy(RegistryError),
}

fn from_this_host(parts: &Parts) -> Result<(), RegistryError> {
    let client = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    // Without an address it comes from within the process.
    let is_here = client.is_none_or(|ConnectInfo(addr)| addr.ip().to_canonical().is_loopback());
    // Somebody on this host asks for somebody else.
    let is_passed_on = FORWARDED
        .iter()
        .any(|name| parts.headers.contains_key(*name));
    if is_here && !is_passed_on {
        return Ok(());
    }
    let what = "only clients on this host may ask here: configure `access` for others";
    Err(RegistryError::new(Code::Denied, what))
}

/// What servers that pass requests on say in their headers.
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// What a request needs; nothing in particular to ask whether this is a registry.
fn needed<'a>(method: &Method, route: &'a Route) -> Option<(&'a str, May)> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    Some(match route {
        Route::Ping => return None,
        // A rule for all repositories matches no name in particular.
        Route::Catalog => (CATALOG, May::Pull),
        Route::Uploads(repo) | Route::Upload(repo, _) => (repo.as_str(), May::Push),
        Route::Manifest(repo, _) | Route::Blob(repo, _) if *method == Method::DELETE => {
            (repo.as_str(), May::Delete)
        }
        Route::Manifest(repo, _)
        | Route::Blob(repo, _)
        | Route::Tags(repo)
        | Route::Referrers(repo, _) => {
            let what = if reads { May::Pull } else { May::Push };
            (repo.as_str(), what)
        }
    })
}

#[cfg(test)]
mod tests;
