//! Metainfo by hearsay: from peers, when the discovery does not tell.
//!
//! A chain of states proves itself with its last piece only. What a peer says may therefore turn out
//! wrong; the blob can then never become whole, and is dropped when that shows.

use std::sync::Arc;
use std::time::Duration;

use kraken_net::DiscoveryError;
use kraken_proto::{Digest, MetaInfo, Namespace};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::driver::Note;
use crate::dynamic::DynDiscovery;

/// How long the discovery is waited for before peers are asked as well: an origin may first have to
/// ask its backend.
const HEDGE: Duration = Duration::from_secs(2);
/// How long peers are waited for, each time.
const PEERS: Duration = Duration::from_secs(3);

/// Metainfo, and where it is from.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) meta: MetaInfo,
    /// A peer said so, and nobody else.
    pub(crate) is_hearsay: bool,
}

impl Told {
    pub(crate) const fn surely(meta: MetaInfo) -> Self {
        Self {
            meta,
            is_hearsay: false,
        }
    }
}

/// Asks for metainfo: the discovery, and peers when that does not tell.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) discovery: Arc<dyn DynDiscovery>,
    pub(crate) notes: mpsc::WeakSender<Note>,
}

impl Sources {
    /// The metainfo of a blob of which nothing is known.
    pub(crate) async fn first(
        &self,
        namespace: &Namespace,
        digest: Digest,
    ) -> Result<Told, DiscoveryError> {
        let asked = self.discovery.open_metainfo(namespace, digest, None);
        tokio::pin!(asked);
        let mut said = None;
        tokio::select! {
            answer = &mut asked => said = Some(answer),
            () = sleep(HEDGE) => {}
        }
        match said {
            Some(Err(error)) if error.is_retryable() => {
                let told = self.peers(namespace, digest).await;
                told.ok_or(error)
            }
            Some(answer) => answer.map(Told::surely),
            // For as long as the discovery thinks.
            None => loop {
                tokio::select! {
                    answer = &mut asked => break answer.map(Told::surely),
                    told = self.peers(namespace, digest) => if let Some(told) = told {
                        break Ok(told);
                    },
                }
            },
        }
    }

    /// What peers say.
    pub(super) async fn peers(&self, namespace: &Namespace, digest: Digest) -> Option<Told> {
        let (reply, answer) = oneshot::channel();
        let note = Note::Seek {
            namespace: namespace.clone(),
            digest,
            reply,
        };
        self.notes.upgrade()?.send(note).await.ok()?;
        timeout(PEERS, answer).await.ok()?.ok()?
    }
}
