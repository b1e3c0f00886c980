//! Which runtime pulls, and how it is reached.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kraken_registry::name::{NameError, Reference, RepoName, split_tag};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{CONTAINERD, CTR, DOCKERD, HOSTS_DIR, NAMESPACE, PATIENCE, PODMAN};
use crate::config::HostConfig;
use crate::problems::Problems;
use crate::store::Age;

/// A container runtime that pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "`containerd`, `podman` or `docker`")]
pub enum Puller {
    /// containerd, by its program `ctr`.
    Containerd,
    /// Podman, by its program.
    Podman,
    /// dockerd, by its API.
    Docker,
}

impl Puller {
    /// What it is called in configurations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

impl fmt::Display for Puller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Puller {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Containerd, Self::Podman, Self::Docker];
        let known = all.into_iter().find(|it| it.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is none of containerd, podman and docker"))
    }
}

impl TryFrom<String> for Puller {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A name of containerd's, such as that of a namespace: up to 76 letters, digits and `. _ -` between them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", title = "name", extend("examples" = ["k8s.io"]))]
pub struct Word(String);

impl Word {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = || text.split(['.', '_', '-']);
        let is_part = |it: &str| !it.is_empty() && it.bytes().all(|b| b.is_ascii_alphanumeric());
        match text.len() <= 76 && parts().all(is_part) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "{:?} is no name of containerd's: up to 76 letters and digits, one of . _ - between them",
                text.chars().take(76).collect::<String>()
            )),
        }
    }
}

impl TryFrom<String> for Word {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How the images of this host's agent get into the runtime.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreloadConfig {
    /// `containerd`, `podman` or `docker`.
    pub runtime: Puller,
    /// Where containerd or dockerd answers.
    #[serde(default)]
    #[schemars(extend("x-defaults" = {"containerd": CONTAINERD, "docker": DOCKERD}))]
    pub socket: Option<PathBuf>,
    /// The namespace of containerd.
    #[serde(default)]
    #[schemars(default = "usual_namespace", extend("x-conditional" = true))]
    pub namespace: Option<Word>,
    /// Where containerd unpacks to; its own default when absent.
    #[serde(default)]
    pub snapshotter: Option<Word>,
    /// What the runtime calls the registry whose mirror the agent is: images get this name, and come by the
    /// runtime's own mirrors. When absent they are called after the agent, and come from it.
    #[serde(default)]
    pub registry: Option<HostConfig>,
    /// Where containerd's mirrors are configured, for `registry`.
    #[serde(default)]
    #[schemars(default = "usual_hosts_dir", extend("x-conditional" = true))]
    pub hosts_dir: Option<PathBuf>,
    /// The program that pulls, if it is not on the path.
    #[serde(default)]
    #[schemars(extend("x-defaults" = {"containerd": CTR, "podman": PODMAN}))]
    pub program: Option<PathBuf>,
    /// Images that are pulled at once, 1 to 16; further ones wait.
    #[serde(default = "two")]
    pub at_once: usize,
    /// How long one image may take, its wait included.
    #[serde(default)]
    #[schemars(default = "usual_timeout")]
    pub timeout: Option<Age>,
}

const fn two() -> usize {
    2
}

const fn usual_namespace() -> &'static str {
    NAMESPACE
}

const fn usual_hosts_dir() -> &'static str {
    HOSTS_DIR
}

const fn usual_timeout() -> Age {
    Age(PATIENCE)
}

impl PreloadConfig {
    /// A runtime with all else as usual.
    pub const fn of(runtime: Puller) -> Self {
        Self {
            runtime,
            socket: None,
            namespace: None,
            snapshotter: None,
            registry: None,
            hosts_dir: None,
            program: None,
            at_once: two(),
            timeout: None,
        }
    }

    /// Refuses what the runtime has no use for.
    ///
    /// # Errors
    /// With the keys inside this one.
    pub(crate) fn check(&self) -> Result<(), Problems> {
        let mut found = Problems::default();
        let (is_containerd, is_docker) = (
            self.runtime == Puller::Containerd,
            self.runtime == Puller::Docker,
        );
        let has_socket = is_containerd || is_docker;
        for (key, is_set, fits) in [
            ("socket", self.socket.is_some(), has_socket),
            ("namespace", self.namespace.is_some(), is_containerd),
            ("snapshotter", self.snapshotter.is_some(), is_containerd),
            ("hosts_dir", self.hosts_dir.is_some(), is_containerd),
            ("program", self.program.is_some(), !is_docker),
        ] {
            if is_set && !fits {
                let what = format!("this means nothing to {}: leave it out", self.runtime);
                found.add(key, what);
            }
        }
        if self.hosts_dir.is_some() && self.registry.is_none() {
            found.add(
                "hosts_dir",
                "this is for a registry: name it, or leave this out",
            );
        }
        if !(1..=16).contains(&self.at_once) {
            found.add(
                "at_once",
                format!("{} is not between 1 and 16", self.at_once),
            );
        }
        found.done(())
    }
}

/// An image of a repository: `repository:tag` or `repository@digest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    pub(super) repo: RepoName,
    pub(super) reference: Reference,
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some((repo, digest)) = text.split_once('@') {
            let (repo, reference) = (repo.parse()?, Reference::Digest(digest.parse()?));
            return Ok(Self { repo, reference });
        }
        let (repo, tag) = split_tag(text)?;
        let reference = Reference::Tag(tag);
        Ok(Self { repo, reference })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joint = match self.reference {
            Reference::Tag(_) => ':',
            Reference::Digest(_) => '@',
        };
        write!(f, "{}{joint}{}", self.repo, self.reference)
    }
}
