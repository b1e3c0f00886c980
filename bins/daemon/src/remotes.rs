//! Other clusters and registries that images go to.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use kraken_core::net::http::BaseUrl;
use kraken_core::proto::tags::hours::{Hours, Plan, WindowError};
use kraken_core::storage::backend::web::{RegistryOptions, RegistryWriter};
use kraken_registry::platform::PlatformError;
use kraken_registry::replicate::{RemoteKind, RemoteRule, RemoteStatus, Replicator};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::limits::Rate;
use crate::process::StartError;

/// How long another registry may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A cluster or registry that images go to.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoteConfig {
    /// Its name.
    pub name: String,
    /// Of a cluster: the base URLs of its build-indexes; they and its origins accept this cluster's
    /// certificates.
    #[serde(default)]
    pub build_indexes: Vec<String>,
    /// The registry, if it is one.
    #[serde(default)]
    pub registry: Option<RegistryOptions>,
    /// Regular expressions: it gets the tags of which one matches somewhere in `repository:tag`.
    pub tags: Vec<String>,
    /// The platforms of which it gets the manifests of an index, such as `linux/amd64`; all when absent.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// How many bytes a second each build-index sends there; no limit when absent.
    #[serde(default)]
    pub limit: Option<Rate>,
    /// When something goes there, in UTC, such as `22:00-06:00` or `sat,sun 00:00-24:00`; always when absent.
    #[serde(default)]
    pub hours: Vec<String>,
    /// How many bytes a second at all other hours; nothing when absent.
    #[serde(default)]
    pub limit_outside: Option<Rate>,
}

impl RemoteConfig {
    fn rule(&self, cluster: &str) -> Result<RemoteRule, StartError> {
        let wrong = |what: String| StartError::Config(format!("remotes: {}: {what}", self.name));
        let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        if self.name.is_empty() || self.name.len() > 255 || !self.name.chars().all(is_plain) {
            return Err(wrong("a name has letters, digits, `-`, `_` and `.`".into()));
        }
        if self.name == cluster {
            return Err(wrong(
                "this cluster is called so itself, see `cluster`".into(),
            ));
        }
        if self.tags.is_empty() {
            return Err(wrong("tags: name those that go there".into()));
        }
        for url in &self.build_indexes {
            let parsed = url.parse::<BaseUrl>();
            parsed.map_err(|error| wrong(format!("build_indexes: {error}")))?;
        }
        let kind = match (&self.build_indexes[..], &self.registry) {
            ([_, ..], None) => RemoteKind::Cluster(self.build_indexes.clone()),
            ([], Some(options)) => {
                let writer = RegistryWriter::new(options.clone(), TIMEOUT);
                RemoteKind::Registry(writer.map_err(|error| wrong(error.to_string()))?)
            }
            _ => {
                let what = "name its build_indexes if it is a cluster, or else its registry";
                return Err(wrong(what.into()));
            }
        };
        if self.hours.is_empty() && self.limit_outside.is_some() {
            return Err(wrong("limit_outside: outside of which hours?".into()));
        }
        let platforms = self.platforms.iter().map(|it| it.parse());
        let platforms = platforms.collect::<Result<_, PlatformError>>();
        let hours = self.hours.iter().map(|it| it.parse());
        let hours = hours.collect::<Result<_, WindowError>>();
        let tags = self.tags.iter().map(|it| Regex::new(it));
        let tags = tags.collect::<Result<_, _>>();
        Ok(RemoteRule {
            name: self.name.clone(),
            kind,
            tags: tags.map_err(|error| wrong(format!("tags: {error}")))?,
            platforms: platforms.map_err(|error| wrong(format!("platforms: {error}")))?,
            plan: Plan {
                hours: Hours::new(hours.map_err(|error| wrong(format!("hours: {error}")))?),
                limit: self.limit.map(|rate| rate.0),
                limit_outside: self.limit_outside.map(|rate| rate.0),
            },
        })
    }
}

/// Where images go.
///
/// # Errors
/// An entry makes no sense.
pub(crate) fn rules(
    remotes: &[RemoteConfig],
    cluster: &str,
) -> Result<Vec<RemoteRule>, StartError> {
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    for remote in remotes {
        if !names.insert(&remote.name) {
            let what = format!("remotes: two are named {}", remote.name);
            return Err(StartError::Config(what));
        }
        rules.push(remote.rule(cluster)?);
    }
    Ok(rules)
}

/// How far images are on their way, for Prometheus.
pub(crate) async fn metrics(replicator: &Replicator) -> String {
    type Read = fn(&RemoteStatus) -> u64;
    let kinds: [(&str, &str, &str, Read); 6] = [
        (
            "waiting",
            "gauge",
            "Tags and links that another cluster may lack.",
            |it| it.waiting,
        ),
        (
            "lag_seconds",
            "gauge",
            "How long the first of them has waited.",
            |it| it.oldest_seconds,
        ),
        ("refused", "gauge", "Those that it did not take.", |it| {
            it.refused.len() as u64
        }),
        ("paused", "gauge", "1 while nothing is sent there.", |it| {
            it.is_paused.into()
        }),
        (
            "sent_blobs_total",
            "counter",
            "Blobs that were sent.",
            |it| it.sent_blobs,
        ),
        (
            "sent_bytes_total",
            "counter",
            "Bytes of blobs that were sent.",
            |it| it.sent_bytes,
        ),
    ];
    let mut text = String::new();
    let Ok(remotes) = replicator.status().await else {
        return text;
    };
    for (name, kind, help, read) in kinds {
        let _ = writeln!(text, "# HELP kraken_replicate_{name} {help}");
        let _ = writeln!(text, "# TYPE kraken_replicate_{name} {kind}");
        for remote in &remotes {
            let (cluster, value) = (&remote.name, read(remote));
            let _ = writeln!(
                text,
                "kraken_replicate_{name}{{cluster=\"{cluster}\"}} {value}"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn check(text: &str) -> Result<Vec<RemoteRule>, String> {
        let remotes: Vec<RemoteConfig> = config::parse(text).map_err(|it| it.to_string())?;
        rules(&remotes, "east").map_err(|it| it.to_string())
    }

    #[test]
    fn a_registry_is_told_as_a_backend_is() {
        let text = "- {name: harbor, tags: [a], registry: {url: 'https://harbor.test', repository: 'mirror/{namespace}', \
                    credentials: {password: {username: a, password: {env: P}}}}}";
        let rules = check(text).unwrap();
        assert!(matches!(rules[0].kind, RemoteKind::Registry(_)));
    }

    #[test]
    fn a_remote_has_a_name_of_its_own_and_somewhere_to_go() {
        let one = "{name: west, build_indexes: ['https://a:1'], tags: ['^team/'], limit: 20MB}";
        let rules = check(&format!("- {one}")).unwrap();
        assert_eq!(
            rules[0].plan.limit.map(std::num::NonZeroU64::get),
            Some(20_000_000)
        );
        for (text, what) in [
            (format!("[{one}, {one}]"), "two are named west"),
            (
                format!("- {}", one.replace("west", "east")),
                "called so itself",
            ),
            (
                format!("- {}", one.replace("west", "a b")),
                "a name has letters",
            ),
            (
                format!("- {}", one.replace("'https://a:1'", "")),
                "build_indexes",
            ),
            (
                format!("- {}", one.replace("https", "ftp")),
                "build_indexes",
            ),
            (format!("- {}", one.replace("^team/", "(")), "tags"),
            (format!("- {}", one.replace("tags", "tag")), "tags"),
            (
                format!(
                    "- {}",
                    one.replace("limit: 20MB", "registry: {url: 'https://r'}")
                ),
                "or else its registry",
            ),
            (
                "- {name: r, tags: [a], registry: {url: 'ftp://r'}}".into(),
                "https://",
            ),
            (
                "- {name: r, tags: [a], registry: {url: 'http://r', repository: all}}".into(),
                "{namespace}",
            ),
            ("- {name: r, tags: [a]}".into(), "or else its registry"),
            (
                format!("- {}", one.replace("limit: 20MB", "hours: [night]")),
                "hours: \"night\" is no window such as",
            ),
            (
                format!("- {}", one.replace("limit: 20MB", "platforms: [amd64]")),
                "platforms: \"amd64\" is no platform such as",
            ),
            (
                format!("- {}", one.replace("limit", "limit_outside")),
                "outside of which hours",
            ),
        ] {
            let error = check(&text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
