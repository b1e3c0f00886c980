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

use crate::Failure;

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

/// A host that images are pulled from, such as `docker.io` or `registry.example.com:5000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream(String);

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
        let fits = text.bytes().all(is_plain) && !text.starts_with(['.', '-', ':']);
        match fits && (1..=255).contains(&text.len()) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "{text:?} is no registry: write a host, maybe with a port, such as docker.io"
            )),
        }
    }
}

impl Upstream {
    /// Where it is reached itself.
    fn server(&self) -> String {
        match self.0.as_str() {
            "docker.io" => "https://registry-1.docker.io".into(),
            host => format!("https://{host}"),
        }
    }

    /// The host as the agent names its repositories.
    fn prefix(&self) -> String {
        self.0.replace(':', "_")
    }
}

/// What runtimes are told.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// `host:port` of the agent's registry.
    pub agent: String,
    /// `host:port` where the agent mirrors Docker Hub for dockerd, if it does.
    pub docker: Option<String>,
    /// The registries that are mirrored.
    pub upstreams: Vec<Upstream>,
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
    fn well(what: impl Into<String>) -> Self {
        Self {
            is_well: true,
            what: what.into(),
        }
    }

    fn amiss(what: impl Into<String>) -> Self {
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
