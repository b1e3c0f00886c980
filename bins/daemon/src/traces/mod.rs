//! Traces, sent to a collector by OTLP: what a pull waited for, over all processes that had a part in it.
//!
//! Nothing is done for them as long as no configuration asks for it. A collector that is away costs
//! nothing but spans: they wait in a queue with a bound, and what does not fit is counted and dropped.

#[cfg(feature = "otel")]
pub(crate) mod bridge;
#[cfg(feature = "otel")]
mod queue;
#[cfg(feature = "otel")]
mod start;
#[cfg(not(feature = "otel"))]
#[path = "without.rs"]
mod start;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use kraken_core::net::http::BaseUrl;
use schemars::JsonSchema;
use serde::Deserialize;

pub use self::start::Traces;
use crate::metrics::Family;
#[cfg(any(feature = "otel", test))]
use crate::problems::Problems;
use crate::units::{self, Written};

/// Spans that came to the collector, that found no room in the queue, and that it did not take.
static SENT: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// The variable that names the collector where the configuration does not.
#[cfg(any(feature = "otel", test))]
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where traces go, and of how many requests.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TracingConfig {
    /// Where a collector takes OTLP over HTTP, such as `http://collector:4318`. When absent, what the
    /// variable `OTEL_EXPORTER_OTLP_ENDPOINT` says.
    #[serde(default)]
    pub endpoint: Option<CollectorUrl>,
    /// Of which part of the requests of clients traces are made: `0.01`, also written `1%`.
    #[serde(default)]
    pub sample: Sample,
    /// A PEM file with the authorities to trust for `https://`; those of this host when absent.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// The URL of a collector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "URL", extend("examples" = ["http://collector:4318"]))]
pub struct CollectorUrl(BaseUrl);

impl TryFrom<String> for CollectorUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for CollectorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not the URL of a collector, http://collector:4318");
        text.parse().map(Self).map_err(|_| wrong())
    }
}

/// A part of all requests: 0 to 1, or in percent.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written", title = "a part such as 0.01 or 1%")]
pub struct Sample(f64);

impl Default for Sample {
    fn default() -> Self {
        Self(0.01)
    }
}

units::serialize_as_text!(Sample, |sample| sample.0.to_string());

impl TryFrom<Written> for Sample {
    type Error = String;

    fn try_from(Written(text): Written) -> Result<Self, String> {
        let (number, whole) = match text.strip_suffix('%') {
            Some(number) => (number.trim_end(), 100.0),
            None => (text.as_str(), 1.0),
        };
        let part = number.parse::<f64>().ok().map(|it| it / whole);
        let fits = part.filter(|it| (0.0..=1.0).contains(it));
        let wrong = || format!("a part such as 0.01 or 1% is expected, 1 at most, not {text}");
        fits.map(Self).ok_or_else(wrong)
    }
}

impl TracingConfig {
    /// Traces of every request.
    pub fn of_all(endpoint: CollectorUrl) -> Self {
        Self {
            endpoint: Some(endpoint),
            sample: Sample(1.0),
            ca: None,
        }
    }

    /// Where spans are posted to.
    ///
    /// # Errors
    /// Neither the configuration nor the environment says.
    #[cfg(any(feature = "otel", test))]
    fn url(&self, variable: Option<String>) -> Result<String, Problems> {
        let wrong = |what: String| Problems::one("endpoint", what);
        let named = variable.filter(|it| !it.is_empty());
        let base = match (&self.endpoint, named) {
            (Some(url), _) => url.clone(),
            (None, Some(text)) => CollectorUrl::try_from(text)
                .map_err(|error| wrong(format!("the variable {ENDPOINT}: {error}")))?,
            (None, None) => {
                return Err(wrong(format!(
                    "needed, as {ENDPOINT} is not set either: write where the collector is, such as \
                     http://collector:4318"
                )));
            }
        };
        const PATH: &str = "/v1/traces";
        let base = base.0.as_str().trim_end_matches(PATH);
        if self.ca.is_some() && !base.starts_with("https://") {
            let what = format!(
                "authorities are for https://, and the collector is at {base}: leave this out"
            );
            return Err(Problems::one("ca", what));
        }
        Ok(format!("{base}{PATH}"))
    }
}

/// What became of the spans of this process, as metrics.
pub(crate) fn metrics() -> String {
    let family = Family::counter(
        "kraken_trace_spans",
        "Spans of traces, by what became of them.",
    );
    let counts = [("sent", &SENT), ("dropped", &DROPPED), ("failed", &FAILED)];
    let family = counts.into_iter().fold(family, |family, (result, count)| {
        family.sample(&[("result", result)], count.load(Ordering::Relaxed))
    });
    family.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn parts_are_numbers_or_percent() {
        for (text, part) in [
            ("sample: 0.25", 0.25),
            ("sample: 1", 1.0),
            ("sample: 0", 0.0),
            ("sample: 5%", 0.05),
            ("sample: '100 %'", 1.0),
            ("{}", 0.01),
        ] {
            let config: TracingConfig = parse(text).unwrap();
            assert_eq!(config.sample, Sample(part), "{text}");
        }
        for wrong in ["2", "-0.1", "101%", "many", "NaN", "on"] {
            let error = parse::<TracingConfig>(&format!("sample: {wrong}")).unwrap_err();
            assert!(error.contains("0.01 or 1%"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_configuration_names_the_collector_before_the_environment_does() {
        let variable = || Some("http://other:4318".to_owned());
        let config: TracingConfig = parse("endpoint: http://collector:4318/").unwrap();
        let url = "http://collector:4318/v1/traces";
        assert_eq!(config.url(variable()).unwrap(), url);
        let config: TracingConfig = parse(&format!("endpoint: {url}")).unwrap();
        assert_eq!(config.url(None).unwrap(), url);
        let config: TracingConfig = parse("sample: 1%").unwrap();
        assert_eq!(
            config.url(variable()).unwrap(),
            "http://other:4318/v1/traces"
        );
        for (variable, says) in [(None, "endpoint: needed"), (Some("x".into()), ENDPOINT)] {
            let error = config.url(variable).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = parse::<TracingConfig>("endpoint: collector").unwrap_err();
        assert!(error.contains("http://collector:4318"), "{error}");
        let error = parse::<TracingConfig>("endpiont: http://a").unwrap_err();
        assert!(error.contains("endpoint"), "{error}");
    }
}
