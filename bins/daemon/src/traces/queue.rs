//! Spans on their way to the collector.
//!
//! At most [`MOST`] wait. Who makes one never does: what finds no room is counted and dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{DROPPED, FAILED, SENT};

/// The most spans that wait: a few MB.
const MOST: usize = 4096;
/// The most that are sent together.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that ends goes on sending.
const LAST: Duration = Duration::from_secs(3);

/// The end where spans go in.
#[derive(Debug)]
pub(super) struct Queue(Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(span).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
#[derive(Debug)]
pub(super) struct Sending {
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

impl Sending {
    pub(super) fn start(exporter: impl SpanExporter + 'static) -> (Queue, Self) {
        let (queue, spans) = mpsc::channel(MOST);
        let stopping = CancellationToken::new();
        let task = tokio::spawn(send(exporter, spans, stopping.clone()));
        (Queue(queue), Self { stopping, task })
    }

    /// Sends what waits, for a while.
    pub(super) async fn stop(self) {
        self.stopping.cancel();
        let aborting = self.task.abort_handle();
        if timeout(LAST, self.task).await.is_err() {
            aborting.abort();
            tracing::warn!("the collector of traces does not take the last ones");
        }
    }
}

async fn send(
    exporter: impl SpanExporter,
    mut spans: Receiver<SpanData>,
    stopping: CancellationToken,
) {
    let mut is_away = false;
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            _ = spans.recv_many(&mut batch, BATCH) => {}
            () = stopping.cancelled() => {
                while let Some(span) = (batch.len() < BATCH).then(|| spans.try_recv().ok()).flatten() {
                    batch.push(span);
                }
            }
        }
        if batch.is_empty() {
            return;
        }
        let more = BATCH - batch.len();
        if more > 0 && !stopping.is_cancelled() {
            let _ = timeout(GATHER, stopping.cancelled()).await;
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
        }
        let count = batch.len() as u64;
        let failed = match timeout(PATIENCE, exporter.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        count_as(if failed.is_none() { &SENT } else { &FAILED }, count);
        match failed {
            None => is_away = false,
            // Once, until it is back.
            Some(error) if !is_away => {
                is_away = true;
                tracing::warn!(error, spans = count, "the collector of traces takes none");
            }
            Some(_) if stopping.is_cancelled() => return,
            Some(_) => sleep(GATHER).await,
        }
    }
}

fn count_as(what: &AtomicU64, spans: u64) {
    what.fetch_add(spans, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// A collector that takes connections and says nothing.
    #[derive(Debug)]
    struct Silent;

    impl SpanExporter for Silent {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            pending().await
        }
    }

    /// A collector that takes everything.
    #[derive(Debug, Clone, Default)]
    struct Open(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Open {
        async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
            assert!(batch.len() <= BATCH);
            self.0.lock().unwrap().append(&mut batch);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_sends_what_waits() {
        let open = Open::default();
        let (queue, sending) = Sending::start(open.clone());
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("test");
        for _ in 0..2 * BATCH + 1 {
            tracer.start("span").end();
        }
        sending.stop().await;
        assert_eq!(open.0.lock().unwrap().len(), 2 * BATCH + 1);
    }

    #[tokio::test]
    async fn who_makes_spans_never_waits_and_what_is_too_much_is_counted() {
        let (queue, sending) = Sending::start(Silent);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("test");
        let before = DROPPED.load(Ordering::Relaxed);
        let more = 500;
        for _ in 0..MOST + BATCH + more {
            tracer.start("span").end();
        }
        // No task had a turn meanwhile, so that none has left the queue.
        let dropped = DROPPED.load(Ordering::Relaxed) - before;
        assert_eq!(dropped, (BATCH + more) as u64);
        sending.task.abort();
    }
}
