//! What a mirror knows of manifests that were removed from their repositories.
//!
//! A mirror has the bytes of a digest and serves them without asking anybody, so that it would serve a
//! removed image until it lets go of it. So whoever wants a manifest by its digest has it ask a
//! build-index, as for a tag: at most once in a while for each manifest, not at all when a tag was just
//! seen to point to it, and with little patience. While nobody can be asked, it serves what it has.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kraken_proto::Digest;
use moka::future::Cache;
use tokio::time::{Instant, timeout};

use crate::link::{Link, Linked};
use crate::name::RepoName;
use crate::tags::LinkService;

/// For how long a manifest that is there is not asked about again.
const FRESH: Duration = Duration::from_secs(60);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// For how long nobody is asked after one who did not answer.
const AWAY: Duration = Duration::from_secs(30);
/// Manifests that are remembered, some 200 bytes each.
const MANIFESTS: u64 = 10_000;

/// What is known of manifests.
pub(crate) struct Removals {
    /// When a manifest was last seen to be there.
    seen: Cache<(RepoName, Digest), Instant>,
    /// Until when nobody is asked.
    away_until: Mutex<Option<Instant>>,
}

impl Default for Removals {
    fn default() -> Self {
        Self {
            seen: Cache::new(MANIFESTS),
            away_until: Mutex::default(),
        }
    }
}

impl Removals {
    /// A tag points to the manifest: it is there.
    pub(crate) async fn note(&self, repo: &RepoName, digest: Digest) {
        let key = (repo.clone(), digest);
        self.seen.insert(key, Instant::now()).await;
    }

    /// Whether the manifest was removed, as far as that is to be had.
    pub(crate) async fn has<T: LinkService>(
        &self,
        tags: &T,
        repo: &RepoName,
        digest: Digest,
    ) -> bool {
        let seen = self.seen.get(&(repo.clone(), digest)).await;
        if seen.is_some_and(|at| at.elapsed() < FRESH) || self.is_away() {
            return false;
        }
        match timeout(PATIENCE, tags.link(repo, Link::Manifest(digest))).await {
            // It may be pushed again at any moment: asked about each time.
            Ok(Ok(Linked::Removed)) => true,
            Ok(Ok(Linked::Held | Linked::Never)) => {
                self.note(repo, digest).await;
                false
            }
            Ok(Err(_)) | Err(_) => {
                *self.lock() = Some(Instant::now() + AWAY);
                false
            }
        }
    }

    fn is_away(&self) -> bool {
        self.lock().is_some_and(|until| Instant::now() < until)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Removals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Removals").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::memory::MemoryTags;

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_now_and_then_and_not_while_nobody_answers() {
        let (tags, removals) = (MemoryTags::default(), Removals::default());
        let (repo, digest) = ("team/app".parse().unwrap(), Digest::of(b"manifest"));
        let link = Link::Manifest(digest);
        let is_removed = async || removals.has(&tags, &repo, digest).await;
        assert!(!is_removed().await, "what is not known is served");
        tags.set_link(&repo, link, false).await.unwrap();
        assert!(!is_removed().await, "it was just asked about");
        advance(FRESH).await;
        assert!(is_removed().await);
        let other = "team/other".parse().unwrap();
        assert!(!removals.has(&tags, &other, digest).await);
        tags.set_link(&repo, link, true).await.unwrap();
        assert!(!is_removed().await, "it was pushed again");
        tags.set_link(&repo, link, false).await.unwrap();
        advance(FRESH).await;
        tags.set_unavailable(true);
        assert!(!is_removed().await, "nobody answers");
        tags.set_unavailable(false);
        assert!(!is_removed().await, "nobody is asked for a while");
        advance(AWAY).await;
        assert!(is_removed().await);
        removals.note(&repo, digest).await;
        assert!(!is_removed().await, "a tag points to it");
    }
}
