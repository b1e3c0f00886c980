//! Names, passwords and tokens for another registry.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::{RequestBuilder, Response, Url};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::challenge::Challenge;
use crate::backend::web::requests::{Requests, refusal, refused};
use crate::backend::{BackendError, Secret};

/// Who reads from a registry, or writes there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Credentials {
    /// A user.
    Password {
        /// The user's name.
        username: String,
        /// The user's password, or an access token that stands for it.
        password: Secret,
    },
    /// Whoever the program `docker-credential-<name>` says, such as `ecr-login`.
    Helper(String),
    /// Whoever is logged in according to a configuration file of Docker's, `config.json`.
    DockerConfig(PathBuf),
}

/// The rights that were granted, by what was to be done: a scope as the specification of the Docker
/// project's registry writes it, such as `repository:team/app:pull`.
#[derive(Debug)]
pub(super) struct Logins {
    registry: Url,
    /// The first that knows a login is asked for it.
    credentials: Vec<Credentials>,
    /// Whether a password goes to a token server only over TLS, or on this host.
    is_careful: bool,
    granted: Mutex<HashMap<String, Granted>>,
    /// Whose turn it is to ask for one.
    asking: Mutex<()>,
}

#[derive(Debug, Clone)]
struct Granted {
    header: HeaderValue,
    until: Instant,
}

/// What a request proves its right with.
#[derive(Debug)]
pub struct Right {
    pub(super) header: HeaderValue,
    pub(super) is_new: bool,
}

impl Right {
    /// The header `Authorization`; it is marked as sensitive.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }
}

/// A name and a password, or a token that stands for both.
enum Login {
    Password(String, String),
    Identity(String),
}

/// How long a token is good for when its server does not say (the token specification of the Docker
/// project), and the part of any token's time after which a new one is asked for.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a password that worked is used without being asked for.
const PASSWORD: Duration = Duration::from_secs(3600);
/// How long a credential helper may take.
const HELPER: Duration = Duration::from_secs(30);
/// Rights that are remembered at once: one for each scope.
const MOST: usize = 1024;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Logins {
    pub(super) fn new(registry: Url, credentials: Vec<Credentials>, is_careful: bool) -> Self {
        Self {
            registry,
            credentials,
            is_careful,
            granted: Mutex::default(),
            asking: Mutex::default(),
        }
    }

    /// The challenge of an answer. A host that the registry redirects to for its blobs has no business
    /// with our login.
    pub(super) fn challenge(&self, from: &Url, headers: &HeaderMap) -> Option<Challenge> {
        let is_its = from.origin() == self.registry.origin();
        Challenge::of(headers).filter(|_| is_its)
    }

    /// Sends what `make` makes with the right to a scope, if one is wanted. It goes to this registry: several
    /// times if it may help, or once within `bound`.
    pub(super) async fn send(
        &self,
        requests: &Requests,
        (scope, bound): (&str, Option<Duration>),
        make: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, BackendError> {
        let mut right = self.known(scope).await;
        loop {
            let make = |client: &_| with_right(make(client), right.as_ref());
            let response = match bound {
                None => requests.send(make).await?,
                Some(bound) => requests.once(make(&requests.client), bound).await?,
            };
            // A token that was just made and is refused will not become better.
            let fresh = right.as_ref().is_some_and(|right| right.is_new);
            if response.status() != StatusCode::UNAUTHORIZED || fresh {
                return Ok(response);
            }
            let challenge = self.challenge(response.url(), response.headers());
            let challenge = challenge.ok_or_else(|| refused(&response))?;
            let asked = self.answer(requests, (scope, right.as_ref()), challenge);
            right = Some(asked.await?.ok_or_else(|| refused(&response))?);
        }
    }

    /// The right that was granted for the scope and still holds.
    pub(super) async fn known(&self, scope: &str) -> Option<Right> {
        let granted = self.granted.lock().await;
        let known = granted.get(scope)?;
        let holds = known.until > Instant::now();
        holds.then(|| Right {
            header: known.header.clone(),
            is_new: false,
        })
    }

    /// Gets the right that a challenge asks for, which refuses the one in hand; `None` when it wants a
    /// login and there is none. Those who ask at the same time get one token.
    pub(super) async fn answer(
        &self,
        requests: &Requests,
        (scope, refused_right): (&str, Option<&Right>),
        challenge: Challenge,
    ) -> Result<Option<Right>, BackendError> {
        let _turn = self.asking.lock().await;
        if let Some(known) = self.known(scope).await
            && refused_right.is_none_or(|refused| refused.header != known.header)
        {
            return Ok(Some(known));
        }
        let login = self.login().await?;
        let granted = match challenge {
            Challenge::Basic => match login {
                Some(login) => basic(login)?,
                None => return Ok(None),
            },
            Challenge::Bearer {
                realm,
                service,
                scope: wanted,
            } => {
                let realm = self.trusted(&realm, login.is_some())?;
                let wanted = wanted.unwrap_or_else(|| scope.to_owned());
                token(requests, login, realm, (service, wanted)).await?
            }
        };
        let mut known = self.granted.lock().await;
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(scope.to_string(), granted.clone());
        Ok(Some(Right {
            header: granted.header,
            is_new: true,
        }))
    }

    /// A token server's URL. One without TLS would send the password of a registry with TLS in the
    /// clear.
    fn trusted(&self, realm: &str, has_login: bool) -> Result<Url, BackendError> {
        let wrong = |why: &dyn std::fmt::Display| {
            BackendError::Denied(format!("the registry's token server {realm:?}: {why}"))
        };
        let url = Url::parse(realm).map_err(|error| wrong(&error))?;
        match (url.scheme(), self.registry.scheme()) {
            ("https", _) => Ok(url),
            ("http", "http") if self.is_careful && has_login && !is_here(&url) => {
                let why = "it has no TLS and is not on this host, so it is sent no password: let its realm begin with https://";
                Err(wrong(&why))
            }
            ("http", "http") => Ok(url),
            _ => Err(wrong(&"it has no TLS, and the registry has")),
        }
    }

    async fn login(&self) -> Result<Option<Login>, BackendError> {
        for credentials in &self.credentials {
            if let Some(login) = self.login_of(credentials).await? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    async fn login_of(&self, credentials: &Credentials) -> Result<Option<Login>, BackendError> {
        let (config, of) = match credentials {
            Credentials::Password { username, password } => {
                return Ok(Some(Login::Password(username.clone(), password.reveal()?)));
            }
            Credentials::Helper(name) => {
                let config = serde_json::json!({"credHelpers": {self.server(): name}});
                (config.to_string().into_bytes(), String::new())
            }
            Credentials::DockerConfig(path) => {
                let of = format!(" in {}", path.display());
                let unread =
                    |error| BackendError::Denied(format!("the logins{of} cannot be read: {error}"));
                (std::fs::read(path).map_err(unread)?, of)
            }
        };
        let helper = helper(&config, &self.server());
        let error = match self.look_up(config).await {
            Ok(DockerCredential::UsernamePassword(name, password)) => {
                return Ok(Some(Login::Password(name, password)));
            }
            Ok(DockerCredential::IdentityToken(token)) => return Ok(Some(Login::Identity(token))),
            Err(error) => error,
        };
        match error {
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigNotFound => Ok(None),
            // What helpers print when they have nothing for a server.
            CredentialRetrievalError::HelperFailure { stdout, .. }
                if stdout.contains("credentials not found") =>
            {
                Ok(None)
            }
            // Its text may hold what the helper printed.
            CredentialRetrievalError::HelperFailure { helper, .. } => {
                let told = format!("the credential helper {helper} failed");
                Err(BackendError::Unavailable(told))
            }
            CredentialRetrievalError::HelperCommunicationError => {
                let helper = helper.unwrap_or_default();
                let told = format!(
                    "the credential helper docker-credential-{helper}{of} is not installed, or does not answer"
                );
                Err(BackendError::Denied(told))
            }
            error => Err(BackendError::Denied(format!(
                "the registry's login{of} cannot be had: {error}"
            ))),
        }
    }

    /// The registry as Docker's files name it.
    fn server(&self) -> String {
        let host = self.registry.host_str().unwrap_or_default();
        match self.registry.port() {
            _ if host == "registry-1.docker.io" => "https://index.docker.io/v1/".into(),
            Some(port) => format!("{host}:{port}"),
            None => host.into(),
        }
    }

    /// Asks the file, and the programs that it names, which may take their time.
    async fn look_up(&self, config: Vec<u8>) -> Result<DockerCredential, CredentialRetrievalError> {
        let server = self.server();
        let look = move || docker_credential::get_credential_from_reader(&*config, &server);
        let looked = timeout(HELPER, tokio::task::spawn_blocking(look)).await;
        match looked {
            Ok(looked) => looked.expect("it does not panic"),
            Err(_) => Err(CredentialRetrievalError::HelperCommunicationError),
        }
    }
}

/// The program that knows the login of a server, according to a configuration of Docker's.
fn helper(config: &[u8], server: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let of_server = &config["credHelpers"][server];
    let name = of_server.as_str().or_else(|| config["credsStore"].as_str());
    name.map(str::to_owned)
}

/// Whether a URL is of this host.
fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

pub(super) fn with_right(request: RequestBuilder, right: Option<&Right>) -> RequestBuilder {
    match right {
        Some(right) => request.header(AUTHORIZATION, right.header.clone()),
        None => request,
    }
}

fn basic(login: Login) -> Result<Granted, BackendError> {
    let (name, password) = match login {
        Login::Password(name, password) => (name, password),
        Login::Identity(token) => ("<token>".into(), token),
    };
    let text = BASE64_STANDARD.encode(format!("{name}:{password}"));
    granted(&format!("Basic {text}"), PASSWORD)
}

fn granted(header: &str, lifetime: Duration) -> Result<Granted, BackendError> {
    let wrong = |_| BackendError::Other("the token server gave no token that can be sent".into());
    let mut header = HeaderValue::from_str(header).map_err(wrong)?;
    header.set_sensitive(true);
    Ok(Granted {
        header,
        // A token that runs out on its way is refused, and asked for again.
        until: Instant::now() + lifetime.min(PASSWORD) * 9 / 10,
    })
}

/// Asks a token server: the specifications of the Docker project, "Token Authentication" for
/// passwords, and "OAuth2 Token Authentication" for tokens that stand for a login.
async fn token(
    requests: &Requests,
    login: Option<Login>,
    realm: Url,
    (service, scope): (Option<String>, String),
) -> Result<Granted, BackendError> {
    let login = Arc::new(login);
    let make = |client: &reqwest::Client| {
        let mut pairs: Vec<_> = scope.split(' ').map(|scope| ("scope", scope)).collect();
        pairs.extend(service.as_deref().map(|service| ("service", service)));
        match &*login {
            Some(Login::Identity(token)) => {
                // OAuth 2 has all of them in one parameter.
                pairs.retain(|(name, _)| *name != "scope");
                pairs.push(("scope", &scope));
                pairs.push(("grant_type", "refresh_token"));
                pairs.push(("client_id", "kraken"));
                pairs.push(("refresh_token", token));
                client.post(realm.clone()).form(&pairs)
            }
            Some(Login::Password(name, password)) => {
                let request = client.get(realm.clone()).query(&pairs);
                request.basic_auth(name, Some(password))
            }
            None => client.get(realm.clone()).query(&pairs),
        }
    };
    let response = requests.send(make).await?;
    if !response.status().is_success() {
        let who = match &*login {
            Some(Login::Password(name, _)) => name.as_str(),
            Some(Login::Identity(_)) => "the token that stands for a login",
            None => "nobody in particular",
        };
        let status = response.status();
        let host = response.url().host_str().unwrap_or_default();
        let told = format!("the token server {host} answers {status} to {who}");
        return Err(refusal(status, told));
    }
    let answer: Token = requests.json(response).await?;
    let text = answer.token.or(answer.access_token);
    let text = text.ok_or_else(|| BackendError::Other("the token server gave no token".into()))?;
    let lifetime = answer.expires_in.map(Duration::from_secs);
    granted(&format!("Bearer {text}"), lifetime.unwrap_or(LIFETIME))
}
