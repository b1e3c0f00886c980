//! Which images go to other clusters and come from them.

use kraken_core::storage::backend::web::RegistryWriter;
use kraken_proto::tags::hours::Plan;
use regex::Regex;

use crate::platform::Platform;

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
            Self::Cluster(build_indexes) => {
                let urls = build_indexes.iter();
                urls.map(|url| url.trim_end_matches('/').to_owned())
                    .collect()
            }
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

/// A cluster that images come from: this one is among its remotes, and fetches.
#[derive(Debug, Clone)]
pub struct SourceRule {
    /// A name for it, which no remote has.
    pub name: String,
    /// The base URLs of its build-indexes, all of them: each has a list of its own.
    pub build_indexes: Vec<String>,
    /// When something comes from there, and how many bytes a second to each build-index.
    pub plan: Plan,
}

/// Where images go, and where they come from.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Clusters and registries that images go to.
    pub remotes: Vec<RemoteRule>,
    /// Clusters that images come from.
    pub sources: Vec<SourceRule>,
}
