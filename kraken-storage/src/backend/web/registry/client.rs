//! Who one is at a registry, for a client that sends its requests itself.

use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;

use super::login::{Credentials, Logins, Right};
use crate::backend::BackendError;
use crate::backend::web::requests::Requests;

/// Proves to one registry who one is: with a name and a password, or with the tokens that these get from
/// its token server, each as long as it is good. A password goes to a token server over TLS only, or to
/// one on this host.
#[derive(Debug)]
pub struct RegistryLogin {
    registry: Url,
    logins: Logins,
    requests: Requests,
}

impl RegistryLogin {
    /// For the registry at a URL; of several `credentials` those of the first that knows the registry.
    /// Token servers are asked by `client`, which may take `timeout`.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(
        registry: &str,
        credentials: Vec<Credentials>,
        client: reqwest::Client,
        timeout: Duration,
    ) -> Result<Self, BackendError> {
        let wrong = |error| BackendError::Denied(format!("{registry:?} is no URL: {error}"));
        let registry = Url::parse(registry).map_err(wrong)?;
        Ok(Self {
            logins: Logins::new(registry.clone(), credentials, true),
            registry,
            requests: Requests::new(client, timeout),
        })
    }

    /// What was granted for a scope, such as `repository:team/app:pull,push`, and still holds.
    pub async fn known(&self, scope: &str) -> Option<Right> {
        self.logins.known(scope).await
    }

    /// Gets the right to what an answer with 401 and these headers refuses; `None` when it does not say
    /// how, or wants a login and there is none. `refused` is what the request had with it.
    ///
    /// # Errors
    /// The login cannot be read, or the token server cannot be asked, may not be, or refuses.
    pub async fn answer(
        &self,
        (scope, refused): (&str, Option<&Right>),
        headers: &HeaderMap,
    ) -> Result<Option<Right>, BackendError> {
        let Some(challenge) = self.logins.challenge(&self.registry, headers) else {
            return Ok(None);
        };
        let asked = (scope, refused);
        self.logins.answer(&self.requests, asked, challenge).await
    }
}
