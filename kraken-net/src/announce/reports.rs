//! Telling trackers what this host moved, as far as they want to know.
//!
//! Each tracker with a console is told, so that each console shows the whole cluster. One without, or
//! of a version that knows no reports, answers 404 and is left alone for a while.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use http::{HeaderValue, Method, StatusCode, header};
use kraken_proto::tracker::report::{HostReport, ReportReply};
use tokio::time::Instant;

use crate::discovery::DiscoveryError;
use crate::http::client::request_with;
use crate::http::error::ApiError;
use crate::http::{BaseUrl, HttpBody, HttpClient};

/// How long a tracker that wants no reports gets none.
const UNWANTED: Duration = Duration::from_secs(60);
/// How long one that does not answer gets none: a console may wait, announces come first.
const AWAY: Duration = Duration::from_secs(10);
/// How long a tracker may think about a report; it only looks into its memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer to a report.
const MAX_REPLY: usize = 4 << 10;

/// Who is told nothing, until when.
#[derive(Debug, Default)]
pub(super) struct Deaf {
    until: Mutex<BTreeMap<BaseUrl, Instant>>,
}

impl Deaf {
    fn is(&self, tracker: &BaseUrl) -> bool {
        let until = self.lock().get(tracker).copied();
        until.is_some_and(|until| until > Instant::now())
    }

    fn for_now(&self, tracker: &BaseUrl, span: Duration) {
        let now = Instant::now();
        let mut until = self.lock();
        // Those that are no trackers any more.
        until.retain(|_, until| *until > now);
        until.insert(tracker.clone(), now + span);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BaseUrl, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells all trackers that want to know; the answer is when the first of them wants to hear again.
///
/// # Errors
/// No tracker was told, and one does not answer or refused.
pub(super) async fn tell(
    http: &HttpClient,
    trackers: impl Iterator<Item = &BaseUrl>,
    deaf: &Deaf,
    report: &HostReport,
) -> Result<Option<Duration>, DiscoveryError> {
    let body = serde_json::to_vec(report).expect("a report has string keys only");
    let hearing = trackers.filter(|tracker| !deaf.is(tracker));
    let telling = hearing.map(async |tracker| (tracker, post(http, tracker, body.clone()).await));
    let (mut next, mut failed) = (None::<Duration>, None);
    for (tracker, answer) in join_all(telling).await {
        match answer {
            Ok(reply) => {
                let wanted = Duration::from_millis(reply.next_ms);
                next = Some(next.map_or(wanted, |next| next.min(wanted)));
            }
            Err(ApiError::NotFound) => deaf.for_now(tracker, UNWANTED),
            Err(error) => {
                deaf.for_now(tracker, AWAY);
                failed = Some(error);
            }
        }
    }
    match (next, failed) {
        (None, Some(error)) if error.is_retryable() => {
            Err(DiscoveryError::Unavailable(error.to_string()))
        }
        (None, Some(error)) => Err(DiscoveryError::Refused(error.to_string())),
        (next, _) => Ok(next),
    }
}

async fn post(
    http: &HttpClient,
    tracker: &BaseUrl,
    body: Vec<u8>,
) -> Result<ReportReply, ApiError> {
    let url = tracker.join("/report");
    let mut post = request_with(Method::POST, url, HttpBody::Bytes(body.into()))?;
    let json = HeaderValue::from_static("application/json");
    post.headers_mut().insert(header::CONTENT_TYPE, json);
    let answer = http.send_within(post, PATIENCE).await?;
    if answer.status() == StatusCode::NOT_FOUND {
        // Also from a version that does not know the path.
        return Err(ApiError::NotFound);
    }
    answer.successful().await?.json(MAX_REPLY).await
}
