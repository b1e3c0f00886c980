//! Where registers go: another cluster, another registry, or the backend of the tags; and where blobs come from.

use std::sync::Arc;

use kraken_core::net::http::HttpClient;
use kraken_core::storage::BackendError;

use super::mirror::Mirror;
use super::registry::Registry;
use super::remote::Remote;
use super::rules::{RemoteKind, RemoteRule};
use super::traffic::Traffic;
use super::{Inner, Known, SendError};
use crate::link::RegisterName;
use crate::tags::backend::{BACKEND, TagBackend};

/// How often a register is written that is another one each time.
const TRIES: usize = 3;

/// Where registers go.
#[derive(Clone)]
pub(super) enum Way {
    Cluster(Arc<Remote>),
    Registry(Arc<Registry>),
    Backend(TagBackend),
    /// A cluster of this name fetches what it lacks itself.
    Fetched(String),
    /// Blobs come from that cluster.
    Source(Arc<Remote>),
    /// Blobs come from that registry.
    Mirror(Arc<Mirror>),
}

impl Way {
    /// That of a rule, from the cluster of this name.
    pub(super) fn new(rule: RemoteRule, own: &str, http: &HttpClient) -> Self {
        match rule.kind {
            RemoteKind::Cluster(build_indexes) => {
                let remote = Remote::new((rule.name, build_indexes), own, http);
                Self::Cluster(Arc::new(remote))
            }
            RemoteKind::Registry(writer) => {
                let registry = Registry::new((rule.name, writer));
                Self::Registry(Arc::new(registry))
            }
            RemoteKind::Fetches => Self::Fetched(rule.name),
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Cluster(remote) | Self::Source(remote) => remote.name(),
            Self::Registry(registry) => registry.name(),
            Self::Backend(_) => BACKEND,
            Self::Fetched(name) => name,
            Self::Mirror(mirror) => mirror.there.name(),
        }
    }

    /// The bytes of blobs that go that way, as far as they pass here; the backend gets none.
    pub(super) fn traffic(&self) -> Option<&Arc<Traffic>> {
        match self {
            Self::Cluster(remote) | Self::Source(remote) => Some(&remote.traffic),
            Self::Registry(registry) => Some(&registry.traffic),
            Self::Mirror(mirror) => Some(&mirror.there.traffic),
            Self::Backend(_) | Self::Fetched(_) => None,
        }
    }
}

impl Inner {
    /// Makes sure that the backend has a register as it is here, or something later. The version that it has.
    pub(super) async fn write(&self, backend: &TagBackend, name: &str) -> Result<Known, SendError> {
        let register: RegisterName = match name.parse() {
            Ok(register) => register,
            // Nobody could ask for it.
            Err(_) => return Ok(Known::default()),
        };
        let mut written = None;
        for _ in 0..TRIES {
            let Some(state) = self.ring.register(&register).await? else {
                return Ok(Known::default());
            };
            let known = Known {
                version: state.now.version,
                state: Some(state.id()),
            };
            if written == Some(known) || !backend.put(&register, &state).await? {
                return Ok(known);
            }
            // Another owner may have written something later while this one was held up: a look at what it is
            // now tells.
            written = Some(known);
        }
        Err(SendError::Failed("it changes all the time".into()))
    }
}

impl From<BackendError> for SendError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Unavailable(_) | BackendError::Denied(_) => Self::Away(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}
