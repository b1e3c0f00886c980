//! The tracker as a process.

use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::routing::get;
use futures::future::OptionFuture;
use kraken_core::Tracker;
use kraken_core::net::Role;
use kraken_core::net::announce::router;
use kraken_core::net::http::{
    HttpClient, HttpServer, TracedFrom, admit, serve_on, traced, with_health,
};
use kraken_core::net::origin::OriginCluster;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Address};
use crate::check::ProcessConfig;
use crate::config::{self, OriginEntry, Tls};
use crate::console::{self, ConsoleConfig, Shown};
use crate::dns::DnsName;
use crate::log::{LogFilter, LogFormat};
use crate::members::Origins;
use crate::metrics::{Every, Family, with_metrics};
use crate::problems::Problems;
use crate::process::{Service, StartError};
use crate::profile::with_profile;
use crate::reload::Changed;
use crate::sockets;
use crate::traces::TracingConfig;

/// The configuration of a tracker.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrackerConfig {
    /// Where it answers (mutual TLS).
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
    /// The pages that show the cluster in a browser; none when absent.
    #[serde(default)]
    pub console: Option<ConsoleConfig>,
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

impl ProcessConfig for TrackerConfig {
    const ROLE: Role = Role::Tracker;
    const LIVE: &'static [&'static str] = &["log", "log_format", "origins"];

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
        found.of_tls(&self.tls, Role::Tracker, None);
        let sources = (
            &self.origins[..],
            self.origins_file.as_ref(),
            self.origins_dns.as_ref(),
        );
        let origins = found.of_origins(sources, None);
        found.of_replicas("replicas", self.replicas, origins);
        if let Some(console) = &self.console {
            found.of(console.check().map_err(|wrong| wrong.under("console")));
            found.of_listening(&[
                ("listen", Some(self.listen)),
                ("console.listen", Some(console.listen)),
            ]);
        }
    }
}

/// A tracker that runs.
#[derive(Debug)]
pub struct TrackerService {
    /// The tracker itself.
    pub tracker: Tracker,
    /// Where it answers.
    pub addr: SocketAddr,
    /// Where its console answers.
    pub console: Option<SocketAddr>,
    server: HttpServer,
    pages: Option<HttpServer>,
    shutdown: CancellationToken,
}

/// Starts a tracker.
///
/// # Errors
/// [`StartError`] says what to mend.
pub async fn start(config: TrackerConfig) -> Result<TrackerService, StartError> {
    let shutdown = CancellationToken::new();
    let identity = config.tls.identity_of(Role::Tracker, &shutdown)?;
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
    let tracker = Tracker::builder(origins.clone())
        .takes_reports(config.console.is_some())
        .spawn();
    let (counted, live) = (tracker.clone(), tracker.clone());
    let seen = tracker.clone();
    let own = move || ready(metrics(&counted));
    let router = with_metrics(router(Arc::new(tracker.clone())), every.clone(), own)
        .route("/x/origins", get(async move || Json(seen.origins())));
    let router = with_health(router, move || {
        let origins = live.live_origins();
        async move {
            (origins > 0)
                .then_some(())
                .ok_or_else(|| "no origin answers".to_string())
        }
    });
    let following = tracker.clone();
    listed.follow(&shutdown, move |members| {
        following.set_origins(members);
        Ok(())
    });
    let shown = tracker.look().map(|look| Shown {
        look,
        origins,
        http,
    });
    let pages = config.console.zip(shown);
    let pages = pages.map(|(config, shown)| console::start(config, shown, shutdown.clone()));
    let pages = pages.transpose()?;
    let router = with_profile(router);
    let server = serve_on(
        sockets::listen(config.listen)?,
        every
            .requests
            .counted(admit(traced(router, TracedFrom::Members), Role::Tracker)),
        Some(&identity),
        shutdown.clone(),
    )?;
    Ok(TrackerService {
        tracker,
        addr: server.local_addr(),
        console: pages.as_ref().map(HttpServer::local_addr),
        server,
        pages,
        shutdown,
    })
}

fn metrics(tracker: &Tracker) -> String {
    let stats = tracker.stats();
    let families = [
        Family::gauge("kraken_tracker_swarms", "Blobs that it knows of.").sample(&[], stats.swarms),
        Family::gauge("kraken_tracker_peers", "Members of swarms.").sample(&[], stats.peers),
        Family::counter("kraken_tracker_announces", "Announces of hosts.")
            .sample(&[], stats.announces),
        Family::gauge("kraken_tracker_live_origins", "Origins that answer.")
            .sample(&[], tracker.live_origins()),
    ];
    families.map(Family::text).concat()
}

impl Service for TrackerService {
    type Config = TrackerConfig;

    fn reload(&self, config: TrackerConfig, changed: &Changed) -> Result<(), StartError> {
        let origins = changed.then("origins", || {
            Origins::of(
                &config.origins,
                config.origins_file.as_ref(),
                config.origins_dns.as_ref(),
            )
            .map(Origins::listed)
        })?;
        if let Some(origins) = origins.flatten() {
            self.tracker.set_origins(origins);
        }
        Ok(())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let pages = OptionFuture::from(self.pages.map(HttpServer::stopped));
        let (served, pages) = tokio::join!(self.server.stopped(), pages);
        for error in [served.err(), pages.and_then(Result::err)]
            .into_iter()
            .flatten()
        {
            tracing::warn!(%error, "the server did not end well");
        }
        self.tracker.shutdown().await;
    }
}
