//! What `kraken preheat` is told.

use std::path::PathBuf;

use clap::Args;

use super::AtMost;
use super::outside::RegistryTls;

/// Which image is fetched, and where to.
#[derive(Debug, Args)]
pub(crate) struct PreheatArgs {
    /// The image, as repository:tag or repository@digest.
    pub(crate) image: String,
    /// The proxy's address: host:port, or https://host:port.
    #[arg(long, default_value = "127.0.0.1:7602", env = "KRAKEN_PROXY")]
    pub(crate) proxy: String,
    /// The registries of agents, several with commas: they fetch it too.
    #[arg(long, value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
    /// A file with more of them, one in a line.
    #[arg(long)]
    pub(crate) hosts_file: Option<PathBuf>,
    /// The share of the hosts that gets it: the first of the list.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) percent: u8,
    /// The share of these that must have it before this ends well.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) wait: u8,
    /// Hosts that fetch it at once.
    #[arg(long, default_value_t = 500)]
    pub(crate) at_once: usize,
    /// Bytes per second that the origins, and then all hosts together, are told to fetch, such as
    /// 300MB/s: each blob's turn comes when those before it have had their time.
    #[arg(long, value_name = "RATE")]
    pub(crate) at_most: Option<AtMost>,
    #[command(flatten)]
    pub(crate) tls: RegistryTls,
    /// Prints one JSON object and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}
