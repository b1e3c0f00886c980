//! Requests that are made again when it may help.

use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use reqwest::{RequestBuilder, Response};
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
            let why = match self.once(make(&self.client)).await {
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

    /// Sends a request that cannot be made again, such as one with a stream for a body: then only
    /// the answer's head is bounded, from when the body has been sent on `bounded`.
    pub(super) async fn once(&self, request: RequestBuilder) -> Result<Response, BackendError> {
        self.rested().await?;
        match timeout(self.timeout, request.send()).await {
            Ok(sent) => self.heard(sent),
            Err(_) => Err(BackendError::Unavailable(format!(
                "no answer within {} s",
                self.timeout.as_secs_f32()
            ))),
        }
    }

    /// Sends a request whose body may take any time.
    pub(super) async fn stream(&self, request: RequestBuilder) -> Result<Response, BackendError> {
        self.rested().await?;
        self.heard(request.send().await)
    }

    async fn rested(&self) -> Result<(), BackendError> {
        let rested = self.pause.over().await;
        rested.map_err(|wait| {
            let wait = wait.as_secs();
            BackendError::Unavailable(format!("the server wants no request for {wait} s"))
        })
    }

    fn heard(&self, sent: reqwest::Result<Response>) -> Result<Response, BackendError> {
        let response = sent.map_err(|error| unsent(&error))?;
        self.pause.heed(response.status(), response.headers());
        Ok(response)
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
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => BackendError::Denied(told(response)),
        status if is_passing(status) => BackendError::Unavailable(told(response)),
        _ => BackendError::Other(told(response)),
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
    let text = |name| headers.get(name)?.to_str().ok();
    match text(CONTENT_RANGE) {
        Some(range) => range.rsplit_once('/')?.1.trim().parse().ok(),
        None => text(CONTENT_LENGTH)?.trim().parse().ok(),
    }
}
