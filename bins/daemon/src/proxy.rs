//! The proxy as a process: a registry to push to, and to pull from without an agent.

use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::middleware;
use kraken_core::net::Role;
use kraken_core::net::http::{HttpClient, HttpServer, TracedFrom, traced, with_health};
use kraken_core::net::origin::OriginCluster;
use kraken_registry::access::Access;
use kraken_registry::preheat;
use kraken_registry::pull::{PullState, StaleTags};
use kraken_registry::push::{self, PushState};
use kraken_registry::tags::client::TagClient;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::access::{self, AccessConfig, ClientTls};
use crate::address::{self, Address};
use crate::check::ProcessConfig;
use crate::config::{self, OriginEntry, Tls};
use crate::dns::DnsName;
use crate::guard::{self, Guard};
use crate::log::{LogFilter, LogFormat};
use crate::members::{Origins, Urls};
use crate::metrics::{self, Every, with_metrics};
use crate::pages;
use crate::problems::Problems;
use crate::process::{Service, StartError};
use crate::profile::with_profile;
use crate::reload::Changed;
use crate::sockets;
use crate::traces::TracingConfig;

/// The configuration of a proxy.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Where clients push to: plain HTTP, unless there is `client_tls`.
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub listen: SocketAddr,
    /// All origins.
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
    /// Base URLs of the build-indexes.
    #[serde(default)]
    pub build_indexes: Vec<String>,
    /// A file with the same list, read again when it changes; instead of `build_indexes`.
    #[serde(default)]
    pub build_indexes_file: Option<PathBuf>,
    /// A name by which DNS says where the build-indexes are; instead of `build_indexes`.
    #[serde(default)]
    pub build_indexes_dns: Option<DnsName>,
    /// Who may pull, push and delete; whoever is on the same host, and nobody else, when absent.
    #[serde(default)]
    pub access: Option<AccessConfig>,
    /// TLS for clients; plain HTTP when absent.
    #[serde(default)]
    pub client_tls: Option<ClientTls>,
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
    /// This process's certificate, shown to origins and build-indexes.
    pub tls: Tls,
}

impl ProcessConfig for ProxyConfig {
    const ROLE: Role = Role::Proxy;
    const LIVE: &'static [&'static str] =
        &["access", "build_indexes", "log", "log_format", "origins"];

    fn log(&self) -> Option<&LogFilter> {
        self.log.as_ref()
    }

    fn log_format(&self) -> LogFormat {
        self.log_format
    }

    fn tracing(&self) -> Option<&TracingConfig> {
        self.tracing.as_ref()
    }

    fn check(&self, found: &mut Problems) {
        found.of_tls(&self.tls, Role::Proxy, None);
        let sources = (
            &self.origins[..],
            self.origins_file.as_ref(),
            self.origins_dns.as_ref(),
        );
        let origins = found.of_origins(sources, None);
        found.of_replicas("replicas", self.replicas, origins);
        found.of_urls(
            "build_indexes",
            (
                &self.build_indexes,
                self.build_indexes_file.as_ref(),
                self.build_indexes_dns.as_ref(),
            ),
        );
        found.of_access(self.access.as_ref(), self.client_tls.as_ref());
    }
}

/// Whether there is an origin to take blobs to.
fn answering(origins: &OriginCluster) -> Result<(), String> {
    let up = origins.up();
    let none = || "no origin answers: nothing can be pushed or pulled".into();
    (up > 0).then_some(()).ok_or_else(none)
}

/// A proxy that runs.
#[derive(Debug)]
pub struct ProxyService {
    /// Where it answers.
    pub addr: SocketAddr,
    origins: OriginCluster,
    tags: TagClient,
    access: Arc<Access>,
    server: HttpServer,
    shutdown: CancellationToken,
}

/// Starts a proxy.
///
/// # Errors
/// [`StartError`] says what to mend.
pub async fn start(config: ProxyConfig) -> Result<ProxyService, StartError> {
    let shutdown = CancellationToken::new();
    let identity = config.tls.identity_of(Role::Proxy, &shutdown)?;
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
    let indexes = Urls::of(
        "build_indexes",
        config.build_indexes,
        config.build_indexes_file,
        config.build_indexes_dns,
    )?;
    let tags = TagClient::new(
        http.calling(&[Role::BuildIndex])?.raw(),
        indexes.now().await?,
    );
    config::watch(&origins, &shutdown);
    indexes.follow_tags(&tags, &shutdown);
    listed.follow_with(&origins, &shutdown);
    let access = access::access(config.access.as_ref(), config.client_tls.as_ref())?;
    let preheating = preheat::router(origins.clone(), tags.clone());
    let stale = StaleTags::default();
    let pull = PullState::new(origins.clone(), tags.clone()).access(access.clone());
    let pull = pull.count_stale(stale.clone());
    let router = push::router(PushState::new(pull, origins.clone()));
    let own = move || ready(metrics::stale(&stale));
    let router = with_metrics(router, every.clone(), own);
    let guard = Guard {
        access: access.clone(),
        is_tls: config.client_tls.is_some(),
    };
    let guard =
        middleware::from_fn(move |request, next| guard::refuse(guard.clone(), request, next));
    let router = router
        .merge(with_profile(preheating).layer(guard))
        .layer(middleware::from_fn(pages::refuse));
    let asked = origins.clone();
    let router = with_health(router, move || ready(answering(&asked)));
    let router = every
        .requests
        .counted(traced(router, TracedFrom::Strangers));
    let server = access::serve(
        sockets::listen(config.listen)?,
        router,
        config.client_tls.as_ref(),
        shutdown.clone(),
    )?;
    Ok(ProxyService {
        origins,
        tags,
        access,
        addr: server.local_addr(),
        server,
        shutdown,
    })
}

impl Service for ProxyService {
    type Config = ProxyConfig;

    fn reload(&self, config: ProxyConfig, changed: &Changed) -> Result<(), StartError> {
        let access = changed.then("access", || {
            access::access(config.access.as_ref(), config.client_tls.as_ref())
        })?;
        let origins = changed.then("origins", || {
            Origins::of(
                &config.origins,
                config.origins_file.as_ref(),
                config.origins_dns.as_ref(),
            )
            .map(Origins::listed)
        })?;
        let indexes = changed.then("build_indexes", || {
            let (file, dns) = (config.build_indexes_file, config.build_indexes_dns);
            let key = "build_indexes";
            Urls::of(key, config.build_indexes, file, dns)?.listed(key)
        })?;
        if let Some(urls) = indexes.flatten() {
            self.tags.set(urls);
        }
        if let Some(origins) = origins.flatten() {
            self.origins.set(origins);
        }
        if let Some(access) = access {
            self.access.replace(access);
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
