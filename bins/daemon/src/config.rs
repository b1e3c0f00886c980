//! Configuration files: YAML, every key checked.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use kraken_core::net::http::{BaseUrl, HttpClient};
use kraken_core::net::origin::OriginCluster;
use kraken_core::net::{Dual, Identity, NetError, PathChoice, QuicOptions};
use kraken_core::origin::RingMember;
use kraken_core::proto::cache::ledger::Ceiling;
use kraken_core::storage::FsStore;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::process::StartError;

/// The certificate, the key and the cluster's authority: paths of PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// This process's certificate, with the chain behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the cluster's authority.
    pub ca: PathBuf,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing or holds something else.
    pub fn identity(&self) -> Result<Identity, StartError> {
        Ok(Identity::from_files(&self.cert, &self.key, &self.ca)?)
    }
}

/// One origin, as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginEntry {
    /// The name that places its share of the blobs: keep it when the origin moves. Lower-case
    /// letters, digits and hyphens.
    pub name: String,
    /// Where it answers, such as `https://origin-1:7602`.
    pub url: String,
}

/// How many origins own each blob when nothing else is said.
pub const REPLICAS: usize = 3;

pub(crate) fn default_replicas() -> usize {
    REPLICAS
}

/// The origins as a ring.
///
/// # Errors
/// A name or a URL makes no sense, or there is none.
pub fn ring(origins: &[OriginEntry]) -> Result<Vec<RingMember>, StartError> {
    if origins.is_empty() {
        return Err(StartError::Config("origins: name at least one".into()));
    }
    let member = |origin: &OriginEntry| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if origin.name.is_empty() || !origin.name.chars().all(fits) {
            let name = &origin.name;
            return Err(StartError::Config(format!(
                "origins: the name {name:?} may hold lower-case letters, digits and hyphens only"
            )));
        }
        let url: BaseUrl = origin
            .url
            .parse()
            .map_err(|error| StartError::Config(format!("origins: {error}")))?;
        Ok(RingMember {
            name: origin.name.clone(),
            url,
        })
    };
    origins.iter().map(member).collect()
}

/// A client of the origins.
pub(crate) fn origin_cluster(
    origins: &[OriginEntry],
    replicas: usize,
    http: &HttpClient,
) -> Result<OriginCluster, StartError> {
    let members = ring(origins)?
        .into_iter()
        .map(|member| (member.name, member.url));
    Ok(OriginCluster::new(members, http.clone(), replicas))
}

/// Reads a configuration file.
///
/// # Errors
/// [`ConfigError`] with the file, the line and what is wrong there.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    parse(&text).map_err(|what| ConfigError::Parse {
        path: path.to_path_buf(),
        what,
    })
}

pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // No lines of the file in the message, which is logged: a secret may be among them.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// Why a configuration file was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("the configuration {} is wrong: {what}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        what: String,
    },
}

/// How peers are dialled; whatever a host chooses, it accepts both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportConfig {
    /// Over QUIC.
    #[default]
    Quic,
    /// Over TCP with TLS 1.3.
    Tcp,
    /// Over QUIC, and over TCP where QUIC does not get through.
    Auto,
}

impl From<TransportConfig> for PathChoice {
    fn from(config: TransportConfig) -> Self {
        match config {
            TransportConfig::Quic => Self::Quic,
            TransportConfig::Tcp => Self::Tcp,
            TransportConfig::Auto => Self::Auto,
        }
    }
}

/// The largest datagram of QUIC that is tried, in bytes of UDP payload; a path that carries less is
/// found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u16")]
pub struct QuicMtu(u16);

impl TryFrom<u16> for QuicMtu {
    type Error = String;

    fn try_from(bytes: u16) -> Result<Self, String> {
        let (least, most) = (QuicOptions::LEAST_MTU, QuicOptions::MOST_MTU);
        if (least..=most).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(format!(
                "quic_mtu is between {least} and {most}, not {bytes}"
            ))
        }
    }
}

impl Default for QuicMtu {
    fn default() -> Self {
        Self(QuicOptions::DEFAULT_MTU)
    }
}

/// How much of a disk to take: `200GiB`, a plain number of bytes, or `80%` of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum StoreLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the volume, between 1 and 100.
    Percent(u8),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    /// What YAML makes of `off`.
    Switch(bool),
    Number(i64),
    Fraction(f64),
    Text(String),
}

impl TryFrom<Written> for StoreLimit {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let wrong = |text: &str| {
            format!("store_limit is a size such as 200GiB, or 1% to 100% of the volume, not {text}")
        };
        let limit = match &written {
            Written::Switch(_) | Written::Fraction(_) => None,
            Written::Number(bytes) => u64::try_from(*bytes).ok().map(Self::Bytes),
            Written::Text(text) => match text.trim().strip_suffix('%') {
                Some(percent) => percent.trim_end().parse().ok().map(Self::Percent),
                None => text
                    .parse::<ByteSize>()
                    .ok()
                    .map(|it| Self::Bytes(it.as_u64())),
            },
        };
        match (limit, &written) {
            (Some(Self::Bytes(0)), _) => {
                Err("a store_limit of 0 keeps nothing: for no limit, leave the key out".into())
            }
            (Some(limit @ (Self::Bytes(_) | Self::Percent(1..=100))), _) => Ok(limit),
            (_, Written::Switch(on)) => Err(wrong(&on.to_string())),
            (_, Written::Fraction(number)) => Err(wrong(&number.to_string())),
            (_, Written::Number(number)) => Err(wrong(&number.to_string())),
            (_, Written::Text(text)) => Err(wrong(text)),
        }
    }
}

/// How fast blobs on disk are read back: `20MB`, a plain number of bytes per second, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct ScrubRate(Option<NonZeroU64>);

impl Default for ScrubRate {
    fn default() -> Self {
        Self(NonZeroU64::new(20_000_000))
    }
}

impl TryFrom<Written> for ScrubRate {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let text = match written {
            Written::Switch(false) => return Ok(Self(None)),
            Written::Text(text) if text == "off" => return Ok(Self(None)),
            Written::Switch(true) => "on".to_string(),
            Written::Fraction(number) => number.to_string(),
            Written::Number(bytes) => bytes.to_string(),
            Written::Text(text) => text,
        };
        let bytes = text.parse::<ByteSize>().ok().map(|it| it.as_u64());
        match bytes.and_then(NonZeroU64::new) {
            Some(rate) => Ok(Self(Some(rate))),
            None => Err(format!(
                "scrub is bytes per second such as 20MB, or off, not {text}"
            )),
        }
    }
}

/// Reads the store's blobs back until the token says otherwise.
pub(crate) fn scrub(store: FsStore, ScrubRate(rate): ScrubRate, until: &CancellationToken) {
    if let Some(rate) = rate {
        let scrubbing = async move { store.scrub(rate).await };
        tokio::spawn(until.clone().run_until_cancelled_owned(scrubbing));
    }
}

/// The ceiling of a store in `dir`.
///
/// # Errors
/// The volume cannot be looked at.
pub(crate) fn ceiling(
    limit: Option<StoreLimit>,
    dir: &Path,
) -> Result<Option<Ceiling>, StartError> {
    let bytes = match limit {
        None => return Ok(None),
        Some(StoreLimit::Bytes(bytes)) => bytes,
        Some(StoreLimit::Percent(percent)) => {
            FsStore::volume_bytes(dir)? / 100 * u64::from(percent)
        }
    };
    Ok(Some(Ceiling::of(bytes)))
}

/// The sockets that peers connect to.
pub(crate) fn bind(
    addr: SocketAddr,
    identity: &Identity,
    (transport, mtu): (TransportConfig, QuicMtu),
) -> Result<Dual, NetError> {
    let options = QuicOptions::default().mtu(mtu.0);
    Dual::bind_with(addr, identity, transport.into(), &options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::AgentConfig;

    const AGENT: &str = "
store: /var/lib/kraken
peer_listen: 0.0.0.0:7610
advertise: 10.0.0.1:7610
registry_listen: 127.0.0.1:7611
trackers: [https://tracker-1:7601]
build_indexes: [https://index-1:7604]
tls: {cert: a.crt, key: a.key, ca: ca.crt}
";

    #[test]
    fn a_whole_file_is_read() {
        let config: AgentConfig = parse(AGENT).unwrap();
        assert_eq!(config.registry_listen.port(), 7611);
        assert_eq!(config.tls.ca, PathBuf::from("ca.crt"));
    }

    #[test]
    fn peers_are_dialled_over_quic_unless_the_file_says_otherwise() {
        let with = |line: &str| parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
        assert_eq!(with("").unwrap().transport, TransportConfig::Quic);
        let tcp = with("transport: tcp").unwrap().transport;
        assert_eq!(PathChoice::from(tcp), PathChoice::Tcp);
        let auto = with("transport: auto").unwrap().transport;
        assert_eq!(PathChoice::from(auto), PathChoice::Auto);
        let error = with("transport: udp").unwrap_err();
        assert!(error.contains("quic, tcp, auto"), "{error}");
    }

    #[test]
    fn a_limit_on_the_disk_is_a_size_or_a_part_of_the_volume() {
        let with = |line: &str| {
            let config = parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
            config.map(|config| config.store_limit)
        };
        assert_eq!(with(""), Ok(None));
        let bytes = |bytes| Ok(Some(StoreLimit::Bytes(bytes)));
        assert_eq!(with("store_limit: 200GiB"), bytes(200 << 30));
        assert_eq!(with("store_limit: 4096"), bytes(4096));
        let percent = |percent| Ok(Some(StoreLimit::Percent(percent)));
        assert_eq!(with("store_limit: 80%"), percent(80));
        assert_eq!(with("store_limit: 100 %"), percent(100));
        for wrong in [
            "0%",
            "101%",
            "-5",
            "half",
            "80 percent",
            "'%'",
            "''",
            "0",
            "0.8",
        ] {
            let error = with(&format!("store_limit: {wrong}")).unwrap_err();
            assert!(error.contains("store_limit"), "{wrong}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let later = dir.path().join("not/there/yet");
        let of = |limit| ceiling(Some(limit), &later).unwrap().unwrap().most();
        let (whole, half) = (of(StoreLimit::Percent(100)), of(StoreLimit::Percent(50)));
        assert!(
            whole > 0 && half.abs_diff(whole / 2) <= 50,
            "{half} of {whole}"
        );
        assert_eq!(of(StoreLimit::Bytes(7)), 7);
    }

    #[test]
    fn the_scrub_has_a_rate_or_is_off() {
        let with = |line: &str| {
            let config = parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
            config.map(|config| config.scrub.0.map(NonZeroU64::get))
        };
        assert_eq!(with(""), Ok(Some(20_000_000)));
        assert_eq!(with("scrub: 100MB"), Ok(Some(100_000_000)));
        assert_eq!(with("scrub: 4096"), Ok(Some(4096)));
        assert_eq!(with("scrub: off"), Ok(None));
        for wrong in ["0", "-1", "fast", "1.5", "true"] {
            let error = with(&format!("scrub: {wrong}")).unwrap_err();
            assert!(error.contains("20MB, or off"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_size_of_datagrams_is_optional_and_checked() {
        let with = |line: &str| parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
        assert_eq!(with("").unwrap().quic_mtu, QuicMtu(8972));
        assert_eq!(with("quic_mtu: 1452").unwrap().quic_mtu, QuicMtu(1452));
        let error = with("quic_mtu: 1000").unwrap_err();
        assert!(error.contains("between 1200 and 9000"), "{error}");
    }

    #[test]
    fn a_zone_is_optional_and_checked() {
        let with = |line: &str| parse::<AgentConfig>(&format!("{AGENT}{line}\n"));
        assert_eq!(with("").unwrap().zone, None);
        let zone = with("zone: rack-17").unwrap().zone.unwrap();
        assert_eq!(zone.as_str(), "rack-17");
        let error = with("zone: rack 17").unwrap_err();
        assert!(error.contains("letters, digits"), "{error}");
        let number = with("zone: 17").unwrap().zone.unwrap();
        assert_eq!(number.as_str(), "17");
        assert_eq!(with("zone:").unwrap().zone, None);
        let error = with("zones: rack-17").unwrap_err();
        assert!(
            error.contains("advertise, zone, registry_listen"),
            "{error}"
        );
    }

    #[test]
    fn peers_are_remembered_unless_that_is_switched_off() {
        let config: AgentConfig = parse(AGENT).unwrap();
        assert!(config.remember_peers);
        let config: AgentConfig = parse(&format!("{AGENT}remember_peers: false\n")).unwrap();
        assert!(!config.remember_peers);
    }

    #[test]
    fn an_unknown_key_is_named_with_those_that_exist() {
        let error = parse::<AgentConfig>(&AGENT.replace("trackers:", "tracker:")).unwrap_err();
        assert!(
            error.contains("tracker") && error.contains("trackers"),
            "{error}"
        );
        assert!(error.contains("line") || error.contains(':'), "{error}");
        let error = parse::<AgentConfig>(&AGENT.replace("7611", "99999")).unwrap_err();
        assert!(
            error.contains("socket address") || error.contains("registry_listen"),
            "{error}"
        );
    }

    #[test]
    fn a_ring_needs_members_with_plain_names() {
        let entry = |name: &str, url: &str| OriginEntry {
            name: name.into(),
            url: url.into(),
        };
        assert!(ring(&[entry("origin-1", "https://a:1")]).is_ok());
        for wrong in [
            vec![],
            vec![entry("Origin.1", "https://a:1")],
            vec![entry("a", "a:1")],
        ] {
            assert!(ring(&wrong).is_err(), "{wrong:?}");
        }
    }
}
