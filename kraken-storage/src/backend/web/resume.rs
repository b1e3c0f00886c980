//! Bodies that go on where they broke off.

use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use http::header::{CONTENT_RANGE, HeaderMap};
use reqwest::Response;

use super::requests::{Requests, waits};
use crate::backend::{BackendError, ByteStream};

/// Opens a stream of some bytes.
pub(super) type Open =
    Box<dyn Fn(Range<u64>) -> BoxFuture<'static, Result<ByteStream, BackendError>> + Send + Sync>;

/// The bytes `range` of a blob of `length` bytes, by as many streams as it takes: gives up when
/// several in a row bring nothing.
pub(super) async fn resuming(
    range: Range<u64>,
    length: u64,
    open: Open,
) -> Result<ByteStream, BackendError> {
    let range = range.start..range.end.min(length);
    if range.is_empty() {
        return Ok(futures::stream::empty().boxed());
    }
    let state = Resuming {
        stream: open(range.clone()).await?,
        range,
        open,
    };
    let next = async |mut state: Resuming| Ok(state.next().await?.map(|chunk| (chunk, state)));
    Ok(futures::stream::try_unfold(state, next).boxed())
}

struct Resuming {
    stream: ByteStream,
    /// What is still to come.
    range: Range<u64>,
    open: Open,
}

impl Resuming {
    async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let mut waits = waits();
        loop {
            let error = match self.stream.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => continue,
                Some(Ok(chunk)) => return self.took(chunk).map(Some),
                Some(Err(error)) if !error.is_retryable() => return Err(error),
                Some(Err(error)) => error,
                None => {
                    let left = self.range.end - self.range.start;
                    let told = format!("the body ended {left} bytes early");
                    BackendError::Unavailable(told)
                }
            };
            let Some(wait) = waits.next() else {
                return Err(error);
            };
            tracing::debug!(%error, from = self.range.start, "reading on");
            tokio::time::sleep(wait).await;
            self.stream = match (self.open)(self.range.clone()).await {
                Ok(stream) => stream,
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            };
        }
    }

    fn took(&mut self, mut chunk: Bytes) -> Result<Bytes, BackendError> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        chunk.truncate(left);
        self.range.start += chunk.len() as u64;
        Ok(chunk)
    }
}

/// The header that asks for `range`.
pub(super) fn header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end - 1)
}

/// The body of an answer to a request for the bytes from `start` on. A server that knows no ranges
/// sends all: what comes before is skipped.
pub(super) fn from(
    requests: &Requests,
    response: Response,
    start: u64,
) -> Result<ByteStream, BackendError> {
    let mut skip = match response.status() {
        StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), start) => 0,
        StatusCode::PARTIAL_CONTENT => {
            return Err(BackendError::Other(
                "the server sends another range than the one that was asked for".into(),
            ));
        }
        _ => start,
    };
    let cut = move |chunk: Result<Bytes, BackendError>| {
        chunk.map(|mut chunk| {
            let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= cut as u64;
            chunk.split_off(cut)
        })
    };
    Ok(requests.body(response).map(cut).boxed())
}

/// Whether a `Content-Range` is of bytes from `start` on.
fn begins_at(headers: &HeaderMap, start: u64) -> bool {
    let begins = || {
        let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (first, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
        first.trim().parse::<u64>().ok()
    };
    begins() == Some(start)
}
