//! A whole cluster on loopback, in one process: the very services that the binaries run, with
//! mutual TLS between them from an authority of their own.

mod configs;
mod files;
mod ports;

use std::net::SocketAddr;
use std::path::PathBuf;

use kraken_daemon::agent::AgentService;
use kraken_daemon::build_index::BuildIndexService;
use kraken_daemon::origin::OriginService;
use kraken_daemon::process::Service as _;
use kraken_daemon::proxy::ProxyService;
use kraken_daemon::tracker::TrackerService;

use self::configs::Configs;
use crate::Failure;
use crate::directory::{Directory, Process};

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many agents.
    pub agents: u16,
    /// How many origins.
    pub origins: u16,
    /// Where everything is kept.
    pub dir: PathBuf,
    /// The first of the ports; free ones when there is none.
    pub base_port: Option<u16>,
}

impl ClusterOptions {
    /// Refuses what no cluster can be. Touches nothing.
    ///
    /// # Errors
    /// [`Failure::Argument`]: too many, or none, of something.
    pub fn check(&self) -> Result<(), Failure> {
        for (what, count) in [("agents", self.agents), ("origins", self.origins)] {
            if count == 0 || count > MOST {
                return Err(Failure::Argument(format!(
                    "--{what}: between 1 and {MOST}, not {count}"
                )));
            }
        }
        self.base_port
            .map_or(Ok(()), |base| ports::check(base, self.origins))
    }
}

/// The most agents and origins on one machine.
pub const MOST: u16 = 100;

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    /// The agents, `agent-1` first.
    pub agents: Vec<AgentService>,
    /// The origins, `origin-1` first.
    pub origins: Vec<OriginService>,
    /// The tracker.
    pub tracker: TrackerService,
    /// The build-index.
    pub build_index: BuildIndexService,
    /// The proxy.
    pub proxy: ProxyService,
}

impl Cluster {
    /// Starts everything, on data that an earlier start may have left.
    ///
    /// # Errors
    /// [`Failure`] says what to mend.
    pub async fn start(options: &ClusterOptions) -> Result<Self, Failure> {
        options.check()?;
        let configs = Configs::prepare(options)?;
        let (mut origins, mut agents) = (Vec::new(), Vec::new());
        for number in 1..=options.origins {
            origins.push(kraken_daemon::origin::start(configs.origin(number)?).await?);
        }
        let tracker = kraken_daemon::tracker::start(configs.tracker()?).await?;
        let build_index = kraken_daemon::build_index::start(configs.build_index()?).await?;
        let proxy = kraken_daemon::proxy::start(configs.proxy()?).await?;
        for number in 1..=options.agents {
            agents.push(kraken_daemon::agent::start(configs.agent(number)?).await?);
        }
        let cluster = Self {
            agents,
            origins,
            tracker,
            build_index,
            proxy,
        };
        cluster.directory().write(&options.dir)?;
        Ok(cluster)
    }

    /// Where each process is.
    fn directory(&self) -> Directory {
        let one = |role: &str, number: usize, url: String| Process {
            name: format!("{role}-{number}"),
            role: role.to_string(),
            url,
        };
        let https = |addr: SocketAddr| format!("https://{addr}");
        let http = |addr: SocketAddr| format!("http://{addr}");
        let origins = self.origins.iter().zip(1..);
        let agents = self.agents.iter().zip(1..);
        let mut processes = vec![
            one("tracker", 1, https(self.tracker.addr)),
            one("build-index", 1, https(self.build_index.addr)),
            one("proxy", 1, http(self.proxy.addr)),
        ];
        processes.extend(origins.map(|(it, number)| one("origin", number, https(it.addr))));
        processes.extend(agents.map(|(it, number)| one("agent", number, http(it.registry))));
        Directory { processes }
    }

    /// Bytes of pieces that all origins have sent.
    pub fn origin_bytes(&self) -> u64 {
        self.origins
            .iter()
            .map(|it| it.origin.metrics().bytes_sent())
            .sum()
    }

    /// Stops everything.
    pub async fn stop(self) {
        let agents = self.agents.into_iter().map(|agent| agent.stop());
        futures::future::join_all(agents).await;
        self.proxy.stop().await;
        self.build_index.stop().await;
        self.tracker.stop().await;
        let origins = self.origins.into_iter().map(|origin| origin.stop());
        futures::future::join_all(origins).await;
    }
}

/// The name by which containerd knows the cluster's registry.
pub const OWN_NAME: &str = "registry.example.test";
