//! Requests to a registry, made again with a login or a token when it wants one.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, StatusCode};
use kraken_core::net::http::{BaseUrl, HttpBody, HttpClient, HttpResponse};
use kraken_core::storage::backend::web::{RegistryLogin, Right};
use serde_json::Value;

use crate::Failure;
use crate::caller::{Caller, base_url, silence};

/// A commit may wait for copies at several origins.
const PATIENCE: Duration = Duration::from_secs(900);
/// The longest refusal that is read, in bytes.
const MAX_REFUSAL: usize = 16 << 10;

/// A registry, by its address. Clones share its connections and tokens.
#[derive(Debug, Clone)]
pub struct Registry {
    pub(super) http: HttpClient,
    pub(super) base: BaseUrl,
    caller: Caller,
    login: Arc<Mutex<Login>>,
}

#[derive(Debug, Default)]
struct Login {
    /// Made when the registry first asks.
    login: Option<Arc<RegistryLogin>>,
    /// The scopes for which it wants nothing.
    open: BTreeSet<String>,
}

/// What a registry is asked.
pub(super) struct Ask<'a> {
    method: Method,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    /// What it needs where there are tokens.
    scope: String,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, path: &'a str, scope: String) -> Self {
        Self {
            method,
            path,
            headers: &[],
            scope,
        }
    }

    pub(super) fn headers(self, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { headers, ..self }
    }
}

/// What a pull needs, as token servers call it.
pub(super) fn pull(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// What a push needs.
pub(super) fn push(repository: &str) -> String {
    format!("repository:{repository}:pull,push")
}

impl Registry {
    /// The registry at `host:port`, by plain HTTP, or at a URL, asked by `caller`.
    ///
    /// # Errors
    /// The address makes no sense, or the caller's files cannot be used.
    pub fn of(address: &str, caller: &Caller) -> Result<Self, Failure> {
        let base = base_url(address)?;
        Ok(Self {
            http: caller.http(&base)?,
            base,
            caller: caller.clone(),
            login: Arc::default(),
        })
    }

    pub(super) async fn expect(
        &self,
        ask: Ask<'_>,
        body: HttpBody,
        status: StatusCode,
    ) -> Result<HttpResponse, Failure> {
        let response = self.send(ask, body).await?;
        if response.status() == status {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// Sends a request, and once more with the right that the registry asks for.
    pub(super) async fn send(&self, ask: Ask<'_>, body: HttpBody) -> Result<HttpResponse, Failure> {
        // What streams passes once only: whether it may is found out before.
        let again = match &body {
            HttpBody::Empty => HttpBody::Empty,
            HttpBody::Bytes(bytes) => HttpBody::Bytes(bytes.clone()),
            HttpBody::Stream(_) => {
                let right = self.right_to_send(&ask.scope).await?;
                return self.send_once(&ask, body, right.as_ref()).await;
            }
        };
        let right = self.known(&ask.scope).await;
        let response = self.send_once(&ask, body, right.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let asked = (ask.scope.as_str(), right.as_ref());
        match self.answer(asked, response.headers()).await? {
            Some(right) => self.send_once(&ask, again, Some(&right)).await,
            None => Ok(response),
        }
    }

    /// The right to push into a scope's repository, if it wants one: it is asked about an upload that
    /// nobody began.
    async fn right_to_send(&self, scope: &str) -> Result<Option<Right>, Failure> {
        if let Some(right) = self.known(scope).await {
            return Ok(Some(right));
        }
        if self.locked(|login| login.open.contains(scope)) {
            return Ok(None);
        }
        let repository = scope.split(':').nth(1).unwrap_or_default();
        let path = format!("/v2/{repository}/blobs/uploads/none");
        let ask = Ask::new(Method::GET, &path, scope.to_owned());
        let response = self.send_once(&ask, HttpBody::Empty, None).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            self.locked(|login| login.open.insert(scope.to_owned()));
            return Ok(None);
        }
        match self.answer((scope, None), response.headers()).await? {
            Some(right) => Ok(Some(right)),
            None => Err(self.refusal(response).await),
        }
    }

    async fn send_once(
        &self,
        ask: &Ask<'_>,
        body: HttpBody,
        right: Option<&Right>,
    ) -> Result<HttpResponse, Failure> {
        let url = format!("{}{}", self.base, ask.path);
        let mut request = Request::builder().method(&ask.method).uri(url);
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        if let Some(right) = right {
            request = request.header(AUTHORIZATION, right.header());
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::Argument(format!("{}: {error}", ask.path)))?;
        let sent = self.http.send_within(request, PATIENCE).await;
        sent.map_err(|error| self.failed(ask.path, &error))
    }

    async fn known(&self, scope: &str) -> Option<Right> {
        let login = self.locked(|login| login.login.clone())?;
        login.known(scope).await
    }

    async fn answer(
        &self,
        asked: (&str, Option<&Right>),
        headers: &HeaderMap,
    ) -> Result<Option<Right>, Failure> {
        let login = match self.locked(|login| login.login.clone()) {
            Some(login) => login,
            None => {
                let made = Arc::new(self.caller.login(&self.base)?);
                self.locked(|login| login.login.get_or_insert(made).clone())
            }
        };
        let answered = login.answer(asked, headers).await;
        answered.map_err(|error| self.caller.refused(&self.base, error))
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Login) -> T) -> T {
        work(&mut self.login.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn refusal(&self, response: HttpResponse) -> Failure {
        let status = response.status();
        let said = response.bytes(MAX_REFUSAL).await.unwrap_or_default();
        let mut what = format!("{} answers {status}: {}", self.base, reason(&said));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => return Failure::Later(what),
            StatusCode::UNAUTHORIZED => what = format!("{what}; {}", self.caller.advice()),
            _ => {}
        }
        Failure::Registry(what)
    }

    pub(super) fn failed(&self, path: &str, error: &dyn Display) -> Failure {
        let error = silence(&error.to_string());
        // What did not answer at all is named there.
        match error.starts_with(self.base.as_str()) {
            true => Failure::Away(error),
            false => Failure::Away(format!("{}{path}: {error}", self.base)),
        }
    }

    /// The path in a `Location`, which may be relative.
    pub(super) fn location(&self, response: &HttpResponse) -> Result<String, Failure> {
        let location = response
            .header("location")
            .ok_or_else(|| Failure::Registry("an upload without Location".into()))?;
        let path = location.strip_prefix(self.base.as_str());
        Ok(path.unwrap_or(location).to_string())
    }
}

/// What a registry says is wrong: the messages in its document, or what it says as it is.
fn reason(said: &[u8]) -> String {
    let document = serde_json::from_slice::<Value>(said).unwrap_or_default();
    let errors = document["errors"].as_array().into_iter().flatten();
    let told = errors.filter_map(|error| {
        let (message, code) = (error["message"].as_str()?, error["code"].as_str()?);
        Some(format!("{message} ({code})"))
    });
    let told: Vec<_> = told.collect();
    match told.is_empty() {
        true => String::from_utf8_lossy(said).trim().to_owned(),
        false => told.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_told_without_its_braces() {
        let said =
            br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"a has no blob b","detail":{}}]}"#;
        assert_eq!(reason(said), "a has no blob b (BLOB_UNKNOWN)");
        for other in ["gone fishing", "{}", r#"{"errors":[]}"#] {
            assert_eq!(reason(format!("{other}\n").as_bytes()), other);
        }
    }
}
