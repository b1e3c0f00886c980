//! Traces that a blob's way to the backend belongs to: those of the pushes that queued it.
//!
//! In memory only: after a restart a blob is written back without a trace.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kraken_net::trace::{self, TARGET, TraceContext};
use kraken_proto::{Digest, Namespace};
use tracing::field::Empty;
use tracing::{Span, info_span};

/// The most blobs that are remembered; the write-backs of further ones are not traced.
const MOST: usize = 1024;
/// Attempts of one blob that are traced: a backend that is away for a day is to make no endless trace.
const MOST_ATTEMPTS: u32 = 10;

/// Who pushed what, for traces.
#[derive(Debug, Default)]
pub(super) struct Pushed(Mutex<HashMap<Digest, TraceContext>>);

impl Pushed {
    /// A blob's write-back belongs to the trace of what runs here, if there is one.
    pub(super) fn note(&self, digest: Digest) {
        if let Some(context) = trace::current() {
            let mut all = self.lock();
            if all.len() < MOST || all.contains_key(&digest) {
                all.insert(digest, context);
            }
        }
    }

    /// The span of an attempt to write a blob back.
    pub(super) fn attempt(&self, namespace: &Namespace, digest: Digest) -> Span {
        let Some(context) = self.lock().get(&digest).copied() else {
            return Span::none();
        };
        let span = info_span!(
            target: TARGET,
            parent: None,
            "write-back",
            otel.status_code = Empty,
            kraken.digest = %digest,
            kraken.namespace = %namespace,
            kraken.outcome = Empty,
        );
        trace::follow(&span, context);
        span
    }

    /// A blob has been written back, or so often not that it is traced no more.
    pub(super) fn attempted(&self, digest: Digest, is_done: bool, attempts: u32) {
        if is_done || attempts >= MOST_ATTEMPTS {
            self.lock().remove(&digest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, TraceContext>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
