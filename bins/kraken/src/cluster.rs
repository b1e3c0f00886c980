//! A whole cluster on loopback, in one process: the very services that the binaries run, with
//! mutual TLS between them from an authority of their own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use kraken_core::net::CertAuthority;
use kraken_daemon::agent::{AgentConfig, AgentService};
use kraken_daemon::backends::BackendConfig;
use kraken_daemon::build_index::{BuildIndexConfig, BuildIndexService};
use kraken_daemon::config::HostConfig;
use kraken_daemon::console::ConsoleConfig;
use kraken_daemon::origin::{OriginConfig, OriginService};
use kraken_daemon::process::Service as _;
use kraken_daemon::proxy::{ProxyConfig, ProxyService};
use kraken_daemon::tracker::{TrackerConfig, TrackerService};
use kraken_daemon::{OriginEntry, StartError, Tls};

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
        for (what, count) in [("agents", options.agents), ("origins", options.origins)] {
            if count == 0 || count > MOST {
                return Err(Failure::Argument(format!(
                    "--{what}: between 1 and {MOST}, not {count}"
                )));
            }
        }
        let ports = Ports::of(options)?;
        let files = Files::prepare(&options.dir)?;
        // For the commands that ask processes.
        files.tls("operator", "operator")?;
        let entries: Vec<_> = ports
            .origins
            .iter()
            .enumerate()
            .map(|(index, (http, _))| OriginEntry {
                name: format!("origin-{}", index + 1),
                url: format!("https://{http}"),
                weight: Default::default(),
                zone: None,
            })
            .collect();
        // Two copies of each blob, wherever there are two origins.
        let replicas = 2;
        let mut origins = Vec::new();
        for (entry, (listen, peer_listen)) in entries.iter().zip(&ports.origins) {
            let config = OriginConfig {
                name: entry.name.clone(),
                store: options.dir.join(&entry.name),
                store_limit: None,
                volumes: Vec::new(),
                eviction: Default::default(),
                scrub: Default::default(),
                backend: Some(BackendConfig::LocalDisk(options.dir.join("backend"))),
                backends: Vec::new(),
                peer_listen: *peer_listen,
                transport: Default::default(),
                quic_mtu: Default::default(),
                advertise: None,
                zone: None,
                listen: *listen,
                origins: entries.clone(),
                origins_file: None,
                origins_dns: None,
                replicas,
                heal: Default::default(),
                limits: Default::default(),
                log: None,
                log_format: Default::default(),
                tracing: None,
                tls: files.tls(&entry.name, "origin")?,
            };
            origins.push(kraken_daemon::origin::start(config).await?);
        }
        let tracker = kraken_daemon::tracker::start(TrackerConfig {
            listen: ports.tracker,
            origins: entries.clone(),
            origins_file: None,
            origins_dns: None,
            replicas,
            console: Some(ConsoleConfig {
                listen: ports.console,
                trackers: vec![format!("https://{}", ports.tracker)],
                build_indexes: vec![format!("https://{}", ports.build_index)],
                proxies: vec![format!("http://{}", ports.proxy)],
            }),
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: files.tls("tracker-1", "tracker")?,
        })
        .await?;
        let build_index = kraken_daemon::build_index::start(BuildIndexConfig {
            listen: ports.build_index,
            store: options.dir.join("build-index-1"),
            origins: entries.clone(),
            origins_file: None,
            origins_dns: None,
            replicas,
            name: None,
            cluster: kraken_daemon::build_index::default_cluster(),
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
            tls: files.tls("build-index-1", "build-index")?,
        })
        .await?;
        let build_indexes = vec![format!("https://{}", build_index.addr)];
        let proxy = kraken_daemon::proxy::start(ProxyConfig {
            listen: ports.proxy,
            origins: entries,
            origins_file: None,
            origins_dns: None,
            replicas,
            build_indexes: build_indexes.clone(),
            build_indexes_file: None,
            build_indexes_dns: None,
            access: None,
            client_tls: None,
            log: None,
            log_format: Default::default(),
            tracing: None,
            tls: files.tls("proxy-1", "proxy")?,
        })
        .await?;
        let mut agents = Vec::new();
        for (index, (registry_listen, peer_listen)) in ports.agents.iter().enumerate() {
            let name = format!("agent-{}", index + 1);
            let config = AgentConfig {
                name: Some(name.clone()),
                preload: None,
                store: options.dir.join(&name),
                store_limit: None,
                volumes: Vec::new(),
                eviction: Default::default(),
                memory: None,
                scrub: Default::default(),
                peer_listen: *peer_listen,
                transport: Default::default(),
                quic_mtu: Default::default(),
                advertise: None,
                zone: None,
                registry_listen: *registry_listen,
                trackers: vec![format!("https://{}", tracker.addr)],
                trackers_file: None,
                trackers_dns: None,
                build_indexes_file: None,
                build_indexes_dns: None,
                build_indexes: build_indexes.clone(),
                upstreams: Vec::new(),
                own_names: vec![HostConfig(OWN_NAME.parse().expect("a host"))],
                access: None,
                client_tls: None,
                docker_listen: None,
                limits: Default::default(),
                remember_peers: true,
                log: None,
                log_format: Default::default(),
                tracing: None,
                tls: files.tls(&name, "agent")?,
            };
            agents.push(kraken_daemon::agent::start(config).await?);
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

/// Where everything listens.
struct Ports {
    tracker: SocketAddr,
    build_index: SocketAddr,
    proxy: SocketAddr,
    console: SocketAddr,
    /// HTTP and peers.
    origins: Vec<(SocketAddr, SocketAddr)>,
    /// Registry and peers.
    agents: Vec<(SocketAddr, SocketAddr)>,
}

impl Ports {
    fn of(options: &ClusterOptions) -> Result<Self, Failure> {
        let (agents, origins) = (options.agents, options.origins);
        let Some(base) = options.base_port else {
            return Self::free(agents, origins);
        };
        let last = u32::from(base) + 300 + 2 * u32::from(origins.max(MOST));
        if base == 0 || last > u32::from(u16::MAX) {
            return Err(Failure::Argument(format!(
                "--base-port {base}: ports up to {last} are needed"
            )));
        }
        let pairs = |first: u16, count: u16| {
            (0..count)
                .map(|i| (loopback(first + 2 * i), loopback(first + 2 * i + 1)))
                .collect()
        };
        Ok(Self {
            tracker: loopback(base),
            build_index: loopback(base + 1),
            proxy: loopback(base + 2),
            console: loopback(base + 6),
            origins: pairs(base + 300, origins),
            agents: pairs(base + 10, agents),
        })
    }

    /// Ports that nobody has at this moment, for TCP and UDP. They lie below those that the system
    /// gives to outgoing connections, which would take them before they are used here. Processes
    /// that start side by side look in different places, and one process never looks twice.
    fn free(agents: u16, origins: u16) -> Result<Self, Failure> {
        static LOOKED_AT: AtomicU16 = AtomicU16::new(0);
        let first = 10_000 + 500 * u16::try_from(std::process::id() % 44).expect("small");
        let mut held = Vec::new();
        let mut next = || {
            for _ in 0..1000 {
                let addr = loopback(first + LOOKED_AT.fetch_add(1, Ordering::Relaxed) % 500);
                if let (Ok(tcp), Ok(udp)) = (TcpListener::bind(addr), UdpSocket::bind(addr)) {
                    held.push((tcp, udp));
                    return Ok(addr);
                }
            }
            Err(Failure::Argument(
                "no free ports between 10000 and 32000".into(),
            ))
        };
        let (tracker, build_index, proxy, console) = (next()?, next()?, next()?, next()?);
        let mut pairs = |count: u16| -> Result<Vec<_>, Failure> {
            (0..count).map(|_| Ok((next()?, next()?))).collect()
        };
        let (origins, agents) = (pairs(origins), pairs(agents));
        Ok(Self {
            tracker,
            build_index,
            proxy,
            console,
            origins: origins?,
            agents: agents?,
        })
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The directory's certificates.
struct Files {
    dir: PathBuf,
    authority: CertAuthority,
}

impl Files {
    /// Finds the authority of an earlier start, or makes one.
    fn prepare(dir: &Path) -> Result<Self, Failure> {
        let dir = dir.join("tls");
        std::fs::create_dir_all(&dir).map_err(Failure::io(format!("make {}", dir.display())))?;
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let authority = if cert.exists() && key.exists() {
            CertAuthority::from_pem(&read(&cert)?, &read(&key)?).map_err(StartError::from)?
        } else {
            let authority = CertAuthority::create().map_err(StartError::from)?;
            let (cert_pem, key_pem) = authority.to_pem();
            write(&key, &key_pem)?;
            write(&cert, &cert_pem)?;
            authority
        };
        Ok(Self { dir, authority })
    }

    /// The certificate of one process. It keeps it over restarts, and with it its identity.
    fn tls(&self, name: &str, role: &str) -> Result<Tls, Failure> {
        let path = |suffix: &str| self.dir.join(format!("{name}.{suffix}"));
        let tls = Tls::new(path("crt"), path("key"), self.dir.join("ca.crt"));
        if !tls.cert.exists() || !tls.key.exists() {
            let names = ["localhost", "127.0.0.1", "::1", name].map(str::to_string);
            let (cert, key) = self
                .authority
                .issue(role, &names)
                .map_err(StartError::from)?;
            write(&tls.key, &key)?;
            write(&tls.cert, &cert)?;
        }
        Ok(tls)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::io(format!("read {}", path.display())))
}

/// Writes a file that nobody else may read.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Failure::io(format!("write {}", path.display())))
}
