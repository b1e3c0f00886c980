//! An open metainfo on its way to being whole: asks for what is new, keeps it, and tells the driver.

use std::sync::Arc;
use std::time::Duration;

use kraken_net::DiscoveryError;
use kraken_proto::retry::backoff::{Backoff, Jitter};
use kraken_proto::rng::Rng;
use kraken_proto::{Digest, Input, MetaInfo, Namespace};
use tokio::time::{Instant, sleep};

use super::driver::Note;
use super::hearsay::{Sources, Told};
use crate::dynamic::DynStore;
use crate::error::ReadError;

/// The least time between two questions: whoever answers is to wait until there is more, and this
/// bounds what a hasty one can make us do.
const PAUSE: Duration = Duration::from_millis(10);
/// The waits after failures.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// How long the discovery may be silent before peers are asked: what is being read then waits for
/// the blob's end, because peers may say what is not so.
const PEERS_AFTER: Duration = Duration::from_secs(5);

/// What a blob's open metainfo is followed with.
pub(super) struct Follower {
    pub(super) sources: Sources,
    pub(super) store: Arc<dyn DynStore>,
    /// How long to go on without anything new.
    pub(super) patience: Duration,
}

impl Follower {
    /// Follows until the metainfo is whole or nothing more will come.
    pub(super) async fn follow(self, namespace: Namespace, open: MetaInfo) {
        let digest = open.digest();
        if let Err(error) = self.until_whole(&namespace, open).await {
            self.note(Note::Failed { digest, error }).await;
        }
    }

    async fn note(&self, note: Note) {
        if let Some(notes) = self.sources.notes.upgrade() {
            let _ = notes.send(note).await;
        }
    }

    async fn until_whole(&self, namespace: &Namespace, open: MetaInfo) -> Result<(), ReadError> {
        let digest = open.digest();
        let mut backoff = Backoff::new(RETRY, RETRY_MAX, Jitter::Equal);
        let mut rng = Rng::seeded(u64::from(digest.as_bytes()[0]));
        let (mut ask, mut known, mut heard) = (Some(open.clone()), open, Instant::now());
        let mut answered = heard;
        while !known.is_whole() {
            let asked = self.sources.discovery.open_metainfo(namespace, digest, ask);
            match asked.await {
                Ok(meta) if known.continues(&meta) => {
                    answered = Instant::now();
                    if heard.elapsed() > self.patience {
                        return Err(silent(digest, "no more of its metainfo came"));
                    }
                    ask = Some(known.clone());
                    sleep(PAUSE).await;
                }
                Ok(meta) => {
                    self.keep(&known, Told::surely(meta.clone())).await?;
                    (ask, known, heard) = (Some(meta.clone()), meta, Instant::now());
                    answered = heard;
                    backoff.reset();
                    sleep(PAUSE).await;
                }
                Err(DiscoveryError::Damaged { reason, .. }) => {
                    return Err(ReadError::Damaged { digest, reason });
                }
                Err(error) if !error.is_retryable() || heard.elapsed() > self.patience => {
                    return Err(silent(digest, &error.to_string()));
                }
                Err(error) => {
                    tracing::debug!(%digest, %error, "an open metainfo cannot be followed now");
                    // Whoever answers next may know other states: all of them, please.
                    ask = None;
                    let told = match answered.elapsed() > PEERS_AFTER {
                        true => self.sources.peers(namespace, digest).await,
                        false => None,
                    };
                    // Whoever has the blob tells all of it.
                    match told {
                        Some(told) if ends(&told.meta, &known) => {
                            self.keep(&known, told).await?;
                            return Ok(());
                        }
                        // Somebody else may know better.
                        Some(_) => self.note(Note::Input(Input::Unsought { digest })).await,
                        None => {}
                    }
                    sleep(backoff.delay(&mut rng)).await;
                }
            }
        }
        Ok(())
    }

    /// Into the store first: no piece may be written that it cannot prove.
    async fn keep(&self, known: &MetaInfo, told: Told) -> Result<(), ReadError> {
        let Told { meta, is_hearsay } = told;
        self.store.open(meta.clone()).await?;
        if !meta.continues(known) {
            let reason = "its metainfo was replaced by one of other bytes: open it again";
            return Err(ReadError::gone(meta.digest(), reason));
        }
        self.note(Note::Continued { meta, is_hearsay }).await;
        Ok(())
    }
}

/// Whether one metainfo is the whole of the other.
fn ends(whole: &MetaInfo, open: &MetaInfo) -> bool {
    whole.is_whole() && whole.continues(open)
}

/// Nobody says more, for this reason. The pieces are kept.
fn silent(digest: Digest, reason: &str) -> ReadError {
    let reason = reason.to_string();
    ReadError::Unavailable { digest, reason }
}
