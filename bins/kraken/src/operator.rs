//! A process of a cluster, asked by the person who runs it.

use std::time::Duration;

use http::Request;
use kraken_core::net::IdentityError;
use kraken_core::net::http::{ApiError, BaseUrl, HttpBody, HttpClient, HttpResponse, OutsideTrust};
use kraken_daemon::{StartError, Tls};
use serde::Serialize;

use crate::Failure;
use crate::caller::{Caller, base_url, silence};

/// How long a process may work on an answer: to read a blob of 1 TB back, or to remove as many.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// A client of one process.
#[derive(Debug)]
pub struct Operator {
    base: BaseUrl,
    http: HttpClient,
}

impl Operator {
    /// A client of the process at a base URL: over TLS with a certificate of the cluster when that is
    /// `https://…`.
    ///
    /// # Errors
    /// The URL or the certificate makes no sense.
    pub fn new(url: &str, tls: &Tls) -> Result<Self, Failure> {
        let base = base_url(url)?;
        let identity = if url.starts_with("https://") {
            there(tls)?;
            Some(tls.identity()?)
        } else {
            None
        };
        Ok(Self {
            base,
            http: HttpClient::new(identity.as_ref())
                .map_err(|error| Failure::Other(error.to_string()))?,
        })
    }

    /// A client of a registry's process, at `host:port` or at a URL: over TLS as `caller` has it.
    ///
    /// # Errors
    /// The address makes no sense, or the caller's files cannot be used.
    pub fn of(address: &str, caller: &Caller) -> Result<Self, Failure> {
        let base = base_url(address)?;
        Ok(Self {
            http: caller.http(&base)?,
            base,
        })
    }

    /// The process at a base URL, which may be of the cluster's authority or, as an agent's registry with
    /// `client_tls`, of another.
    ///
    /// # Errors
    /// The URL makes no sense, or a file cannot be used.
    pub fn any(url: &str, tls: Option<&Tls>, trust: OutsideTrust) -> Result<Self, Failure> {
        if let Some(tls) = tls {
            let identity = tls.identity();
            if !matches!(
                identity,
                Err(StartError::Identity(IdentityError::Untrusted(_)))
            ) {
                return Self::new(url, tls);
            }
        }
        Self::of(url, &Caller::from_env(trust)?)
    }

    /// The same with the files of an operator. When there is no certificate, or it is not of the authority, then that is
    /// one which an agent or a proxy with `client_tls` has for its clients, and no certificate is shown.
    ///
    /// # Errors
    /// As of [`Operator::any`].
    pub fn with(url: &str, tls: &Tls) -> Result<Self, Failure> {
        let trust = OutsideTrust {
            ca: Some(tls.ca.clone()),
            certificate: None,
        };
        match (url.starts_with("https://"), tls.cert.exists()) {
            (true, false) if tls.ca.exists() => Self::of(url, &Caller::from_env(trust)?),
            (true, _) => Self::any(url, Some(tls), trust),
            (false, _) => Self::new(url, tls),
        }
    }

    /// Asks, and gives an answer that says it worked.
    ///
    /// # Errors
    /// What the process says, or that it does not answer.
    pub async fn send(&self, method: &str, path: &str) -> Result<HttpResponse, ApiError> {
        let answer = self.ask((method, path), HttpBody::Empty).await?;
        answer.successful().await
    }

    /// The same with a JSON document.
    ///
    /// # Errors
    /// What the process says, or that it does not answer.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<HttpResponse, ApiError> {
        let body = serde_json::to_vec(body).map_err(|it| ApiError::BadRequest(it.to_string()))?;
        let answer = self
            .ask(("POST", path), HttpBody::Bytes(body.into()))
            .await?;
        answer.successful().await
    }

    /// The same, where a refusal is told by a document as well.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn post_for(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<HttpResponse, ApiError> {
        let body = serde_json::to_vec(body).map_err(|it| ApiError::BadRequest(it.to_string()))?;
        self.ask(("POST", path), HttpBody::Bytes(body.into())).await
    }

    /// Asks, and gives whatever is answered within `patience`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn answer(
        &self,
        method: &str,
        path: &str,
        patience: Duration,
    ) -> Result<HttpResponse, ApiError> {
        self.ask_within((method, path), HttpBody::Empty, patience)
            .await
    }

    async fn ask(&self, what: (&str, &str), body: HttpBody) -> Result<HttpResponse, ApiError> {
        self.ask_within(what, body, PATIENCE).await
    }

    async fn ask_within(
        &self,
        (method, path): (&str, &str),
        body: HttpBody,
        patience: Duration,
    ) -> Result<HttpResponse, ApiError> {
        let url = format!("{}{path}", self.base);
        let request = Request::builder().method(method).uri(url);
        let request = request.header("content-type", "application/json");
        let request = request
            .body(body)
            .map_err(|error| ApiError::BadRequest(error.to_string()))?;
        self.http.send_within(request, patience).await
    }
}

/// Refuses files that do not exist, as those of the defaults where no `kraken dev` was.
pub(crate) fn there(tls: &Tls) -> Result<(), Failure> {
    let files = [&tls.cert, &tls.key, &tls.ca];
    match files.into_iter().find(|file| !file.exists()) {
        None => Ok(()),
        Some(file) => Err(Failure::Other(format!(
            "{} is not there: name a certificate of the cluster, its key and its authority by --cert, --key and \
             --ca, or by KRAKEN_CERT, KRAKEN_KEY and KRAKEN_CA",
            file.display()
        ))),
    }
}

/// What the process said, or that it did not.
pub fn failed(error: ApiError) -> Failure {
    let said = silence(&error.to_string());
    let is_silent = said.starts_with("http");
    match error.is_retryable() {
        true if is_silent => Failure::Away(said),
        true => Failure::Later(format!("the process says: {said}")),
        false if is_silent => Failure::Other(said),
        false => Failure::Other(format!("the process says: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_missing_are_told_with_how_to_name_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let tls = Tls::new(path("operator.crt"), path("operator.key"), path("ca.crt"));
        let error = Operator::new("https://origin-1:7605", &tls).unwrap_err();
        let error = error.to_string();
        for says in [
            "operator.crt is not there",
            "--cert",
            "KRAKEN_KEY",
            "KRAKEN_CA",
        ] {
            assert!(error.contains(says), "{says}: {error}");
        }
        for url in ["http://127.0.0.1:7610", "127.0.0.1:7610"] {
            assert!(Operator::new(url, &tls).is_ok(), "{url}");
        }
        let wrong = Operator::new("ftp://a", &tls).unwrap_err();
        assert_eq!(
            (wrong.exit_code(), Failure::Other(error).exit_code()),
            (2, 1)
        );
    }
}
