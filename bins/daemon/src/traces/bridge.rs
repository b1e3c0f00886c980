//! Between the spans of `tracing` and those of OpenTelemetry.

use std::num::{NonZeroU64, NonZeroU128};
use std::sync::atomic::{AtomicBool, Ordering};

use kraken_core::net::trace::{Bridge, TARGET, TraceContext};
use opentelemetry::Context;
use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer,
};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::layer::{Context as Layered, Filter, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Whether spans are collected.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// Lets spans be collected from now on.
pub(super) fn switch_on() {
    IS_ON.store(true, Ordering::SeqCst);
    tracing::callsite::rebuild_interest_cache();
}

/// What hands spans over, once it is [switched on](switch_on); until then their places in the code cost a
/// look at one number.
pub(crate) fn layer<S>() -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    OpenTelemetryLayer::new(Late)
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_target(false)
        .with_filter(WhenOn)
}

/// The layer is there before the configuration is read, which says where spans go.
struct Late;

impl Tracer for Late {
    type Span = BoxedSpan;

    fn build_with_context(&self, builder: SpanBuilder, parent: &Context) -> BoxedSpan {
        global::tracer("kraken").build_with_context(builder, parent)
    }
}

struct WhenOn;

impl WhenOn {
    fn takes(metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == TARGET && IS_ON.load(Ordering::Relaxed)
    }
}

impl<S> Filter<S> for WhenOn {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Layered<'_, S>) -> bool {
        Self::takes(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match Self::takes(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match IS_ON.load(Ordering::Relaxed) {
            true => LevelFilter::INFO,
            false => LevelFilter::OFF,
        })
    }
}

/// [`Bridge`] by OpenTelemetry's layer.
pub(super) struct OtelBridge {
    /// Of 2^64 requests so many begin a trace.
    pub(super) share: u64,
}

impl OtelBridge {
    /// One that begins a trace with a part of the requests, 0 to 1.
    pub(super) fn sampling(part: f64) -> Self {
        // Saturates at both ends.
        let share = (part * 2f64.powi(64)) as u64;
        Self { share }
    }
}

impl Bridge for OtelBridge {
    fn begins(&self) -> bool {
        self.share == u64::MAX || random() < self.share
    }

    fn context(&self, span: &Span) -> Option<TraceContext> {
        let context = span.context();
        let span = context.span();
        let span = span.span_context();
        Some(TraceContext {
            trace: NonZeroU128::new(u128::from_be_bytes(span.trace_id().to_bytes()))?,
            span: NonZeroU64::new(u64::from_be_bytes(span.span_id().to_bytes()))?,
            is_sampled: span.is_sampled(),
        })
    }

    fn follow(&self, span: &Span, parent: TraceContext) {
        let parent = Context::new().with_remote_span_context(named(parent));
        if let Err(error) = span.set_parent(parent) {
            tracing::debug!(%error, "a span has no parent");
        }
    }

    fn link(&self, span: &Span, other: TraceContext) {
        span.add_link(named(other));
    }
}

/// A number that nobody foresees.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Each has keys of its own, the first of which are drawn from the system.
    RandomState::new().hash_one(0)
}

fn named(context: TraceContext) -> SpanContext {
    let flags = match context.is_sampled {
        true => TraceFlags::SAMPLED,
        false => TraceFlags::default(),
    };
    SpanContext::new(
        TraceId::from_bytes(context.trace.get().to_be_bytes()),
        SpanId::from_bytes(context.span.get().to_be_bytes()),
        flags,
        true,
        TraceState::default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_requests_begins_traces() {
        let begun = |part: f64| {
            let bridge = OtelBridge::sampling(part);
            (0..10_000).filter(|_| bridge.begins()).count()
        };
        assert_eq!((begun(0.0), begun(1.0)), (0, 10_000));
        // Ten standard deviations.
        let quarter = begun(0.25);
        assert!((2_067..=2_933).contains(&quarter), "{quarter}");
    }

    #[test]
    fn names_of_spans_are_the_same_on_both_sides() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let span = named(text.parse().unwrap());
        let (trace, id) = (span.trace_id().to_string(), span.span_id().to_string());
        assert_eq!(format!("00-{trace}-{id}-01"), text);
        assert!(span.is_remote() && span.is_sampled());
    }
}
