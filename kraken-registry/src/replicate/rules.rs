//! Which images go to other clusters and come from them.

use std::time::Duration;

use kraken_core::storage::backend::web::{RegistryBackend, RegistryWriter};
use kraken_proto::tags::hours::Plan;
use regex::Regex;

use crate::name::RepoName;
use crate::platform::Platform;
use crate::tags::backend::{BACKEND, TagBackend};
use crate::tags::watch::{Wanted, What};

/// Where images go.
#[derive(Debug, Clone)]
pub enum RemoteKind {
    /// Another cluster, by the base URLs of its build-indexes.
    Cluster(Vec<String>),
    /// Another registry.
    Registry(RegistryWriter),
    /// Another cluster, which calls itself by the name of the rule and fetches what it lacks.
    Fetches,
}

impl RemoteKind {
    /// Where it is.
    pub(super) fn places(&self) -> Vec<String> {
        match self {
            Self::Cluster(build_indexes) => urls(build_indexes),
            Self::Registry(writer) => vec![format!("registry {}", writer.place())],
            Self::Fetches => vec!["fetches".to_owned()],
        }
    }
}

/// A cluster or registry that images go to.
#[derive(Debug, Clone)]
pub struct RemoteRule {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RemoteKind,
    /// It gets the tags of which one of these matches somewhere in `repository:tag`.
    pub tags: Vec<Regex>,
    /// Of indexes it gets the manifests of these platforms; all when there are none.
    pub platforms: Vec<Platform>,
    /// When something goes there, and how many bytes a second from each build-index.
    pub plan: Plan,
}

/// A cluster or registry that images come from.
#[derive(Debug, Clone)]
pub struct SourceRule {
    /// A name for it, which no remote has.
    pub name: String,
    /// What it is.
    pub kind: SourceKind,
    /// When something comes from there, and how many bytes a second to each build-index.
    pub plan: Plan,
}

/// Where images come from.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// Another cluster, by the base URLs of all of its build-indexes: this one is among its remotes, and
    /// fetches.
    Cluster(Vec<String>),
    /// Another registry.
    Registry(Box<MirrorRule>),
}

impl SourceKind {
    /// Where it is.
    pub(super) fn places(&self) -> Vec<String> {
        match self {
            Self::Cluster(build_indexes) => urls(build_indexes),
            Self::Registry(mirror) => vec![format!("registry {}", mirror.registry.place())],
        }
    }
}

fn urls(build_indexes: &[String]) -> Vec<String> {
    let urls = build_indexes.iter();
    urls.map(|url| url.trim_end_matches('/').to_owned())
        .collect()
}

/// What of a registry is to be here.
#[derive(Debug, Clone)]
pub struct MirrorRule {
    /// Its tags, manifests and lists.
    pub registry: RegistryWriter,
    /// Its blobs.
    pub blobs: RegistryBackend,
    /// The repositories that are looked into, as they are called here.
    pub repositories: Vec<RepoName>,
    /// The tags of which one of these matches somewhere in `repository:tag`.
    pub tags: Vec<Regex>,
    /// Of indexes the manifests of these platforms come; all when there are none.
    pub platforms: Vec<Platform>,
    /// How often it is looked what its tags are.
    pub every: Duration,
}

/// Where images go, and where they come from.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Clusters and registries that images go to.
    pub remotes: Vec<RemoteRule>,
    /// Clusters and registries that images come from.
    pub sources: Vec<SourceRule>,
}

impl Rules {
    /// Who is to have what, the backend of the tags among them.
    pub(super) fn wanted(&self, backend: Option<&TagBackend>) -> Vec<Wanted> {
        let sent = self.remotes.iter().map(|rule| Wanted {
            remote: rule.name.clone(),
            at: rule.kind.places(),
            platforms: rule.platforms.clone(),
            what: What::Tags(rule.tags.clone()),
        });
        let kept = backend.map(|backend| Wanted {
            remote: BACKEND.to_owned(),
            at: vec![backend.place()],
            platforms: Vec::new(),
            what: What::All,
        });
        let fetched = self.sources.iter().map(|rule| Wanted {
            remote: rule.name.clone(),
            at: rule.kind.places(),
            platforms: Vec::new(),
            what: What::Nothing,
        });
        sent.chain(kept).chain(fetched).collect()
    }
}
