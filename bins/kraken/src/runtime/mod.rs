//! `kraken runtime`: lets the container runtimes of this host pull through the agent.
//!
//! What is written is small and says who wrote it. A file of somebody else's in the same place is kept
//! beside it and comes back on removal; in files that others own too, only one entry is ours.

mod containerd;
mod containers;
mod docker;
mod file;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kraken_registry::name::Host;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::caller::Caller;
use crate::client::Registry;

/// A runtime, by the files that configure it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// containerd, as Kubernetes uses it.
    Containerd,
    /// Podman, Buildah, Skopeo and CRI-O, which read the same files.
    Containers,
    /// dockerd: it mirrors Docker Hub only.
    Docker,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Containerd, Self::Containers, Self::Docker];

    /// The directory that is there when the runtime is.
    fn directory(self) -> &'static str {
        match self {
            Self::Containerd => "etc/containerd",
            Self::Containers => "etc/containers",
            Self::Docker => "etc/docker",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Containers => "podman and CRI-O",
            Self::Docker => "docker",
        })
    }
}

impl FromStr for Runtime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "containerd" => Ok(Self::Containerd),
            "podman" | "cri-o" | "crio" => Ok(Self::Containers),
            "docker" => Ok(Self::Docker),
            _ => Err(format!(
                "{text:?} is none of containerd, podman, cri-o and docker"
            )),
        }
    }
}

/// Where the agent answers: `host:port`, or `https://host:port` if it is there with TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address(String);

const SECURE: &str = "https://";

impl Address {
    /// Whether it is reached by TLS.
    pub fn is_secure(&self) -> bool {
        self.0.starts_with(SECURE)
    }

    /// `host:port`.
    pub fn host(&self) -> &str {
        self.0.strip_prefix(SECURE).unwrap_or(&self.0)
    }

    fn url(&self) -> String {
        match self.is_secure() {
            true => self.0.clone(),
            false => format!("http://{}", self.0),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.strip_prefix(SECURE).unwrap_or(text);
        let url = format!("http://{host}");
        let parsed: Result<http::Uri, _> = url.parse();
        let authority = parsed.ok().and_then(|uri| uri.into_parts().authority);
        let fits = authority.is_some_and(|it| it.port_u16().is_some() && it.as_str() == host);
        match fits && !text.contains('@') {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "{text:?} is no address: write host:port, such as 127.0.0.1:7610"
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What runtimes are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The agent's registry.
    pub agent: Address,
    /// The authorities of the agent's certificate, if this host does not trust them: a PEM file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Where the agent mirrors Docker Hub for dockerd, if it does.
    pub docker: Option<Address>,
    /// The registries that are mirrored.
    #[serde(with = "hosts")]
    pub upstreams: Vec<Host>,
}

/// Hosts as text.
mod hosts {
    use kraken_registry::name::Host;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(hosts: &[Host], to: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<_> = hosts.iter().map(Host::as_str).collect();
        texts.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Host>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let hosts = texts
            .iter()
            .map(|text| text.parse().map_err(D::Error::custom));
        hosts.collect()
    }
}

/// What was installed last, so that a check need not be told.
const INSTALLED: &str = "/etc/kraken/runtime.json";

/// Notes what was installed.
///
/// # Errors
/// The file cannot be written.
pub fn note(root: &Path, mirror: &Mirror) -> Result<(), Failure> {
    let text = serde_json::json!(mirror);
    file::replace(&at(root, INSTALLED), &format!("{text:#}\n"))
}

/// What was installed last.
///
/// # Errors
/// The file cannot be read, or makes no sense.
pub fn noted(root: &Path) -> Result<Option<Mirror>, Failure> {
    let path = at(root, INSTALLED);
    let Some(text) = file::read(&path)? else {
        return Ok(None);
    };
    let mirror = serde_json::from_str(&text);
    mirror
        .map(Some)
        .map_err(|error| Failure::Other(format!("{}: {error}", path.display())))
}

/// Nothing is installed any more.
///
/// # Errors
/// The file cannot be removed.
pub fn forget(root: &Path) -> Result<(), Failure> {
    file::delete(&at(root, INSTALLED))
}

/// Asks the agent whether it is there and mirrors these registries.
pub async fn ask(mirror: &Mirror, caller: &Caller) -> Vec<Said> {
    let mut said = Vec::new();
    let agent = match Registry::of(&mirror.agent.to_string(), caller) {
        Ok(agent) => agent,
        Err(error) => return vec![Said::amiss(format!("the agent: {error}"))],
    };
    for host in &mirror.upstreams {
        said.push(match agent.mirrors(host.as_str()).await {
            Ok(true) => Said::well(format!("the agent mirrors {host}")),
            Ok(false) => Said::amiss(format!(
                "the agent does not mirror {host}: add it to its upstreams, or to its own_names if it is \
                 the name of this cluster's own registry"
            )),
            Err(error) => Said::amiss(format!("the agent: {error}")),
        });
    }
    said
}

/// One thing that was done, or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Whether it is as it must be.
    pub is_well: bool,
    /// In words.
    pub what: String,
}

impl Said {
    /// Something that is.
    pub fn well(what: impl Into<String>) -> Self {
        Self {
            is_well: true,
            what: what.into(),
        }
    }

    /// Something that is not as it must be.
    pub fn amiss(what: impl Into<String>) -> Self {
        Self {
            is_well: false,
            what: what.into(),
        }
    }
}

/// The runtimes whose directories are under `root`.
pub fn found(root: &Path) -> Vec<Runtime> {
    let all = Runtime::ALL.into_iter();
    all.filter(|it| root.join(it.directory()).is_dir())
        .collect()
}

/// Writes what a runtime needs, and says what was done.
///
/// # Errors
/// A file cannot be read or written, or makes no sense.
pub fn install(root: &Path, runtime: Runtime, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    match runtime {
        Runtime::Containerd => containerd::install(root, mirror),
        Runtime::Containers => containers::install(root, mirror),
        Runtime::Docker => docker::install(root, mirror),
    }
}

/// Says whether a runtime has what [`install`] writes.
///
/// # Errors
/// A file cannot be read, or makes no sense.
pub fn check(root: &Path, runtime: Runtime, mirror: &Mirror) -> Result<Vec<Said>, Failure> {
    match runtime {
        Runtime::Containerd => containerd::check(root, mirror),
        Runtime::Containers => containers::check(root, mirror),
        Runtime::Docker => docker::check(root, mirror),
    }
}

/// Takes out what [`install`] wrote, whatever it was, and says what was done.
///
/// # Errors
/// A file cannot be read or written, or makes no sense.
pub fn remove(root: &Path, runtime: Runtime) -> Result<Vec<Said>, Failure> {
    match runtime {
        Runtime::Containerd => containerd::remove(root),
        Runtime::Containers => containers::remove(root),
        Runtime::Docker => docker::remove(root),
    }
}

/// A path under the root as it is on the host.
fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests;
