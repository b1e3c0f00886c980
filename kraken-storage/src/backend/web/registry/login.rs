//! Names, passwords and tokens for another registry.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use http::HeaderValue;
use reqwest::{Response, Url};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::challenge::Challenge;
use crate::backend::web::requests::{Requests, refused};
use crate::backend::{BackendError, Secret};

/// Who reads from a registry.
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

/// The rights that were granted, by repository.
#[derive(Debug)]
pub(super) struct Logins {
    registry: Url,
    credentials: Option<Credentials>,
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
pub(super) struct Right {
    pub(super) header: HeaderValue,
    pub(super) is_new: bool,
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
/// Rights that are remembered at once: one for each repository.
const MOST: usize = 1024;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Logins {
    pub(super) fn new(registry: Url, credentials: Option<Credentials>) -> Self {
        Self {
            registry,
            credentials,
            granted: Mutex::default(),
            asking: Mutex::default(),
        }
    }

    /// The right that was granted for the repository and still holds.
    pub(super) async fn known(&self, repository: &str) -> Option<Right> {
        let granted = self.granted.lock().await;
        let known = granted.get(repository)?;
        let holds = known.until > Instant::now();
        holds.then(|| Right {
            header: known.header.clone(),
            is_new: false,
        })
    }

    /// Gets the right that an answer asks for, which refuses the one in hand. Those who ask at the same
    /// time get one token.
    pub(super) async fn answer(
        &self,
        requests: &Requests,
        (repository, refused_right): (&str, Option<&Right>),
        response: &Response,
    ) -> Result<Right, BackendError> {
        let _turn = self.asking.lock().await;
        if let Some(known) = self.known(repository).await
            && refused_right.is_none_or(|refused| refused.header != known.header)
        {
            return Ok(known);
        }
        let challenge = Challenge::of(response.headers());
        let challenge = challenge.ok_or_else(|| refused(response))?;
        // A host that the registry redirects to for its blobs has no business with our login.
        if response.url().origin() != self.registry.origin() {
            return Err(refused(response));
        }
        let login = self.login().await?;
        let granted = match challenge {
            Challenge::Basic => basic(login.ok_or_else(|| refused(response))?)?,
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
                let realm = self.trusted(&realm)?;
                token(requests, login, realm, (service, scope)).await?
            }
        };
        let mut known = self.granted.lock().await;
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(repository.to_string(), granted.clone());
        Ok(Right {
            header: granted.header,
            is_new: true,
        })
    }

    /// A token server's URL. One without TLS would send the password of a registry with TLS in the
    /// clear.
    fn trusted(&self, realm: &str) -> Result<Url, BackendError> {
        let wrong = |why: &dyn std::fmt::Display| {
            BackendError::Denied(format!("the registry's token server {realm:?}: {why}"))
        };
        let url = Url::parse(realm).map_err(|error| wrong(&error))?;
        match (url.scheme(), self.registry.scheme()) {
            ("https", _) | ("http", "http") => Ok(url),
            _ => Err(wrong(&"it has no TLS, and the registry has")),
        }
    }

    async fn login(&self) -> Result<Option<Login>, BackendError> {
        let found = match &self.credentials {
            None => return Ok(None),
            Some(Credentials::Password { username, password }) => {
                return Ok(Some(Login::Password(username.clone(), password.reveal()?)));
            }
            Some(Credentials::Helper(name)) => {
                let server = self.server();
                let config = serde_json::json!({"credHelpers": {server: name}});
                self.look_up(config.to_string().into_bytes()).await
            }
            Some(Credentials::DockerConfig(path)) => match std::fs::read(path) {
                Ok(config) => self.look_up(config).await,
                Err(error) => {
                    let path = path.display();
                    let told = format!("the logins in {path} cannot be read: {error}");
                    return Err(BackendError::Denied(told));
                }
            },
        };
        match found {
            Ok(DockerCredential::UsernamePassword(name, password)) => {
                Ok(Some(Login::Password(name, password)))
            }
            Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Login::Identity(token))),
            Err(
                CredentialRetrievalError::NoCredentialConfigured
                | CredentialRetrievalError::ConfigNotFound,
            ) => Ok(None),
            // What helpers print when they have nothing for a server.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains("credentials not found") =>
            {
                Ok(None)
            }
            // Its text may hold what the helper printed.
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
                let told = format!("the credential helper {helper} failed");
                Err(BackendError::Unavailable(told))
            }
            Err(error) => Err(BackendError::Denied(format!(
                "the registry's login cannot be had: {error}"
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
        let mut pairs = vec![("scope", scope.as_str())];
        pairs.extend(service.as_deref().map(|service| ("service", service)));
        match &*login {
            Some(Login::Identity(token)) => {
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
        return Err(refused(&response));
    }
    let answer: Token = requests.json(response).await?;
    let text = answer.token.or(answer.access_token);
    let text = text.ok_or_else(|| BackendError::Other("the token server gave no token".into()))?;
    let lifetime = answer.expires_in.map(Duration::from_secs);
    granted(&format!("Bearer {text}"), lifetime.unwrap_or(LIFETIME))
}
