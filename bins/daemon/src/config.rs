//! Configuration files: YAML, every key checked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kraken_core::Zone;
use kraken_core::net::origin::OriginCluster;
use kraken_core::net::{Dual, Identity, NetError, PathChoice, QuicOptions};
use kraken_core::origin::RingMember;
use kraken_registry::name::{Host, NameError};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::members::member_url;
use crate::problems::Problems;
use crate::process::StartError;
use crate::settings::{Layers, Schema, Sources};
use crate::store::Weight;
pub use crate::tls::Tls;

/// A registry's host, such as `docker.io`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "host", extend("examples" = ["docker.io"]))]
pub struct HostConfig(pub Host);

impl TryFrom<String> for HostConfig {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse().map(Self)
    }
}

/// One origin, as the others know it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OriginEntry {
    /// The name that places its share of the blobs: keep it when the origin moves. Lower-case
    /// letters, digits and hyphens.
    pub name: String,
    /// Where it answers, such as `https://origin-1:7605`.
    pub url: String,
    /// Its share of the blobs relative to the others.
    #[serde(default)]
    pub weight: Weight,
    /// The availability zone that it stands in: a blob's copies are in different ones as far as there
    /// are any.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub zone: Option<Zone>,
}

/// How many origins own each blob when nothing else is said.
pub const REPLICAS: usize = 3;

pub(crate) fn default_replicas() -> usize {
    REPLICAS
}

/// The origins as a ring.
///
/// # Errors
/// A name or a URL makes no sense, is there twice, or there is none; with the keys inside the list.
pub fn ring(origins: &[OriginEntry]) -> Result<Vec<RingMember>, Problems> {
    let mut found = Problems::default();
    let (mut members, mut urls) = (Vec::new(), Vec::new());
    for (index, origin) in origins.iter().enumerate() {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if origin.name.is_empty() || !origin.name.chars().all(fits) {
            let name = &origin.name;
            let what = format!("{name:?} is no name: write lower-case letters, digits and hyphens");
            found.add(format!("[{index}].name"), what);
        }
        let url = member_url(&origin.url);
        let key = format!("[{index}].url");
        if let Some(url) = found.at(&key, url) {
            urls.push((key, url.to_string()));
            members.push(RingMember {
                name: origin.name.clone(),
                url,
                weight: origin.weight.share(),
                zone: origin.zone.clone(),
            });
        }
    }
    let names = origins.iter().map(|it| it.name.clone()).enumerate();
    found.twice(names.map(|(index, name)| (format!("[{index}].name"), name)));
    found.twice(urls);
    if origins.is_empty() {
        found.add(
            "",
            "name at least one: [{name: origin-1, url: 'https://origin-1:7605'}]",
        );
    } else if origins.iter().all(|it| it.weight.share() == 0.0) {
        let what =
            "0, as that of all others: no origin would own a blob, so give one a weight above 0";
        found.add("[0].weight", what);
    }
    found.done(members)
}

/// Makes a directory that is not there.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_dir(path: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(path)
        .map_err(|error| StartError::Config(format!("cannot make {}: {error}", path.display())))
}

/// Asks the origins whether they are there until the token says otherwise.
pub(crate) fn watch(origins: &OriginCluster, until: &CancellationToken) {
    let origins = origins.clone();
    let watching = async move { origins.watch().await };
    tokio::spawn(until.clone().run_until_cancelled_owned(watching));
}

/// Reads one file, whatever the environment says.
///
/// # Errors
/// [`ConfigError`] with the file, the line and what is wrong there.
pub fn load<T: DeserializeOwned + JsonSchema>(path: &Path) -> Result<T, ConfigError> {
    Sources::files(vec![path.to_path_buf()]).load()
}

/// The same with the places of what it says.
///
/// # Errors
/// The file cannot be read, or all that is wrong with it.
pub(crate) fn load_placed<T: DeserializeOwned + JsonSchema>(
    path: &Path,
) -> Result<(T, Layers), Problems> {
    let layers = Sources::files(vec![path.to_path_buf()]).layers(&Schema::of::<T>())?;
    Ok((layers.typed_or_all()?, layers))
}

#[cfg(test)]
pub(crate) fn parse<T: DeserializeOwned + JsonSchema>(text: &str) -> Result<T, String> {
    let read = Layers::of_text(text).and_then(|layers| layers.typed());
    read.map_err(|error| error.to_string())
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
    #[error("the configuration is wrong: {at}: {what}")]
    Parse {
        /// In which file or variable, at which line.
        at: String,
        /// What.
        what: String,
    },
}

/// How peers are dialled; whatever a host chooses, it accepts both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16")]
#[schemars(
    with = "u16",
    extend("minimum" = QuicOptions::LEAST_MTU, "maximum" = QuicOptions::MOST_MTU)
)]
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

impl QuicMtu {
    /// The size in bytes.
    pub(crate) const fn bytes(self) -> u16 {
        self.0
    }
}

impl Default for QuicMtu {
    fn default() -> Self {
        Self(QuicOptions::DEFAULT_MTU)
    }
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
pub(crate) mod tests {
    use super::*;
    use crate::agent::AgentConfig;

    pub(crate) const AGENT: &str = "
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
        assert!(error.contains("did you mean `zone`"), "{error}");
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
            weight: Weight::default(),
            zone: None,
        };
        assert!(ring(&[entry("origin-1", "https://a:1")]).is_ok());
        for wrong in [
            vec![],
            vec![entry("Origin.1", "https://a:1")],
            vec![entry("a", "a:1")],
            vec![entry("a", "http://a:1")],
            vec![entry("a", "https://a:1"), entry("a", "https://b:1")],
            vec![entry("a", "https://a:1"), entry("b", "https://a:1/")],
            vec![OriginEntry {
                weight: 0.0.try_into().unwrap(),
                ..entry("a", "https://a:1")
            }],
        ] {
            assert!(ring(&wrong).is_err(), "{wrong:?}");
        }
    }
}
