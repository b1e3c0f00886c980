//! Where registers go: another cluster, or the backend of the tags.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kraken_core::storage::BackendError;

use super::remote::Remote;
use super::{Inner, Known, SendError};
use crate::link::RegisterName;
use crate::tags::backend::{BACKEND, TagBackend};

/// How often a register is written that is another one each time.
const TRIES: usize = 3;

/// Where registers go.
pub(super) enum Way {
    Cluster(Arc<Remote>),
    Backend(TagBackend),
}

impl Way {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Cluster(remote) => remote.name(),
            Self::Backend(_) => BACKEND,
        }
    }

    /// The other cluster, if it is one.
    pub(super) const fn cluster(&self) -> Option<&Arc<Remote>> {
        match self {
            Self::Cluster(remote) => Some(remote),
            Self::Backend(_) => None,
        }
    }

    /// The blobs that were sent, and their bytes.
    pub(super) fn sent(&self) -> (u64, u64) {
        self.cluster().map_or((0, 0), |remote| {
            let blobs = remote.sent_blobs.load(Ordering::Relaxed);
            (blobs, remote.sent_bytes.load(Ordering::Relaxed))
        })
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
