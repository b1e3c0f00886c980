//! How much is logged, and its change while the process runs.

use std::sync::OnceLock;

use kraken_core::net::trace::TARGET;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How much is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, also for parts of the programs:
/// `info,kraken_core=debug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "log levels")]
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

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

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
    let lines = lines.with_filter(filter.and(others));
    let subscriber = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "otel")]
    let subscriber = subscriber.with(crate::traces::bridge::layer());
    // A second call finds the log set up already.
    if subscriber.try_init().is_ok() {
        let _ = FILTER.set((handle, level.to_owned()));
    }
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
    use super::*;

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
