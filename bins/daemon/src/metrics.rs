//! `GET /metrics`: what a process counts, as one text of OpenMetrics out of several parts.

use std::fmt::{Display, Write as _};

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use kraken_core::net::Identity;
use kraken_core::net::http::Requests;
use kraken_registry::pull::StaleTags;

use crate::{reload, tls, traces};

/// By this name Prometheus knows the format; of a plain text it believes that it is the older one, which
/// names counters otherwise.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What such a text ends with.
const END: &str = "# EOF\n";

/// What every process tells of.
#[derive(Debug, Clone)]
pub(crate) struct Every {
    /// Who it is.
    pub(crate) identity: Identity,
    /// What it is asked.
    pub(crate) requests: Requests,
}

impl Every {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self {
            identity: identity.clone(),
            requests: Requests::default(),
        }
    }
}

/// Adds `GET /metrics` to a router: the families that `own` tells, with or without the end of a text, and
/// those of every process.
pub(crate) fn with_metrics<F, R>(router: Router, every: Every, own: F) -> Router
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = String> + Send + 'static,
{
    let answer = async move || {
        let own = own().await;
        ([(CONTENT_TYPE, OPEN_METRICS)], whole(&own, &every))
    };
    router.route("/metrics", get(answer))
}

fn whole(own: &str, every: &Every) -> String {
    let own = own.strip_suffix(END).unwrap_or(own);
    let parts = [
        build(),
        every.requests.text(),
        tls::metrics(&every.identity),
        reload::metrics(),
        traces::metrics(),
    ];
    format!("{own}{}{END}", parts.concat())
}

/// Which version answers.
fn build() -> String {
    let family = Family::gauge("kraken_build_info", "The version of the process, always 1.");
    let version = env!("CARGO_PKG_VERSION");
    family.sample(&[("version", version)], 1).text()
}

/// How often a tag was told that may be out of date, as metrics.
pub(crate) fn stale(tags: &StaleTags) -> String {
    let help =
        "Manifests told by a tag whose registry, or whose build-indexes, could not be asked.";
    let family = Family::counter("kraken_stale_tags", help);
    family.sample(&[], tags.count()).text()
}

/// A family of samples as text.
#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    /// What the names of its samples have beside its own.
    ending: &'static str,
    text: String,
}

impl Family {
    /// What only grows. Its name is without the `_total` of its samples.
    pub(crate) fn counter(name: &'static str, help: &str) -> Self {
        Self::new(name, "counter", "_total", help)
    }

    /// What goes up and down.
    pub(crate) fn gauge(name: &'static str, help: &str) -> Self {
        Self::new(name, "gauge", "", help)
    }

    fn new(name: &'static str, kind: &str, ending: &'static str, help: &str) -> Self {
        let text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Self { name, ending, text }
    }

    /// With one sample more; those of a family differ in their labels.
    pub(crate) fn sample(mut self, labels: &[(&str, &str)], value: impl Display) -> Self {
        let label = |(name, value): &(&str, &str)| format!("{name}=\"{}\"", escaped(value));
        let labels = match labels {
            [] => String::new(),
            some => format!(
                "{{{}}}",
                some.iter().map(label).collect::<Vec<_>>().join(",")
            ),
        };
        let Self { name, ending, text } = &mut self;
        let _ = writeln!(text, "{name}{ending}{labels} {value}");
        self
    }

    /// The lines of it.
    pub(crate) fn text(self) -> String {
        self.text
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', r"\\").replace('"', "\\\"");
    value.replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use axum::body::{Body, to_bytes};
    use http::Request;
    use kraken_core::net::CertAuthority;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn families_have_their_samples_together_and_what_clients_say_is_escaped() {
        let family = Family::counter("a_sent", "What was sent.")
            .sample(&[("to", "a\"b\\c\nd"), ("how", "well")], 3_u64)
            .sample(&[], -1);
        let text = "# HELP a_sent What was sent.\n# TYPE a_sent counter\n\
                    a_sent_total{to=\"a\\\"b\\\\c\\nd\",how=\"well\"} 3\na_sent_total -1\n";
        assert_eq!(family.text(), text);
        let gauge = Family::gauge("a", "b").sample(&[], 2).text();
        assert!(gauge.ends_with("# TYPE a gauge\na 2\n"), "{gauge}");
    }

    #[tokio::test]
    async fn the_text_has_one_end_and_the_name_of_its_format() {
        let authority = CertAuthority::create().unwrap();
        let (cert, key) = authority.issue("origin", &[]).unwrap();
        let identity = Identity::from_pem(&cert, &key, &authority.to_pem().0).unwrap();
        for own in ["a 1\n# EOF\n", "a 1\n"] {
            let router = with_metrics(Router::new(), Every::of(&identity), move || {
                ready(own.to_owned())
            });
            let request = Request::get("/metrics").body(Body::empty()).unwrap();
            let answer = router.oneshot(request).await.unwrap();
            assert_eq!(answer.headers()[CONTENT_TYPE], OPEN_METRICS);
            let text = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            let text = String::from_utf8(text.to_vec()).unwrap();
            assert!(text.starts_with("a 1\n# HELP "), "{text}");
            assert!(text.ends_with("\n# EOF\n"), "{text}");
            assert_eq!(text.matches("# EOF").count(), 1, "{text}");
        }
    }
}
