//! Other clusters and registries that images go to, and those that they come from.

use std::collections::BTreeSet;
use std::time::Duration;

use kraken_core::proto::tags::hours::{Hours, Plan, WindowError};
use kraken_core::storage::backend::web::{RegistryBackend, RegistryOptions, RegistryWriter};
use kraken_registry::name::NameError;
use kraken_registry::platform::{Platform, PlatformError};
use kraken_registry::replicate::{
    MirrorRule, RemoteKind, RemoteRule, RemoteStatus, Replicator, Rules, SourceKind, SourceRule,
};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::limits::Rate;
use crate::members::member_url;
use crate::metrics::Family;
use crate::process::StartError;
use crate::units;

/// How long another registry may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked what the tags of another registry are, and how often at most.
const EVERY: Duration = Duration::from_secs(600);
const OFTEN: Duration = Duration::from_secs(1);

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
    /// The cluster fetches what it lacks itself: this one is among its `sources`, and its `cluster` is this
    /// name.
    #[serde(default)]
    pub fetches: bool,
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
        check_name(&self.name, cluster).map_err(wrong)?;
        if self.tags.is_empty() {
            return Err(wrong("tags: name those that go there".into()));
        }
        check_urls(&self.build_indexes).map_err(wrong)?;
        let kind = match (&self.build_indexes[..], &self.registry, self.fetches) {
            ([_, ..], None, false) => RemoteKind::Cluster(self.build_indexes.clone()),
            ([], None, true) if self.limit.or(self.limit_outside).is_some() => {
                let what = "limit: the cluster that `fetches` limits it itself, in its `sources`";
                return Err(wrong(what.into()));
            }
            ([], None, true) => RemoteKind::Fetches,
            ([], Some(options), false) => {
                let writer = RegistryWriter::new(options.clone(), TIMEOUT);
                RemoteKind::Registry(writer.map_err(|error| wrong(error.to_string()))?)
            }
            _ => {
                let what = "name its build_indexes if it is a cluster, or else its registry, or say that it fetches: one \
                            of the three";
                return Err(wrong(what.into()));
            }
        };
        Ok(RemoteRule {
            name: self.name.clone(),
            kind,
            tags: patterns(&self.tags).map_err(wrong)?,
            platforms: platforms(&self.platforms).map_err(wrong)?,
            plan: plan(&self.hours, (self.limit, self.limit_outside)).map_err(wrong)?,
        })
    }
}

/// A cluster or registry that images come from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// A name for it, which none of the `remotes` has.
    pub name: String,
    /// Of a cluster: the base URLs of all of its build-indexes; they and its origins accept this cluster's
    /// certificates, and this cluster is among its `remotes`, as one that `fetches`.
    #[serde(default)]
    pub build_indexes: Vec<String>,
    /// The registry, if it is one.
    #[serde(default)]
    pub registry: Option<RegistryOptions>,
    /// Of a registry: the repositories that are looked into, as they are called here.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// Of a registry: regular expressions; the tags come of which one matches somewhere in `repository:tag`. A
    /// cluster says itself which ones come.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Of a registry: the platforms of which the manifests of an index come, such as `linux/amd64`; all when
    /// absent.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Of a registry: how often it is looked what its tags are; `10m` when absent.
    #[serde(default)]
    pub every: Option<Interval>,
    /// How many bytes a second each build-index here fetches; no limit when absent.
    #[serde(default)]
    pub limit: Option<Rate>,
    /// When something is fetched, in UTC, such as `22:00-06:00` or `sat,sun 00:00-24:00`; always when absent.
    #[serde(default)]
    pub hours: Vec<String>,
    /// How many bytes a second at all other hours; nothing when absent.
    #[serde(default)]
    pub limit_outside: Option<Rate>,
}

/// A time such as `30s` or `10m`, a second or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "time")]
pub struct Interval(Duration);

units::serialize_as_text!(Interval, |every| units::time_text(every.0));

impl TryFrom<String> for Interval {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match units::time(&text)? {
            time if time < OFTEN => Err(format!("{text} is too often: every 1s at most")),
            time => Ok(Self(time)),
        }
    }
}

impl SourceConfig {
    fn rule(&self, cluster: &str) -> Result<SourceRule, StartError> {
        let wrong = |what: String| StartError::Config(format!("sources: {}: {what}", self.name));
        check_name(&self.name, cluster).map_err(wrong)?;
        let kind = match (&self.build_indexes[..], &self.registry) {
            ([_, ..], None) => self.cluster(cluster),
            ([], Some(options)) => self.mirror(options),
            _ => {
                let what = "name all of its build_indexes if it is a cluster, or else its registry";
                Err(what.into())
            }
        };
        Ok(SourceRule {
            name: self.name.clone(),
            kind: kind.map_err(wrong)?,
            plan: plan(&self.hours, (self.limit, self.limit_outside)).map_err(wrong)?,
        })
    }

    fn cluster(&self, own: &str) -> Result<SourceKind, String> {
        check_urls(&self.build_indexes)?;
        let is_told = [&self.repositories, &self.tags, &self.platforms];
        if is_told.iter().any(|it| !it.is_empty()) || self.every.is_some() {
            let what = "repositories, tags, platforms, every: these are for registries; a cluster says in its `remotes` \
                        what may be fetched";
            return Err(what.into());
        }
        if !is_plain(own) {
            let what =
                format!("`cluster` is {own:?}: the other one's `remotes` can have no such name");
            return Err(what);
        }
        Ok(SourceKind::Cluster(self.build_indexes.clone()))
    }

    fn mirror(&self, options: &RegistryOptions) -> Result<SourceKind, String> {
        if self.repositories.is_empty() || self.tags.is_empty() {
            return Err("repositories, tags: say which ones come".into());
        }
        let every = self.every.map_or(EVERY, |every| every.0);
        let registry = RegistryWriter::new(options.clone(), TIMEOUT);
        let blobs = RegistryBackend::new(options.clone(), TIMEOUT);
        let repositories = self.repositories.iter().map(|it| it.parse());
        let repositories = repositories.collect::<Result<_, NameError>>();
        Ok(SourceKind::Registry(Box::new(MirrorRule {
            registry: registry.map_err(|error| error.to_string())?,
            blobs: blobs.map_err(|error| error.to_string())?,
            repositories: repositories.map_err(|error| format!("repositories: {error}"))?,
            tags: patterns(&self.tags)?,
            platforms: platforms(&self.platforms)?,
            every,
        })))
    }
}

fn patterns(tags: &[String]) -> Result<Vec<Regex>, String> {
    let tags = tags.iter().map(|it| Regex::new(it));
    let tags = tags.collect::<Result<_, _>>();
    tags.map_err(|error| format!("tags: {error}"))
}

fn platforms(platforms: &[String]) -> Result<Vec<Platform>, String> {
    let platforms = platforms.iter().map(|it| it.parse());
    let platforms = platforms.collect::<Result<_, PlatformError>>();
    platforms.map_err(|error| format!("platforms: {error}"))
}

fn is_plain(name: &str) -> bool {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
    !name.is_empty() && name.len() <= 255 && name.chars().all(is_plain)
}

fn check_name(name: &str, cluster: &str) -> Result<(), String> {
    if !is_plain(name) {
        return Err("a name has letters, digits, `-`, `_` and `.`".into());
    }
    if name == cluster {
        return Err("this cluster is called so itself, see `cluster`".into());
    }
    Ok(())
}

fn check_urls(build_indexes: &[String]) -> Result<(), String> {
    for url in build_indexes {
        member_url(url).map_err(|error| format!("build_indexes: {error}"))?;
    }
    Ok(())
}

fn plan(
    hours: &[String],
    (limit, limit_outside): (Option<Rate>, Option<Rate>),
) -> Result<Plan, String> {
    if hours.is_empty() && limit_outside.is_some() {
        return Err("limit_outside: outside of which hours?".into());
    }
    let hours = hours.iter().map(|it| it.parse());
    let hours = hours.collect::<Result<_, WindowError>>();
    Ok(Plan {
        hours: Hours::new(hours.map_err(|error| format!("hours: {error}"))?),
        limit: limit.map(|rate| rate.0),
        limit_outside: limit_outside.map(|rate| rate.0),
    })
}

/// Where images go, and where they come from.
///
/// # Errors
/// An entry makes no sense.
pub(crate) fn rules(
    (remotes, sources): (&[RemoteConfig], &[SourceConfig]),
    cluster: &str,
) -> Result<Rules, StartError> {
    let mut names = BTreeSet::new();
    let named = remotes.iter().map(|it| &it.name);
    for name in named.chain(sources.iter().map(|it| &it.name)) {
        if !names.insert(name) {
            let what = format!("remotes and sources: two are named {name}");
            return Err(StartError::Config(what));
        }
    }
    let remotes = remotes.iter().map(|it| it.rule(cluster));
    let sources = sources.iter().map(|it| it.rule(cluster));
    Ok(Rules {
        remotes: remotes.collect::<Result<_, _>>()?,
        sources: sources.collect::<Result<_, _>>()?,
    })
}

/// How far images are on their way, for Prometheus.
pub(crate) async fn metrics(replicator: &Replicator) -> String {
    let Ok(remotes) = replicator.status().await else {
        return String::new();
    };
    families(&remotes)
}

fn families(remotes: &[RemoteStatus]) -> String {
    let all = |family: Family, read: fn(&RemoteStatus) -> u64| {
        let with = |family: Family, remote: &RemoteStatus| {
            let direction = remote.direction.as_str();
            let labels = [("cluster", remote.name.as_str()), ("direction", direction)];
            family.sample(&labels, read(remote))
        };
        remotes.iter().fold(family, with).text()
    };
    let waiting = Family::gauge(
        "kraken_replicate_waiting",
        "Tags and links that another cluster may lack, or this one.",
    );
    let lag = Family::gauge(
        "kraken_replicate_lag_seconds",
        "How long the first of them has waited.",
    );
    let refused = Family::gauge("kraken_replicate_refused", "Those that it did not take.");
    let paused = Family::gauge("kraken_replicate_paused", "1 while nothing is sent there.");
    let blobs = Family::counter(
        "kraken_replicate_sent_blobs",
        "Blobs that were sent or fetched.",
    );
    let bytes = Family::counter(
        "kraken_replicate_sent_bytes",
        "Bytes of blobs that were sent or fetched.",
    );
    let texts = [
        all(waiting, |it| it.waiting),
        all(lag, |it| it.oldest_seconds),
        all(refused, |it| it.refused.len() as u64),
        all(paused, |it| it.is_paused.into()),
        all(blobs, |it| it.sent_blobs),
        all(bytes, |it| it.sent_bytes),
    ];
    texts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn check(text: &str) -> Result<Vec<RemoteRule>, String> {
        let remotes: Vec<RemoteConfig> = config::parse(text).map_err(|it| it.to_string())?;
        let rules = rules((&remotes, &[]), "east").map_err(|it| it.to_string())?;
        Ok(rules.remotes)
    }

    #[test]
    fn a_source_has_a_name_that_no_remote_has_and_is_a_cluster_or_a_registry() {
        let remote = "{name: west, tags: [a], fetches: true}";
        let remotes: Vec<RemoteConfig> = config::parse(&format!("- {remote}")).unwrap();
        let check = |text: &str| {
            let sources: Vec<SourceConfig> = config::parse(text).map_err(|it| it.to_string())?;
            let rules = rules((&remotes, &sources), "east").map_err(|it| it.to_string())?;
            Ok::<_, String>(rules.sources)
        };
        let one = "- {name: from-west, build_indexes: ['https://a:1'], hours: ['22:00-06:00'], limit: 20MB}";
        let SourceKind::Cluster(build_indexes) = &check(one).unwrap()[0].kind else {
            panic!("it is a cluster");
        };
        assert_eq!(build_indexes, &["https://a:1"]);
        for (from, to, what) in [
            ("from-west", "west", "two are named west"),
            ("from-west", "east", "called so itself"),
            ("'https://a:1'", "", "name all of its build_indexes"),
            ("https", "ftp", "build_indexes"),
            ("22:00", "22", "hours"),
            (
                "hours: ['22:00-06:00'], limit",
                "limit_outside",
                "outside of which hours",
            ),
            ("limit: 20MB", "tags: [a]", "these are for registries"),
            ("limit", "limits", "limits"),
        ] {
            let error = check(&one.replace(from, to)).unwrap_err();
            assert!(error.contains(what), "{to}: {error}");
        }
        let one = "- {name: hub, registry: {url: 'https://r.test', repository: '{namespace}'}, \
                   repositories: [library/redis], tags: [':7$'], every: 5m}";
        let SourceKind::Registry(mirror) = &check(one).unwrap()[0].kind else {
            panic!("it is a registry");
        };
        assert_eq!(mirror.every, Duration::from_secs(300));
        for (from, to, what) in [
            ("library/redis", "Library", "repositories"),
            (", every: 5m", ", every: 10ms", "at most"),
            ("tags: [':7$'], ", "", "say which ones come"),
            (":7$", "(", "tags"),
            ("https", "ftp", "https://"),
        ] {
            let error = check(&one.replace(from, to)).unwrap_err();
            assert!(error.contains(what), "{to}: {error}");
        }
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
                format!("- {}", one.replace("limit: 20MB", "fetches: true")),
                "one of the three",
            ),
            (
                "- {name: r, tags: [a], fetches: true, limit: 1MB}".into(),
                "limits it itself",
            ),
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
