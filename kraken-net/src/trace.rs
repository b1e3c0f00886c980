//! Traces: which request led to what, over several processes.
//!
//! What is under way in a trace is told by spans of `tracing` whose target is [`TARGET`], which
//! [`trace_span!`](crate::trace_span) makes. A trace begins with a request of a client, in
//! [`http::traced`](fn@crate::http::traced), and goes on in every process that this one asks, by the header
//! `traceparent` of W3C's Trace Context. Who collects spans is the program's affair: it sets a [`Bridge`].
//! Without one no such span is ever made.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::Span;

/// The target of all spans that belong to traces.
pub const TARGET: &str = "kraken_trace";

/// Joins the spans of this process to those of others.
pub trait Bridge: Send + Sync + 'static {
    /// Whether a trace begins with a request that belongs to none.
    fn begins(&self) -> bool;

    /// How others name a span; `None` when it is not collected.
    fn context(&self, span: &Span) -> Option<TraceContext>;

    /// Makes a span of another process the parent of one that has just been made.
    fn follow(&self, span: &Span, parent: TraceContext);

    /// Notes that a span has to do with one of another trace.
    fn link(&self, span: &Span, other: TraceContext);
}

static BRIDGE: OnceLock<Box<dyn Bridge>> = OnceLock::new();

/// Lets traces be collected from now on. False when somebody has done so before: it stays as it was.
pub fn set_bridge(bridge: impl Bridge) -> bool {
    BRIDGE.set(Box::new(bridge)).is_ok()
}

#[cfg(feature = "http")]
pub(crate) fn bridge() -> Option<&'static dyn Bridge> {
    BRIDGE.get().map(AsRef::as_ref)
}

/// Whether what runs here belongs to a trace that is collected.
pub fn is_within() -> bool {
    let is_ours = |span: &Span| span.metadata().is_some_and(|it| it.target() == TARGET);
    BRIDGE.get().is_some() && is_ours(&Span::current())
}

/// How others name the span that is under way here, if it belongs to a trace.
pub fn current() -> Option<TraceContext> {
    is_within().then(|| context_of(&Span::current())).flatten()
}

/// How others name a span, if it belongs to a trace.
pub fn context_of(span: &Span) -> Option<TraceContext> {
    BRIDGE.get()?.context(span)
}

/// Notes that a span has to do with one of another trace.
pub fn link(span: &Span, other: TraceContext) {
    if let Some(bridge) = BRIDGE.get() {
        bridge.link(span, other);
    }
}

/// Makes a span of another process, or of a time before, the parent of one that has just been made.
pub fn follow(span: &Span, parent: TraceContext) {
    if let Some(bridge) = BRIDGE.get() {
        bridge.follow(span, parent);
    }
}

/// A number as an attribute of a span: collectors know signed ones only.
pub fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A span of what is about to be done, if what runs here belongs to a trace; one that does nothing
/// otherwise. Takes what [`tracing::info_span!`] takes behind the target.
#[macro_export]
macro_rules! trace_span {
    ($($all:tt)+) => {
        if $crate::trace::is_within() {
            ::tracing::info_span!(target: $crate::trace::TARGET, $($all)+)
        } else {
            ::tracing::Span::none()
        }
    };
}

/// The name of a span for other processes: the value of the header `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// Of the whole trace.
    pub trace: NonZeroU128,
    /// Of the span.
    pub span: NonZeroU64,
    /// Whether the trace is collected.
    pub is_sampled: bool,
}

/// The length of version 00, in bytes.
const LENGTH: usize = 55;

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let wrong = TraceContextError;
        // Later versions may add to it, behind one more hyphen.
        let (head, rest) = text.split_at_checked(LENGTH).ok_or(wrong)?;
        let mut parts = head.split('-');
        let mut part = |length: usize| {
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let part = parts.next().filter(|it| it.len() == length);
            part.filter(|it| it.bytes().all(is_hex)).ok_or(wrong)
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let fits = match version {
            "00" => rest.is_empty(),
            "ff" => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let trace = u128::from_str_radix(trace, 16).ok();
        let span = u64::from_str_radix(span, 16).ok();
        let flags = u8::from_str_radix(flags, 16).ok();
        Ok(Self {
            trace: trace.and_then(NonZeroU128::new).ok_or(wrong)?,
            span: span.and_then(NonZeroU64::new).ok_or(wrong)?,
            is_sampled: flags.filter(|_| fits).ok_or(wrong)? & 1 == 1,
        })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.is_sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

/// A text is not the value of a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the value of a traceparent")]
pub struct TraceContextError;

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let context: TraceContext = GIVEN.parse().unwrap();
        assert_eq!(context.span.get(), 0x00f0_67aa_0ba9_02b7);
        assert!(context.is_sampled);
        assert_eq!(context.to_string(), GIVEN);
        let off: TraceContext = GIVEN.replace("-01", "-00").parse().unwrap();
        assert!(!off.is_sampled && off.to_string().ends_with("-00"));
        // Flags that mean something to others only.
        let flags: TraceContext = GIVEN.replace("-01", "-ff").parse().unwrap();
        assert!(flags.is_sampled);
    }

    #[test]
    fn later_versions_are_read_and_nothing_else_is() {
        let later = GIVEN.replacen("00", "01", 1);
        for fine in [later.clone(), format!("{later}-more")] {
            assert!(fine.parse::<TraceContext>().is_ok(), "{fine}");
        }
        let zeros = |digits: usize| "0".repeat(digits);
        for wrong in [
            String::new(),
            GIVEN.to_uppercase(),
            GIVEN.replacen("00", "ff", 1),
            format!("{GIVEN}-more"),
            format!("{later}more"),
            format!("{GIVEN} "),
            GIVEN[..LENGTH - 1].to_owned(),
            GIVEN.replace('-', "_"),
            GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zeros(32)),
            GIVEN.replace("00f067aa0ba902b7", &zeros(16)),
            GIVEN.replace("00f0", "+0f0"),
            "é".repeat(40),
        ] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_a_bridge_there_are_no_spans() {
        let span = trace_span!("anything", bytes = 1);
        assert!(span.is_none() && !is_within() && current().is_none());
    }
}
