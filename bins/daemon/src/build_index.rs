//! The build-index as a process: tags, durable on its disk.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kraken_core::net::Role;
use kraken_core::net::http::{
    BaseUrl, HttpClient, HttpServer, TracedFrom, admit, serve_on, traced, with_health,
};
use kraken_core::net::origin::OriginCluster;
use kraken_registry::garbage::Collector;
use kraken_registry::replicate::{self, OwnCluster, Replicator, Rules};
use kraken_registry::tags::members::IndexMember;
use kraken_registry::tags::ring::TagRing;
use kraken_registry::tags::server::{TagPolicy, router};
use kraken_registry::tags::store::TagStore;
use kraken_registry::tags::upstream::{Freshness, UpstreamRule};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Address};
use crate::check::ProcessConfig;
use crate::config::{self, OriginEntry, Tls};
use crate::dns::DnsName;
use crate::garbage::{GarbageConfig, with_garbage};
use crate::log::{LogFilter, LogFormat};
use crate::members::{Origins, member_url};
use crate::metrics::{Every, with_metrics};
use crate::pattern::Pattern;
use crate::problems::Problems;
use crate::process::{Service, StartError};
use crate::profile::with_profile;
use crate::reload::Changed;
use crate::remotes::{self, RemoteConfig, SourceConfig};
use crate::sockets;
use crate::tags_backend::{self, TagsBackendConfig};
use crate::traces::TracingConfig;
use crate::units;

/// The configuration of a build-index.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildIndexConfig {
    /// Where it answers (mutual TLS).
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub listen: SocketAddr,
    /// The directory of its tags.
    pub store: PathBuf,
    /// All origins: a tag is taken only when its image is there.
    #[serde(default)]
    pub origins: Vec<OriginEntry>,
    /// A file with the same list, read again when it changes; instead of `origins`.
    #[serde(default)]
    pub origins_file: Option<PathBuf>,
    /// A name by which DNS says who the origins are; instead of `origins`.
    #[serde(default)]
    pub origins_dns: Option<DnsName>,
    /// How many origins own each blob.
    #[serde(default = "config::default_replicas")]
    pub replicas: usize,
    /// This build-index's name among the others; needed when these are listed.
    #[serde(default)]
    #[schemars(default = "usual_name", extend("x-conditional" = true))]
    pub name: Option<String>,
    /// The name of this cluster, which is part of each version of a tag.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// All build-indexes of the cluster, this one among them; none when it is alone.
    #[serde(default)]
    pub build_indexes: Vec<IndexEntry>,
    /// How many build-indexes own each tag; most of these must be there to read or change it.
    #[serde(default = "config::default_replicas")]
    pub tag_replicas: usize,
    /// Tags that never change once they are set: regular expressions of which one matches all of
    /// `repository:tag`.
    #[serde(default)]
    pub immutable_tags: Vec<Pattern>,
    /// Repositories whose tags are those of other registries, and how fresh they are.
    #[serde(default)]
    pub upstream_tags: Vec<UpstreamTags>,
    /// Clusters and registries that images go to.
    #[serde(default)]
    pub remotes: Vec<RemoteConfig>,
    /// Clusters and registries that images come from, because this one fetches them.
    #[serde(default)]
    pub sources: Vec<SourceConfig>,
    /// Where tags are kept besides the disks of the build-indexes; nowhere when absent.
    #[serde(default)]
    pub tags_backend: Option<TagsBackendConfig>,
    /// When blobs that nothing refers to any more are removed; only when somebody asks for it when
    /// absent.
    #[serde(default)]
    pub garbage: Option<GarbageConfig>,
    /// How much is logged, such as `info` or `info,kraken_core=debug`. The variable `RUST_LOG` has the last
    /// word.
    #[serde(default)]
    #[schemars(default = "LogFilter::usual")]
    pub log: Option<LogFilter>,
    /// How a line of the log is written: `text`, or `json`, an object in each line.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Where traces of pulls and pushes go, and of how many; nowhere when absent.
    #[serde(default)]
    pub tracing: Option<TracingConfig>,
    /// This process's certificate.
    pub tls: Tls,
}

impl ProcessConfig for BuildIndexConfig {
    const ROLE: Role = Role::BuildIndex;
    const LIVE: &'static [&'static str] = &[
        "immutable_tags",
        "log",
        "log_format",
        "origins",
        "remotes",
        "sources",
        "upstream_tags",
    ];

    fn log(&self) -> Option<&LogFilter> {
        self.log.as_ref()
    }

    fn log_format(&self) -> LogFormat {
        self.log_format
    }

    fn tracing(&self) -> Option<&TracingConfig> {
        self.tracing.as_ref()
    }

    fn instance(&self) -> Option<String> {
        self.name.clone()
    }

    fn check(&self, found: &mut Problems) {
        found.of_tls(&self.tls, Role::BuildIndex, None);
        let sources = (
            &self.origins[..],
            self.origins_file.as_ref(),
            self.origins_dns.as_ref(),
        );
        let origins = found.of_origins(sources, None);
        found.of_replicas("replicas", self.replicas, origins);
        found.of_dir("store", &self.store);
        self.check_members(found);
        self.check_tags(found);
        found.of(self.rules(&self.cluster));
        let own = self
            .build_indexes
            .iter()
            .filter_map(|it| it.url.parse().ok());
        let own: Vec<BaseUrl> = own.collect();
        found.of_registries((&self.remotes, &self.sources), &own);
        if let Some(backend) = &self.tags_backend {
            found.of(backend.check().map_err(|wrong| wrong.under("tags_backend")));
        }
        if let Some(garbage) = self.garbage {
            found.at("garbage.grace", garbage.options().check());
        }
    }
}

/// Whose tags come from another registry: that which the origins read the namespace's blobs from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTags {
    /// A regular expression that matches anywhere in the repository, such as `^docker\.io/`.
    pub repositories: Pattern,
    /// How old an answer may be.
    #[serde(default)]
    pub fresh: FreshnessConfig,
}

/// How old an answer about another registry's tag may be: `always` it is asked, after a time such as
/// `5m`, or it is `pinned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "`always`, `pinned` or a time")]
pub struct FreshnessConfig(Freshness);

impl Default for FreshnessConfig {
    fn default() -> Self {
        Self(Freshness::Always)
    }
}

units::serialize_as_text!(FreshnessConfig, |fresh| match fresh.0 {
    Freshness::Always => "always".into(),
    Freshness::Pinned => "pinned".into(),
    Freshness::Within(age) => units::time_text(age),
});

impl TryFrom<String> for FreshnessConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(Self(match text.as_str() {
            "always" => Freshness::Always,
            "pinned" => Freshness::Pinned,
            text => {
                let wrong =
                    |_| format!("{text:?} is neither always, pinned, nor a time such as 5m");
                match units::time(text).map_err(wrong)? {
                    Duration::ZERO => return Err("no time at all is `always`: write that".into()),
                    time => Freshness::Within(time),
                }
            }
        }))
    }
}

/// One build-index among the others.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexEntry {
    /// Its name, which stays when it moves.
    pub name: String,
    /// Where the others reach it.
    pub url: String,
}

/// The name of a build-index that is alone and not given any.
const ALONE: &str = "build-index-1";

const fn usual_name() -> &'static str {
    ALONE
}

/// The name of a cluster that is not given any.
pub fn default_cluster() -> String {
    "default".into()
}

/// A build-index that runs.
#[derive(Debug)]
pub struct BuildIndexService {
    /// Where it answers.
    pub addr: SocketAddr,
    cluster: String,
    origins: OriginCluster,
    policy: TagPolicy,
    replicator: Replicator,
    /// How other clusters are reached.
    abroad: HttpClient,
    server: HttpServer,
    shutdown: CancellationToken,
}

/// Starts a build-index.
///
/// # Errors
/// [`StartError`] says what to mend.
pub async fn start(config: BuildIndexConfig) -> Result<BuildIndexService, StartError> {
    let shutdown = CancellationToken::new();
    let identity = config.tls.identity_of(Role::BuildIndex, &shutdown)?;
    let every = Every::of(&identity);
    let http = HttpClient::new(Some(&identity))?;
    let listed = Origins::of(
        &config.origins,
        config.origins_file.as_ref(),
        config.origins_dns.as_ref(),
    )?;
    let origins = OriginCluster::new(
        listed.now(None).await?,
        http.calling(&[Role::Origin])?,
        config.replicas,
    );
    config::make_dir(&config.store)?;
    config::watch(&origins, &shutdown);
    listed.follow_with(&origins, &shutdown);
    let mut tags = ring(&config, &http.calling(&[Role::BuildIndex])?)?;
    if let Some(backend) = &config.tags_backend {
        let made = backend.make();
        tags = tags.with_backend(made.map_err(|wrong| wrong.under("tags_backend"))?);
    }
    let policy = policy(&config).map_err(|error| Problems::one("immutable_tags", error))?;
    // Other clusters are their build-indexes and origins, whoever else has a certificate that fits.
    let abroad = http.calling(&[Role::BuildIndex, Role::Origin])?;
    let own = OwnCluster {
        ring: tags.clone(),
        origins: origins.clone(),
        replicas: config.replicas,
        policy: policy.clone(),
    };
    let replicator = Replicator::new(own, config.rules(&config.cluster)?, &abroad);
    let sending = replicator.clone();
    let sending = async move { sending.run().await };
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(sending));
    let taking_part = tags.clone();
    let taking_part = async move { taking_part.take_part().await };
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(taking_part));
    let ready = tags.clone();
    if let Some(garbage) = config.garbage {
        let checked = garbage.options().check();
        checked.map_err(|error| Problems::one("garbage.grace", error))?;
    }
    let collector = Collector::new(tags.clone(), origins.clone());
    let replicating = replicate::server::router(replicator.clone());
    let (kept, sent) = (tags.clone(), replicator.clone());
    let own = move || {
        let (kept, sent) = (kept.clone(), sent.clone());
        async move { remotes::metrics(&sent).await + &tags_backend::metrics(&kept).await }
    };
    let router = router(tags, policy.clone(), origins.clone()).merge(replicating);
    let router = with_metrics(router, every.clone(), own);
    let (router, collecting) = with_garbage(router, collector, config.garbage);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(collecting));
    let router = with_profile(router);
    let router = with_health(router, move || {
        let ready = ready.clone();
        async move { ready.why_not_serving().await.map_or(Ok(()), Err) }
    });
    let server = serve_on(
        sockets::listen(config.listen)?,
        every
            .requests
            .counted(admit(traced(router, TracedFrom::Members), Role::BuildIndex)),
        Some(&identity),
        shutdown.clone(),
    )?;
    Ok(BuildIndexService {
        addr: server.local_addr(),
        cluster: config.cluster,
        origins,
        policy,
        replicator,
        abroad,
        server,
        shutdown,
    })
}

impl BuildIndexConfig {
    fn check_members(&self, found: &mut Problems) {
        let members = found.of(members(self));
        // With tags, the number stays what it was when they began, and who is not listed may be about to leave.
        let is_new = !self.tags().exists();
        let count = members.as_ref().filter(|_| is_new);
        let count = count.map(|(members, _)| members.len().max(1));
        found.of_replicas("tag_replicas", self.tag_replicas, count);
        if self.cluster.is_empty() || self.cluster.len() > 255 {
            found.add("cluster", "the name of a cluster has 1 to 255 bytes");
        }
        if let Some((members, name)) = members.filter(|_| is_new)
            && !members.is_empty()
            && members.iter().all(|member| member.name != name)
        {
            let names: Vec<_> = members.iter().map(|it| it.name.as_str()).collect();
            let names = names.join(", ");
            found.add(
                "name",
                format!("{name} is none of the build_indexes, which are {names}"),
            );
        }
    }

    fn check_tags(&self, found: &mut Problems) {
        found.at("immutable_tags", policy(self));
        let patterns = self.immutable_tags.iter().enumerate();
        found.twice(patterns.map(|(at, it)| (format!("immutable_tags[{at}]"), it.as_str().into())));
        let key = |at: usize| format!("upstream_tags[{at}].repositories");
        let patterns = self
            .upstream_tags
            .iter()
            .map(|it| &it.repositories)
            .enumerate();
        found.twice(
            patterns
                .clone()
                .map(|(at, it)| (key(at), it.as_str().into())),
        );
        let mut all = self.upstream_tags.iter();
        let all = all.position(|it| it.repositories.is_everything());
        for (at, _) in patterns.filter(|(at, _)| all.is_some_and(|all| all < *at)) {
            found.add(
                key(at),
                "never used, as one before it matches everything: put that one last",
            );
        }
    }

    /// The file of its tags.
    fn tags(&self) -> PathBuf {
        self.store.join("tags.redb")
    }

    /// Where images go, and where they come from.
    fn rules(&self, cluster: &str) -> Result<Rules, Problems> {
        remotes::rules((&self.remotes, &self.sources), cluster)
    }
}

/// What is asked of tags beside a digest.
fn policy(config: &BuildIndexConfig) -> Result<TagPolicy, String> {
    let tags = config.immutable_tags.iter();
    let tags: Vec<_> = tags.map(|it| it.as_str().to_owned()).collect();
    let policy = TagPolicy::new(&tags).map_err(|error| error.to_string())?;
    let upstreams = config.upstream_tags.iter().map(|it| UpstreamRule {
        repositories: it.repositories.regex(),
        fresh: it.fresh.0,
    });
    Ok(policy.with_upstreams(upstreams.collect()))
}

/// The build-indexes as they are listed, and which of them this one is.
fn members(config: &BuildIndexConfig) -> Result<(Vec<IndexMember>, &str), Problems> {
    let mut found = Problems::default();
    let (mut members, mut urls) = (Vec::new(), Vec::new());
    for (index, entry) in config.build_indexes.iter().enumerate() {
        let key = format!("build_indexes[{index}].url");
        if let Some(url) = found.at(&key, member_url(&entry.url)) {
            urls.push((key, url.to_string()));
            members.push(IndexMember {
                name: entry.name.clone(),
                url: url.to_string(),
            });
        }
        if entry.name.is_empty() {
            found.add(
                format!("build_indexes[{index}].name"),
                "a name is expected here",
            );
        }
    }
    let names = config
        .build_indexes
        .iter()
        .map(|it| it.name.clone())
        .enumerate();
    found.twice(names.map(|(index, name)| (format!("build_indexes[{index}].name"), name)));
    found.twice(urls);
    let name = match &config.name {
        Some(name) if name.is_empty() => {
            found.add("name", "a name is expected here, and it is empty");
            ALONE
        }
        Some(name) => name,
        None if members.is_empty() => ALONE,
        None => {
            let what = "say which of the build_indexes this one is";
            found.missing("name", "build_indexes", what);
            ALONE
        }
    };
    found.done((members, name))
}

/// The build-indexes as this one sees them.
fn ring(config: &BuildIndexConfig, http: &HttpClient) -> Result<TagRing, StartError> {
    let store = TagStore::open(config.tags())?;
    let (members, name) = members(config)?;
    let who = (config.cluster.as_str(), name);
    TagRing::new(store, who, &members, config.tag_replicas, http.raw())
        .map_err(|error| StartError::Config(format!("build_indexes: {error}")))
}

impl Service for BuildIndexService {
    type Config = BuildIndexConfig;

    fn reload(&self, config: BuildIndexConfig, changed: &Changed) -> Result<(), StartError> {
        let origins = changed.then("origins", || {
            Origins::of(
                &config.origins,
                config.origins_file.as_ref(),
                config.origins_dns.as_ref(),
            )
            .map(Origins::listed)
        })?;
        let is_other = changed.has("remotes") || changed.has("sources");
        let rules = is_other.then(|| config.rules(&self.cluster)).transpose()?;
        let asked = policy(&config).map_err(|error| Problems::one("immutable_tags", error))?;
        if let Some(origins) = origins.flatten() {
            self.origins.set(origins);
        }
        if changed.has("immutable_tags") || changed.has("upstream_tags") {
            self.policy.replace(&asked);
        }
        if let Some(rules) = rules {
            self.replicator.replace(rules, &self.abroad);
        }
        Ok(())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        if let Err(error) = self.server.stopped().await {
            tracing::warn!(%error, "the server did not end well");
        }
    }
}
