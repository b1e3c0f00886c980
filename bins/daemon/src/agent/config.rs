//! The configuration of an agent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kraken_core::Zone;
use kraken_core::net::Role;
use schemars::JsonSchema;
use serde::Deserialize;

use super::start::host_name;
use crate::access::{AccessConfig, ClientTls};
use crate::address::{self, Address};
use crate::check::ProcessConfig;
use crate::config::{HostConfig, QuicMtu, Tls, TransportConfig};
use crate::dns::DnsName;
use crate::limits::LimitsConfig;
use crate::log::{LogFilter, LogFormat};
use crate::preload::{PreloadConfig, Puller};
use crate::problems::Problems;
use crate::store::check::DiskKeys;
use crate::store::{EvictionConfig, Memory, ScrubRate, StoreLimit, VolumeConfig};
use crate::traces::TracingConfig;
use crate::units;

/// The configuration of an agent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// What the console calls this host; its host name when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Where blobs are kept.
    pub store: PathBuf,
    /// How much of the disk they may take: bytes, or a part of the volume. No limit when absent.
    #[serde(default)]
    pub store_limit: Option<StoreLimit>,
    /// Directories for the blobs, each on a disk of its own, instead of `store`, which keeps the rest.
    #[serde(default)]
    pub volumes: Vec<VolumeConfig>,
    /// When blobs go, and which.
    #[serde(default)]
    pub eviction: EvictionConfig,
    /// Memory in front of the disks, for hosts whose disks are slower than their networks: what comes is
    /// there when it is in memory, and written behind. None when absent.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// How fast the blobs on disk are read back, one after the other, to find what rots: bytes per
    /// second, or `off`.
    #[serde(default)]
    pub scrub: ScrubRate,
    /// Where peers connect to, over UDP and TCP.
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub peer_listen: SocketAddr,
    /// How this host dials its peers.
    #[serde(default)]
    pub transport: TransportConfig,
    /// The largest datagram of QUIC that is tried, in bytes of UDP payload: jumbo frames carry 8972. Smaller
    /// frames are found out.
    #[serde(default)]
    pub quic_mtu: QuicMtu,
    /// The address that peers are told; needed when `peer_listen` is `0.0.0.0` or `[::]`.
    #[serde(default, deserialize_with = "address::optional")]
    #[schemars(with = "Option<Address>")]
    pub advertise: Option<SocketAddr>,
    /// The rack or availability zone of this host, such as `rack-17`; left out on a flat network.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub zone: Option<Zone>,
    /// Where the local container runtime connects to: plain HTTP, to be kept on loopback, unless there is
    /// `client_tls`.
    #[serde(deserialize_with = "address::required")]
    #[schemars(with = "Address")]
    pub registry_listen: SocketAddr,
    /// Base URLs of the trackers.
    #[serde(default)]
    pub trackers: Vec<String>,
    /// A file with the same list, read again when it changes; instead of `trackers`.
    #[serde(default)]
    pub trackers_file: Option<PathBuf>,
    /// A name by which DNS says where the trackers are; instead of `trackers`. All hosts must use the
    /// same.
    #[serde(default)]
    pub trackers_dns: Option<DnsName>,
    /// Base URLs of the build-indexes.
    #[serde(default)]
    pub build_indexes: Vec<String>,
    /// A file with the same list, read again when it changes; instead of `build_indexes`.
    #[serde(default)]
    pub build_indexes_file: Option<PathBuf>,
    /// A name by which DNS says where the build-indexes are; instead of `build_indexes`.
    #[serde(default)]
    pub build_indexes_dns: Option<DnsName>,
    /// Other registries that this agent mirrors, such as `docker.io`: containerd names them by `?ns=`. Their
    /// images are kept as `docker.io/library/busybox`, and their blobs come by the origins' backends.
    #[serde(default)]
    pub upstreams: Vec<HostConfig>,
    /// The names of this cluster's own registry, as containerd names it by `?ns=`: its images are kept as
    /// they are pushed. One that is named neither here nor in `upstreams` is not mirrored.
    #[serde(default)]
    pub own_names: Vec<HostConfig>,
    /// Where dockerd connects to, whose requests to a mirror name no registry: all are for `docker.io`. Plain
    /// HTTP; nowhere when absent.
    #[serde(default, deserialize_with = "address::optional")]
    #[schemars(with = "Option<Address>")]
    pub docker_listen: Option<SocketAddr>,
    /// Who may pull; whoever is on the same host, and nobody else, when absent.
    #[serde(default)]
    pub access: Option<AccessConfig>,
    /// TLS for clients at `registry_listen`; plain HTTP when absent.
    #[serde(default)]
    pub client_tls: Option<ClientTls>,
    /// Into which container runtime of this host images are preloaded; into none when absent.
    #[serde(default)]
    pub preload: Option<PreloadConfig>,
    /// How much of the network to take for peers.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Whether to keep the peers that were met over restarts, in `peers.json` in the store.
    #[serde(default = "remembers")]
    pub remember_peers: bool,
    /// How long a tag that this host was told is told again while no build-index answers, as it was then: a time
    /// such as `1d`, or `off`. Kept over restarts, in `tags.json` in the store.
    #[serde(default)]
    pub remember_tags: RememberTags,
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
    /// This host's certificate.
    pub tls: Tls,
}

impl ProcessConfig for AgentConfig {
    const ROLE: Role = Role::Agent;
    const LIVE: &'static [&'static str] = &[
        "access",
        "build_indexes",
        "limits",
        "log",
        "log_format",
        "trackers",
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
        self.name.clone().or_else(|| Some(host_name()))
    }

    fn check(&self, found: &mut Problems) {
        found.of_tls(&self.tls, Role::Agent, self.zone.as_ref());
        found.of_urls(
            "trackers",
            (
                &self.trackers,
                self.trackers_file.as_ref(),
                self.trackers_dns.as_ref(),
            ),
        );
        found.of_urls(
            "build_indexes",
            (
                &self.build_indexes,
                self.build_indexes_file.as_ref(),
                self.build_indexes_dns.as_ref(),
            ),
        );
        found.of_listening(&[
            ("peer_listen", Some(self.peer_listen)),
            ("registry_listen", Some(self.registry_listen)),
            ("docker_listen", self.docker_listen),
        ]);
        found.of_advertise(self.peer_listen, self.advertise);
        found.of_disks(DiskKeys {
            store: &self.store,
            blobs: &self.store,
            volumes: &self.volumes,
            limit: self.store_limit,
            eviction: &self.eviction,
        });
        found.of_access(self.access.as_ref(), self.client_tls.as_ref());
        if self.name.as_deref() == Some("") {
            found.add(
                "name",
                "a name is expected here: leave this out for the name of the host",
            );
        }
        self.check_mirror(found);
    }
}

impl AgentConfig {
    /// Whose mirror it is, and who preloads from it.
    fn check_mirror(&self, found: &mut Problems) {
        let hosts = |key: &str, hosts: &[HostConfig]| {
            let hosts = hosts.iter().enumerate();
            let hosts = hosts.map(|(at, it)| (format!("{key}[{at}]"), it.0.to_string()));
            hosts.collect::<Vec<_>>()
        };
        let all = [
            hosts("upstreams", &self.upstreams),
            hosts("own_names", &self.own_names),
        ];
        // One that is both would be taken for an upstream.
        found.twice(all.concat());
        let Some(preload) = &self.preload else { return };
        found.of(preload.check().map_err(|wrong| wrong.under("preload")));
        // By its path: a name is looked for when it is run.
        let program = preload.program.as_deref();
        let program = program.filter(|it| it.components().count() > 1);
        if let Some(program) = program.filter(|it| !it.is_file()) {
            found.add(
                "preload.program",
                format!("there is no program {}", program.display()),
            );
        }
        let registry = preload.registry.as_ref().map(|it| it.0.to_string());
        let is_known = |name: &String| all.iter().flatten().any(|(_, known)| known == name);
        if preload.runtime == Puller::Containerd
            && let Some(name) = registry.filter(|name| !is_known(name))
        {
            let what = format!(
                "{name} is neither among own_names nor upstreams, so the agent would not answer for it: add it there"
            );
            found.add("preload.registry", what);
        }
    }
}

const fn remembers() -> bool {
    true
}

/// How long tags are told again: `1d`, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "time or `off`", extend("examples" = ["1d", "off"]))]
pub struct RememberTags(pub(super) Option<Duration>);

impl Default for RememberTags {
    /// A day: most outages are over by then, and most rollouts later than that move their tags on.
    fn default() -> Self {
        Self(Some(Duration::from_secs(24 * 3600)))
    }
}

units::serialize_as_text!(RememberTags, |keep| match keep.0 {
    None => "off".into(),
    Some(time) => units::time_text(time),
});

impl TryFrom<String> for RememberTags {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (&*text, units::time(&text)) {
            ("off", _) => Ok(Self(None)),
            (_, Ok(time)) if (60..=30 * 24 * 3600).contains(&time.as_secs()) => {
                Ok(Self(Some(time)))
            }
            _ => Err(format!(
                "a time of 1m to 30d such as 1d, or off, is expected, not {text}"
            )),
        }
    }
}
