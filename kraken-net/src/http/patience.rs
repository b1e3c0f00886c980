//! How long a server waits for the rest of a request.

use std::future::Future as _;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::map_request;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// How long nothing may come of a body that has not ended. Whoever takes longer would hold memory and a
/// descriptor for nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// Bounds the silence within the bodies of requests, for all that `router` has.
pub(super) fn bound(router: Router) -> Router {
    router.layer(map_request(async |request: Request| {
        request.map(|body| match body.is_end_stream() {
            true => body,
            false => Body::new(Awaited::new(body, SILENCE)),
        })
    }))
}

/// A body that ends with an error when nothing comes of it for too long. Unlike a stream ([`super::idle`]) it still
/// tells its length, by which uploads are told apart.
struct Awaited {
    /// Nothing once it has ended with that error.
    body: Option<Body>,
    patience: Duration,
    /// Made when there is something to wait for.
    end: Option<Pin<Box<Sleep>>>,
}

impl Awaited {
    fn new(body: Body, patience: Duration) -> Self {
        Self {
            body: Some(body),
            patience,
            end: None,
        }
    }

    fn over(&self) -> axum::Error {
        let told = format!("nothing came for {} s", self.patience.as_secs());
        axum::Error::new(Error::new(ErrorKind::TimedOut, told))
    }
}

impl hyper::body::Body for Awaited {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            this.end = None;
            return Poll::Ready(frame);
        }
        let patience = this.patience;
        let end = this.end.get_or_insert_with(|| Box::pin(sleep(patience)));
        match end.as_mut().poll(cx) {
            Poll::Ready(()) => {
                this.body = None;
                Poll::Ready(Some(Err(this.over())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.as_ref().map(Body::size_hint);
        rest.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::time::Instant;

    use super::*;

    fn slow(gaps: &'static [u64]) -> Body {
        let chunks = futures::stream::iter(gaps).then(async |gap| {
            sleep(Duration::from_secs(*gap)).await;
            Ok::<_, Error>(Bytes::from_static(b"x"))
        });
        Body::from_stream(chunks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_passes_and_a_silent_one_ends() {
        let read = async |gaps| {
            let body = Body::new(Awaited::new(slow(gaps), SILENCE));
            let chunks: Vec<_> = body.into_data_stream().collect().await;
            chunks.into_iter().map(|it| it.is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(read(&[50, 50, 50]).await, [true, true, true]);
        let began = Instant::now();
        assert_eq!(read(&[50, 70, 1]).await, [true, false]);
        assert_eq!(began.elapsed(), Duration::from_secs(110));
    }
}
