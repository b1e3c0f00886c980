//! Other clusters and registries that images go to, and those that they come from.

use std::time::Duration;

use kraken_core::net::http::BaseUrl;
use kraken_core::proto::tags::hours::{Hours, Plan, WindowError};
use kraken_core::storage::BackendError;
use kraken_core::storage::backend::web::{RegistryBackend, RegistryOptions, RegistryWriter};
use kraken_registry::name::{NameError, RepoName};
use kraken_registry::platform::{Platform, PlatformError};
use kraken_registry::replicate::{
    MirrorRule, RemoteKind, RemoteRule, RemoteStatus, Replicator, Rules, SourceKind, SourceRule,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::backends::{self, words};
use crate::limits::Rate;
use crate::members::member_urls;
use crate::metrics::Family;
use crate::pattern::Pattern;
use crate::problems::Problems;
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
    pub tags: Vec<Pattern>,
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
    fn rule(&self, cluster: &str) -> Result<RemoteRule, Problems> {
        let mut found = Problems::default();
        found.at("name", check_name(&self.name, cluster));
        if self.tags.is_empty() {
            found.add("tags", "name those that go there: ['.'] for all");
        }
        found.of(member_urls(&self.build_indexes).map_err(|wrong| wrong.under("build_indexes")));
        let kind = found.of(self.kind());
        let platforms = found.of(platforms(&self.platforms));
        let plan = found.of(plan(&self.hours, (self.limit, self.limit_outside)));
        let (Some(kind), Some(platforms), Some(plan)) = (kind, platforms, plan) else {
            return Err(found);
        };
        found.done(RemoteRule {
            name: self.name.clone(),
            kind,
            tags: self.tags.iter().map(Pattern::regex).collect(),
            platforms,
            plan,
        })
    }

    fn kind(&self) -> Result<RemoteKind, Problems> {
        match (&self.build_indexes[..], &self.registry, self.fetches) {
            ([_, ..], None, false) => Ok(RemoteKind::Cluster(self.build_indexes.clone())),
            ([], None, true) if self.limit.or(self.limit_outside).is_some() => {
                let key = if self.limit.is_some() {
                    "limit"
                } else {
                    "limit_outside"
                };
                let what =
                    "the cluster that `fetches` limits it itself, in its `sources`: leave this out";
                Err(Problems::one(key, what))
            }
            ([], None, true) => Ok(RemoteKind::Fetches),
            ([], Some(options), false) => {
                let writer = RegistryWriter::new(options.clone(), TIMEOUT);
                Ok(RemoteKind::Registry(writer.map_err(of_registry)?))
            }
            _ => {
                let what = "name its build_indexes if it is a cluster, or else its registry, or say that it fetches: one \
                            of the three";
                Err(Problems::one("", what))
            }
        }
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
    pub tags: Vec<Pattern>,
    /// Of a registry: the platforms of which the manifests of an index come, such as `linux/amd64`; all when
    /// absent.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Of a registry: how often it is looked what its tags are.
    #[serde(default)]
    #[schemars(default = "usual_interval", extend("x-conditional" = true))]
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
#[schemars(with = "String", title = "time", extend("examples" = ["10m"]))]
pub struct Interval(Duration);

const fn usual_interval() -> Interval {
    Interval(EVERY)
}

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
    fn rule(&self, cluster: &str) -> Result<SourceRule, Problems> {
        let mut found = Problems::default();
        found.at("name", check_name(&self.name, cluster));
        let kind = match (&self.build_indexes[..], &self.registry) {
            ([_, ..], None) => self.cluster(cluster),
            ([], Some(options)) => self.mirror(options),
            _ => {
                let what = "name all of its build_indexes if it is a cluster, or else its registry";
                Err(Problems::one("", what))
            }
        };
        let kind = found.of(kind);
        let plan = found.of(plan(&self.hours, (self.limit, self.limit_outside)));
        let (Some(kind), Some(plan)) = (kind, plan) else {
            return Err(found);
        };
        let name = self.name.clone();
        found.done(SourceRule { name, kind, plan })
    }

    fn cluster(&self, own: &str) -> Result<SourceKind, Problems> {
        let mut found = Problems::default();
        found.of(member_urls(&self.build_indexes).map_err(|wrong| wrong.under("build_indexes")));
        for (key, is_given) in [
            ("repositories", !self.repositories.is_empty()),
            ("tags", !self.tags.is_empty()),
            ("platforms", !self.platforms.is_empty()),
            ("every", self.every.is_some()),
        ] {
            if is_given {
                let what = "repositories, tags, platforms, every: these are for registries; a cluster says in its \
                            `remotes` what may be fetched";
                found.add(key, what);
            }
        }
        if !is_plain(own) {
            let what =
                format!("`cluster` is {own:?}: the other one's `remotes` can have no such name");
            found.add("", what);
        }
        found.done(SourceKind::Cluster(self.build_indexes.clone()))
    }

    fn mirror(&self, options: &RegistryOptions) -> Result<SourceKind, Problems> {
        let mut found = Problems::default();
        for (key, is_empty) in [
            ("repositories", self.repositories.is_empty()),
            ("tags", self.tags.is_empty()),
        ] {
            if is_empty {
                found.missing(key, "registry", "say which ones come");
            }
        }
        let registry = RegistryWriter::new(options.clone(), TIMEOUT);
        let registry = found.of(registry.map_err(of_registry));
        let blobs = RegistryBackend::new(options.clone(), TIMEOUT);
        let blobs = found.of(blobs.map_err(of_registry));
        let mut repositories = Vec::new();
        for (index, text) in self.repositories.iter().enumerate() {
            let name: Result<RepoName, NameError> = text.parse();
            repositories.extend(found.at(&format!("repositories[{index}]"), name));
        }
        let given = self.repositories.iter().cloned().enumerate();
        found.twice(given.map(|(index, text)| (format!("repositories[{index}]"), text)));
        let platforms = found.of(platforms(&self.platforms));
        let (Some(registry), Some(blobs), Some(platforms)) = (registry, blobs, platforms) else {
            return Err(found);
        };
        found.done(SourceKind::Registry(Box::new(MirrorRule {
            registry,
            blobs,
            repositories,
            tags: self.tags.iter().map(Pattern::regex).collect(),
            platforms,
            every: self.every.map_or(EVERY, |every| every.0),
        })))
    }
}

/// What keeps a registry from being used.
fn of_registry(error: BackendError) -> Problems {
    let what = words(error);
    let what = what.strip_prefix("registry: ").unwrap_or(&what);
    match what.strip_prefix("repository: ") {
        Some(what) => Problems::one("registry.repository", what),
        None => Problems::one("registry", what),
    }
}

fn platforms(texts: &[String]) -> Result<Vec<Platform>, Problems> {
    let mut found = Problems::default();
    let mut platforms = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let platform: Result<_, PlatformError> = text.parse();
        platforms.extend(found.at(&format!("platforms[{index}]"), platform));
    }
    let given = texts.iter().cloned().enumerate();
    found.twice(given.map(|(index, text)| (format!("platforms[{index}]"), text)));
    found.done(platforms)
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

fn plan(
    texts: &[String],
    (limit, limit_outside): (Option<Rate>, Option<Rate>),
) -> Result<Plan, Problems> {
    let mut found = Problems::default();
    let mut windows = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let window: Result<_, WindowError> = text.parse();
        windows.extend(found.at(&format!("hours[{index}]"), window));
    }
    let hours = Hours::new(windows);
    if limit_outside.is_some() {
        if texts.is_empty() {
            found.add(
                "limit_outside",
                "outside of which hours? Give `hours`, or leave this out",
            );
        } else if found.all().is_empty() && hours.are_all() {
            let what =
                "this means nothing, as `hours` are all there are: write fewer, or leave this out";
            found.add("limit_outside", what);
        }
    }
    found.done(Plan {
        hours,
        limit: limit.map(|rate| rate.0),
        limit_outside: limit_outside.map(|rate| rate.0),
    })
}

/// Where images go, and where they come from.
///
/// # Errors
/// All that makes no sense, with the keys of a build-index.
pub(crate) fn rules(
    (remotes, sources): (&[RemoteConfig], &[SourceConfig]),
    cluster: &str,
) -> Result<Rules, Problems> {
    let mut found = Problems::default();
    let remotes_named = remotes.iter().map(|it| it.name.clone()).enumerate();
    let remotes_named = remotes_named.map(|(at, name)| (format!("remotes[{at}].name"), name));
    let sources_named = sources.iter().map(|it| it.name.clone()).enumerate();
    let sources_named = sources_named.map(|(at, name)| (format!("sources[{at}].name"), name));
    found.twice(remotes_named.chain(sources_named));
    let mut rules = Rules {
        remotes: Vec::new(),
        sources: Vec::new(),
    };
    for (index, remote) in remotes.iter().enumerate() {
        let rule = remote.rule(cluster);
        let key = format!("remotes[{index}]");
        rules
            .remotes
            .extend(found.of(rule.map_err(|wrong| wrong.under(&key))));
    }
    for (index, source) in sources.iter().enumerate() {
        let rule = source.rule(cluster);
        let key = format!("sources[{index}]");
        rules
            .sources
            .extend(found.of(rule.map_err(|wrong| wrong.under(&key))));
    }
    found.done(rules)
}

impl Problems {
    /// What the registries among them need, and clusters that are this one.
    pub(crate) fn of_registries(
        &mut self,
        (remotes, sources): (&[RemoteConfig], &[SourceConfig]),
        own: &[BaseUrl],
    ) {
        let remotes = remotes
            .iter()
            .map(|it| (&it.registry, &it.build_indexes))
            .enumerate();
        let remotes = remotes.map(|(at, it)| (format!("remotes[{at}]"), it));
        let sources = sources
            .iter()
            .map(|it| (&it.registry, &it.build_indexes))
            .enumerate();
        let sources = sources.map(|(at, it)| (format!("sources[{at}]"), it));
        for (key, (registry, build_indexes)) in remotes.chain(sources) {
            if let Some(registry) = registry {
                let checked = backends::check::registry(registry);
                self.of(checked.map_err(|wrong| wrong.under(&format!("{key}.registry"))));
            }
            for (index, url) in build_indexes.iter().enumerate() {
                if url.parse().is_ok_and(|url: BaseUrl| own.contains(&url)) {
                    let what = format!("{url} is a build-index of this cluster itself");
                    self.add(format!("{key}.build_indexes[{index}]"), what);
                }
            }
        }
    }
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
mod tests;
