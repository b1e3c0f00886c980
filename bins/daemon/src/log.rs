//! How much is logged, and its change while the process runs.

use std::fmt::Result as Written;
use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use kraken_core::net::trace::TARGET;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How much is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, also for parts of the programs:
/// `info,kraken_core=debug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "a filter of the log", extend("examples" = ["info", "info,kraken_core=debug"]))]
pub struct LogFilter(String);

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A single word would also be taken for the name of a part.
        let is_level = |word: &str| LEVELS.contains(&word.trim().to_lowercase().as_str());
        let is_clear = |it: &str| it.contains(['=', '[']) || is_level(it);
        match EnvFilter::builder().parse(&text) {
            Ok(_) if text.split(',').all(is_clear) => Ok(Self(text)),
            _ => Err(format!(
                "error, warn, info, debug, trace or off is expected, \
                 or such as info,kraken_core=debug, not {text:?}"
            )),
        }
    }
}

impl LogFilter {
    /// How much a process logs when nothing else is said.
    pub(crate) fn usual() -> Self {
        Self(LEVEL.into())
    }
}

/// How much a process logs when nothing else is said.
pub const LEVEL: &str = "info";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object of JSON in each line: `timestamp` (RFC 3339), `level`, `target`, `message`, and what else
    /// the line tells.
    Json,
}

/// Whether lines are [`LogFormat::Json`].
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Both formats, of which each line takes the one that holds.
struct Lines {
    text: Format<Full>,
    json: Format<Json>,
    is_json: &'static AtomicBool,
}

impl Lines {
    fn new(is_json: &'static AtomicBool) -> Self {
        // The fields of spans are kept as text, which is no JSON.
        let json = Format::default().json().flatten_event(true);
        Self {
            text: Format::default(),
            json: json.with_current_span(false).with_span_list(false),
            is_json,
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> Written {
        if self.is_json.load(Ordering::Relaxed) {
            self.json.format_event(context, writer, event)
        } else {
            self.text.format_event(context, writer, event)
        }
    }
}

type Handle = reload::Handle<EnvFilter, Registry>;

/// Spans of traces go elsewhere, and would stand before every line.
fn is_logged(metadata: &Metadata<'_>) -> bool {
    metadata.target() != TARGET
}

/// How the log is changed, and how much of it there was at first.
static FILTER: OnceLock<(Handle, String)> = OnceLock::new();

/// The variable that has the last word.
const VARIABLE: &str = "RUST_LOG";

/// Sends the log to standard error; `RUST_LOG` says how much, `level` when it does not.
pub fn init_log(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let (filter, handle) = reload::Layer::new(filter);
    let others = filter_fn(is_logged).with_max_level_hint(LevelFilter::TRACE);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = lines.event_format(Lines::new(&IS_JSON));
    // Without colours on a terminal as well, when `NO_COLOR` asks for that.
    let lines = if std::io::stderr().is_terminal() {
        lines
    } else {
        lines.with_ansi(false)
    };
    let lines = lines.with_filter(filter.and(others));
    let subscriber = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "otel")]
    let subscriber = subscriber.with(crate::traces::bridge::layer());
    // A second call finds the log set up already.
    if subscriber.try_init().is_ok() {
        let _ = FILTER.set((handle, level.to_owned()));
    }
}

/// Writes lines so from now on.
pub(crate) fn set_format(format: LogFormat) {
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// Logs as much as a configuration says from now on; as much as at first when it says nothing. What
/// `RUST_LOG` says holds in spite of it.
pub(crate) fn set_filter(filter: Option<&LogFilter>) {
    let Some((handle, first)) = FILTER.get() else {
        return;
    };
    if std::env::var_os(VARIABLE).is_some_and(|it| !it.is_empty()) {
        return;
    }
    let text = filter.map_or(first, |LogFilter(text)| text);
    let changed = EnvFilter::builder()
        .parse(text)
        .map_err(|error| error.to_string());
    let changed = changed.and_then(|it| handle.reload(it).map_err(|error| error.to_string()));
    if let Err(error) = changed {
        tracing::error!(error, "the level of the log stays as it was");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of one event in a span.
    fn written(is_json: &'static AtomicBool) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = fmt::layer().with_writer(move || writer.clone());
        let lines = lines.with_ansi(false).event_format(Lines::new(is_json));
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("pull", of = "a\"b").entered();
            tracing::warn!(peer = %"10.0.0.1:7600", pieces = 3, "it is\nsilent");
        });
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_text_or_an_object_as_is_said() {
        static IS_JSON: AtomicBool = AtomicBool::new(false);
        let text = written(&IS_JSON);
        assert!(
            text.contains(" WARN ") && text.contains("pieces=3"),
            "{text}"
        );
        IS_JSON.store(true, Ordering::Relaxed);
        let text = written(&IS_JSON);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        for (key, says) in [
            ("level", Value::from("WARN")),
            ("target", module_path!().into()),
            ("message", "it is\nsilent".into()),
            ("peer", "10.0.0.1:7600".into()),
            ("pieces", 3.into()),
        ] {
            assert_eq!(line[key], says, "{line}");
        }
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }

    #[test]
    fn levels_are_checked() {
        let parse = |text: &str| crate::config::parse::<LogFilter>(text);
        for fine in ["info", "off", "warn,kraken_core=debug", "debug"] {
            assert!(parse(fine).is_ok(), "{fine}");
        }
        for wrong in [
            "verbose=loud",
            "''",
            "kraken_core=chatty",
            "inof",
            "info,debgu",
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("debug, trace or off"), "{wrong}: {error}");
        }
    }
}
