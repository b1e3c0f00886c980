//! Requests that are made again when it may help.

use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use reqwest::{RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::backend::pause::Pause;
use crate::backend::{BackendError, ByteStream};

/// How often a request is made at most. Whoever asks has a queue or another origin to fall back on.
const ATTEMPTS: u32 = 4;

/// Sends requests to one server.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) client: reqwest::Client,
    pause: Pause,
    timeout: Duration,
}

impl Requests {
    /// Each answer's head, and each chunk of its body, may take `timeout`. A server that wants to
    /// be left alone for longer than that is not waited for.
    pub(super) fn new(client: reqwest::Client, timeout: Duration) -> Self {
        Self {
            client,
            pause: Pause::new(timeout),
            timeout,
        }
    }

    /// Sends what `make` makes until there is an answer that another try would not change.
    pub(super) async fn send(
        &self,
        make: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, BackendError> {
        let mut waits = waits();
        loop {
            let why = match self.once(make(&self.client), self.timeout).await {
                Ok(response) if !is_passing(response.status()) => return Ok(response),
                Ok(response) => BackendError::Unavailable(told(&response)),
                Err(error @ BackendError::Unavailable(_)) => error,
                Err(error) => return Err(error),
            };
            let Some(wait) = waits.next() else {
                return Err(why);
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a request once; its answer's head is there within `bound`.
    pub(super) async fn once(
        &self,
        request: RequestBuilder,
        bound: Duration,
    ) -> Result<Response, BackendError> {
        let sent = self.stream(request);
        match timeout(bound, sent).await {
            Ok(sent) => sent,
            Err(_) => Err(BackendError::Unavailable(format!(
                "no answer within {} s",
                bound.as_secs_f32()
            ))),
        }
    }

    /// Sends a request whose body may take any time.
    pub(super) async fn stream(&self, request: RequestBuilder) -> Result<Response, BackendError> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| unsent(&error))?;
        let rested = self.pause.over(&host(request.url())).await;
        rested.map_err(BackendError::Paused)?;
        let response = client
            .execute(request)
            .await
            .map_err(|error| unsent(&error))?;
        let from = host(response.url());
        self.pause
            .heed(&from, response.status(), response.headers());
        Ok(response)
    }

    /// An answer's body as JSON, if it is not too long.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        response: Response,
    ) -> Result<T, BackendError> {
        let host = host(response.url());
        let bytes = self.bytes(response).await?;
        serde_json::from_slice(&bytes)
            .map_err(|_| BackendError::Other(format!("the answer of {host} makes no sense")))
    }

    /// An answer's body, if it is not too long.
    pub(super) async fn bytes(&self, response: Response) -> Result<Vec<u8>, BackendError> {
        const MOST: usize = 64 << 20;
        let mut bytes = Vec::new();
        let mut body = self.body(response);
        while let Some(chunk) = body.next().await.transpose()? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST {
                return Err(BackendError::Other("an answer is too long".into()));
            }
        }
        Ok(bytes)
    }

    /// How long something may take that is not bounded here.
    pub(super) fn patience(&self) -> Duration {
        self.timeout
    }

    /// An answer's body.
    pub(super) fn body(&self, response: Response) -> ByteStream {
        let idle = self.timeout;
        let body = response.bytes_stream();
        futures::stream::unfold(Some(body), move |body| async move {
            let mut body = body?;
            match timeout(idle, body.next()).await {
                Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(body))),
                Ok(Some(Err(error))) => Some((Err(unsent(&error)), None)),
                Ok(None) => None,
                Err(_) => {
                    let told = format!("nothing came for {} s", idle.as_secs_f32());
                    Some((Err(BackendError::Unavailable(told)), None))
                }
            }
        })
        .boxed()
    }
}

/// A server, as pauses tell them apart.
fn host(url: &reqwest::Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

/// The waits before further attempts.
pub(super) fn waits() -> impl Iterator<Item = Duration> + Send {
    let mut backoff = Backoff::new(
        Duration::from_millis(100),
        Duration::from_secs(2),
        Jitter::Equal,
    );
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = now.map_or(0, |since| u64::from(since.subsec_nanos()));
    let mut rng = Rng::seeded(seed);
    std::iter::repeat_with(move || backoff.delay(&mut rng)).take(ATTEMPTS as usize - 1)
}

fn is_passing(status: StatusCode) -> bool {
    let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED || passing.contains(&status)
}

/// What an answer that is no success means.
pub(super) fn refused(response: &Response) -> BackendError {
    refusal(response.status(), told(response))
}

/// The same of a status, told in these words.
pub(super) fn refusal(status: StatusCode, told: String) -> BackendError {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => BackendError::Denied(told),
        status if is_passing(status) => BackendError::Unavailable(told),
        _ => BackendError::Other(told),
    }
}

/// An answer in words. Only the host is told: a path may hold a signature.
fn told(response: &Response) -> String {
    let host = response.url().host_str().unwrap_or("the server");
    format!("{host} answers {}", response.status())
}

fn unsent(error: &reqwest::Error) -> BackendError {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        // The outermost one prints the whole URL.
        if error.downcast_ref::<reqwest::Error>().is_none() {
            text = format!("{text}{}{error}", if text.is_empty() { "" } else { ": " });
        }
        cause = error.source();
    }
    if text.is_empty() {
        text = "the request failed".into();
    }
    BackendError::Unavailable(text)
}

/// The length of the whole that an answer to `HEAD`, or to a request for a range, tells.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(CONTENT_RANGE) {
        return ranged(headers);
    }
    headers
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The length of the whole that an answer about a range tells.
pub(super) fn ranged(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit_once('/')?.1.trim().parse().ok()
}
