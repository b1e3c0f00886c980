//! What `kraken preload` takes.

use std::path::PathBuf;

use clap::Args;
use kraken::runtime::Address;
use kraken_daemon::preload::{ImageName, Puller, Word};
use kraken_registry::name::Host;

use super::outside::RegistryTls;

/// Which image, and into what.
#[derive(Debug, Args)]
pub(crate) struct PreloadArgs {
    /// The image, as repository:tag or repository@digest.
    pub(crate) image: ImageName,
    /// The address of the agent's registry: host:port, or https://host:port.
    #[arg(long, default_value = "127.0.0.1:7610", env = "KRAKEN_AGENT")]
    pub(crate) agent: Address,
    #[command(flatten)]
    pub(crate) tls: RegistryTls,
    /// containerd, podman or docker, run from here; when left out, the agent does it, as its configuration
    /// says.
    #[arg(long)]
    pub(crate) runtime: Option<Puller>,
    /// The namespace of containerd; k8s.io when neither this nor the agent's configuration says another.
    #[arg(long)]
    pub(crate) namespace: Option<Word>,
    /// Where containerd or dockerd answers.
    #[arg(long, requires = "runtime")]
    pub(crate) socket: Option<PathBuf>,
    /// Where containerd unpacks to.
    #[arg(long, requires = "runtime")]
    pub(crate) snapshotter: Option<Word>,
    /// What the runtime calls the registry whose mirror the agent is: the image gets this name, and comes
    /// by the runtime's own mirrors.
    #[arg(long, requires = "runtime")]
    pub(crate) registry: Option<Host>,
    /// Where containerd's mirrors are configured.
    #[arg(long, requires = "registry")]
    pub(crate) hosts_dir: Option<PathBuf>,
}
