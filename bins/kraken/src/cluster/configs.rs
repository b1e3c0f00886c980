//! What each process of a cluster on loopback is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use kraken_daemon::OriginEntry;
use kraken_daemon::agent::{AgentConfig, RememberTags};
use kraken_daemon::backends::BackendConfig;
use kraken_daemon::build_index::{self, BuildIndexConfig};
use kraken_daemon::config::HostConfig;
use kraken_daemon::console::ConsoleConfig;
use kraken_daemon::origin::OriginConfig;
use kraken_daemon::proxy::ProxyConfig;
use kraken_daemon::tracker::TrackerConfig;

use super::files::Files;
use super::ports::Ports;
use super::{ClusterOptions, OWN_NAME};
use crate::Failure;

/// Copies of each blob, wherever there are two origins.
const REPLICAS: usize = 2;

/// The configurations of a cluster's processes, which are numbered from 1.
pub(super) struct Configs {
    dir: PathBuf,
    ports: Ports,
    files: Files,
    origins: Vec<OriginEntry>,
}

impl Configs {
    /// Finds ports, and makes the certificates that are not there.
    pub(super) fn prepare(options: &ClusterOptions) -> Result<Self, Failure> {
        let ports = Ports::of(options)?;
        let files = Files::prepare(&options.dir)?;
        // For the commands that ask processes.
        files.tls("operator", "operator")?;
        let entry = |((http, _), number): (&(SocketAddr, SocketAddr), usize)| OriginEntry {
            name: format!("origin-{number}"),
            url: format!("https://{http}"),
            weight: Default::default(),
            zone: None,
        };
        let origins = ports.origins.iter().zip(1..).map(entry).collect();
        Ok(Self {
            dir: options.dir.clone(),
            ports,
            files,
            origins,
        })
    }

    fn build_indexes(&self) -> Vec<String> {
        vec![format!("https://{}", self.ports.build_index)]
    }

    pub(super) fn origin(&self, number: u16) -> Result<OriginConfig, Failure> {
        let name = format!("origin-{number}");
        let (listen, peer_listen) = self.ports.origins[usize::from(number) - 1];
        Ok(OriginConfig {
            name: name.clone(),
            store: self.dir.join(&name),
            store_limit: None,
            volumes: Vec::new(),
            eviction: Default::default(),
            scrub: Default::default(),
            backend: Some(BackendConfig::LocalDisk(self.dir.join("backend"))),
            backends: Vec::new(),
            peer_listen,
            transport: Default::default(),
            quic_mtu: Default::default(),
            advertise: None,
            zone: None,
            listen,
            origins: self.origins.clone(),
            origins_file: None,
            origins_dns: None,
            replicas: REPLICAS,
            heal: Default::default(),
            limits: Default::default(),
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: self.files.tls(&name, "origin")?,
        })
    }

    pub(super) fn tracker(&self) -> Result<TrackerConfig, Failure> {
        Ok(TrackerConfig {
            listen: self.ports.tracker,
            origins: self.origins.clone(),
            origins_file: None,
            origins_dns: None,
            replicas: REPLICAS,
            console: Some(ConsoleConfig {
                listen: self.ports.console,
                trackers: vec![format!("https://{}", self.ports.tracker)],
                build_indexes: vec![format!("https://{}", self.ports.build_index)],
                proxies: vec![format!("http://{}", self.ports.proxy)],
            }),
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: self.files.tls("tracker-1", "tracker")?,
        })
    }

    pub(super) fn build_index(&self) -> Result<BuildIndexConfig, Failure> {
        Ok(BuildIndexConfig {
            listen: self.ports.build_index,
            store: self.dir.join("build-index-1"),
            origins: self.origins.clone(),
            origins_file: None,
            origins_dns: None,
            replicas: REPLICAS,
            name: None,
            cluster: build_index::default_cluster(),
            build_indexes: Vec::new(),
            tag_replicas: 1,
            remotes: Vec::new(),
            sources: Vec::new(),
            tags_backend: None,
            immutable_tags: Vec::new(),
            upstream_tags: Vec::new(),
            garbage: None,
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: self.files.tls("build-index-1", "build-index")?,
        })
    }

    pub(super) fn proxy(&self) -> Result<ProxyConfig, Failure> {
        Ok(ProxyConfig {
            listen: self.ports.proxy,
            origins: self.origins.clone(),
            origins_file: None,
            origins_dns: None,
            replicas: REPLICAS,
            build_indexes: self.build_indexes(),
            build_indexes_file: None,
            build_indexes_dns: None,
            access: None,
            client_tls: None,
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: self.files.tls("proxy-1", "proxy")?,
        })
    }

    pub(super) fn agent(&self, number: u16) -> Result<AgentConfig, Failure> {
        let name = format!("agent-{number}");
        let (registry_listen, peer_listen) = self.ports.agents[usize::from(number) - 1];
        Ok(AgentConfig {
            name: Some(name.clone()),
            preload: None,
            store: self.dir.join(&name),
            store_limit: None,
            volumes: Vec::new(),
            eviction: Default::default(),
            memory: None,
            scrub: Default::default(),
            peer_listen,
            transport: Default::default(),
            quic_mtu: Default::default(),
            advertise: None,
            zone: None,
            registry_listen,
            trackers: vec![format!("https://{}", self.ports.tracker)],
            trackers_file: None,
            trackers_dns: None,
            build_indexes_file: None,
            build_indexes_dns: None,
            build_indexes: self.build_indexes(),
            upstreams: Vec::new(),
            own_names: vec![HostConfig(OWN_NAME.parse().expect("a host"))],
            access: None,
            client_tls: None,
            docker_listen: None,
            limits: Default::default(),
            remember_peers: true,
            remember_tags: RememberTags::default(),
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: self.files.tls(&name, "agent")?,
        })
    }
}
