//! Tags that were told, for the time in which no build-index can be asked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kraken_core::storage::kept::KeptFile;
use kraken_proto::Digest;
use serde::{Deserialize, Serialize};

use super::{Found, LinkService, TagError, TagService};
use crate::link::{Link, LinkKind, Linked};
use crate::name::{RepoName, Tag, TagName};

/// Tags that are remembered at most; of more, those that were told longest ago go.
const MOST: usize = 10_000;
/// A longer file is not ours: a name of a tag has at most 384 bytes.
const LONGEST: u64 = 8 << 20;
/// How often the file is written, when there is news.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// A [`TagService`] that tells a tag again as it was told last while nobody can be asked, and says that the answer may
/// be out of date. Everything else it passes on. Clones share what they remember.
#[derive(Debug, Clone)]
pub struct RememberedTags<T> {
    tags: T,
    memory: Option<TagMemory>,
}

/// What was told of tags, and how long that is told again.
#[derive(Debug, Clone)]
pub struct TagMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keep: Duration,
    told: Mutex<Told>,
}

type Told = BTreeMap<String, Last>;

/// What a tag pointed to when it was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    digest: Digest,
    /// On the wall clock, in milliseconds since 1970.
    at_ms: u64,
}

impl<T> RememberedTags<T> {
    /// Remembers in `memory`; without one nothing is told again.
    pub fn new(tags: T, memory: Option<TagMemory>) -> Self {
        Self { tags, memory }
    }
}

impl TagMemory {
    /// Tells a tag again for `keep` since it was told last.
    pub fn new(keep: Duration) -> Self {
        let told = Mutex::default();
        Self(Arc::new(Inner { keep, told }))
    }

    /// Reads what an earlier process has written to the file `path`, and writes it every minute when there is news,
    /// for ever. Nothing depends on the file.
    pub async fn keep_in(self, path: PathBuf) {
        let mut file = KeptFile::new(path, "tags", LONGEST);
        let earlier: Told = file.load().await;
        {
            let mut told = self.told();
            for (name, last) in earlier {
                told.entry(name).or_insert(last);
            }
        }
        loop {
            tokio::time::sleep(SAVE_EVERY).await;
            let told = self.told().clone();
            file.save(told);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, repo: &RepoName, tag: &Tag, digest: Option<Digest>, at_ms: u64) {
        let name = name_of(repo, tag);
        let mut told = self.told();
        let Some(digest) = digest else {
            told.remove(&name);
            return;
        };
        told.insert(name, Last { digest, at_ms });
        if told.len() > MOST {
            let mut times: Vec<_> = told.values().map(|last| last.at_ms).collect();
            times.sort_unstable();
            // A tenth at once, so that this is seldom done.
            let oldest = times[MOST / 10];
            told.retain(|_, last| last.at_ms > oldest);
        }
    }

    fn recall(&self, repo: &RepoName, tag: &Tag, now_ms: u64) -> Option<Digest> {
        let last = *self.told().get(&name_of(repo, tag))?;
        let age = Duration::from_millis(now_ms.saturating_sub(last.at_ms));
        (age <= self.0.keep).then_some(last.digest)
    }
}

fn name_of(repo: &RepoName, tag: &Tag) -> String {
    TagName::new(repo.clone(), tag.clone()).to_string()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(0))
}

impl<T: TagService> TagService for RememberedTags<T> {
    async fn get(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, TagError> {
        let found = self.find(repo, tag).await?;
        Ok(found.map(|found| found.digest))
    }

    async fn find(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Found>, TagError> {
        let found = self.tags.find(repo, tag).await;
        let Some(memory) = &self.memory else {
            return found;
        };
        match found {
            Ok(found) => {
                let digest = found.as_ref().map(|found| found.digest);
                memory.note(repo, tag, digest, now_ms());
                Ok(found)
            }
            Err(TagError::Unavailable(reason)) => match memory.recall(repo, tag, now_ms()) {
                Some(digest) => {
                    tracing::warn!(%repo, %tag, %digest, reason, "a tag is told as it was told last");
                    let is_stale = true;
                    Ok(Some(Found { digest, is_stale }))
                }
                None => Err(TagError::Unavailable(reason)),
            },
            Err(error) => Err(error),
        }
    }

    async fn put(&self, repo: &RepoName, tag: &Tag, digest: Digest) -> Result<(), TagError> {
        self.tags.put(repo, tag, digest).await
    }

    async fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        self.tags.list(repo, n, last).await
    }

    async fn repositories(&self, n: usize, last: Option<&str>) -> Result<Vec<String>, TagError> {
        self.tags.repositories(n, last).await
    }

    async fn delete_at(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> Result<bool, TagError> {
        self.tags.delete_at(repo, tag, digest).await
    }

    async fn delete(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagError> {
        self.tags.delete(repo, tag).await
    }
}

impl<T: LinkService> LinkService for RememberedTags<T> {
    async fn link(&self, repo: &RepoName, link: Link) -> Result<Linked, TagError> {
        self.tags.link(repo, link).await
    }

    async fn set_link(&self, repo: &RepoName, link: Link, is_held: bool) -> Result<(), TagError> {
        self.tags.set_link(repo, link, is_held).await
    }

    async fn links(
        &self,
        repo: &RepoName,
        kind: LinkKind,
        n: usize,
        after: Option<Digest>,
    ) -> Result<Vec<Digest>, TagError> {
        self.tags.links(repo, kind, n, after).await
    }

    async fn tags_of(&self, repo: &RepoName, digest: Digest) -> Result<Vec<Tag>, TagError> {
        self.tags.tags_of(repo, digest).await
    }

    async fn is_known(&self, repo: &RepoName) -> Result<bool, TagError> {
        self.tags.is_known(repo).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTags;

    const HOUR: Duration = Duration::from_secs(3600);

    fn name() -> (RepoName, Tag) {
        ("team/app".parse().unwrap(), "v1".parse().unwrap())
    }

    #[tokio::test]
    async fn a_tag_is_told_again_while_nobody_can_be_asked_and_only_then() {
        let known = Arc::new(MemoryTags::default());
        let tags = RememberedTags::new(known.clone(), Some(TagMemory::new(HOUR)));
        let (repo, tag) = name();
        let found = |digest, is_stale| Ok(Some(Found { digest, is_stale }));
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        known.set_unavailable(true);
        assert!(tags.find(&repo, &tag).await.is_err(), "it was never told");
        known.set_unavailable(false);
        known.put(&repo, &tag, one).await.unwrap();
        assert_eq!(tags.find(&repo, &tag).await, found(one, false));
        known.set_unavailable(true);
        assert_eq!(tags.find(&repo, &tag).await, found(one, true));
        known.set_unavailable(false);
        known.put(&repo, &tag, two).await.unwrap();
        assert_eq!(tags.find(&repo, &tag).await, found(two, false));
        known.delete(&repo, &tag).await.unwrap();
        assert_eq!(tags.find(&repo, &tag).await, Ok(None));
        known.set_unavailable(true);
        assert!(tags.find(&repo, &tag).await.is_err(), "it was deleted");
    }

    #[test]
    fn what_was_told_too_long_ago_or_when_there_were_too_many_is_forgotten() {
        let memory = TagMemory::new(HOUR);
        let (repo, tag) = name();
        let digest = Digest::of(b"one");
        memory.note(&repo, &tag, Some(digest), 1_000);
        assert_eq!(memory.recall(&repo, &tag, 3_601_000), Some(digest));
        assert_eq!(memory.recall(&repo, &tag, 3_601_001), None);
        for number in 0..MOST {
            let tag = format!("v{number}-x").parse().unwrap();
            memory.note(&repo, &tag, Some(digest), 2_000 + number as u64);
        }
        assert_eq!(memory.recall(&repo, &tag, 1_000), None, "the oldest");
        let last = format!("v{}-x", MOST - 1).parse().unwrap();
        assert_eq!(memory.recall(&repo, &last, 20_000), Some(digest));
        assert!(memory.told().len() <= MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.json");
        let (repo, tag) = name();
        let digest = Digest::of(b"one");
        let first = TagMemory::new(HOUR);
        let keeping = tokio::spawn(first.clone().keep_in(path.clone()));
        first.note(&repo, &tag, Some(digest), 1_000);
        while !path.exists() {
            tokio::time::sleep(SAVE_EVERY).await;
        }
        keeping.abort();
        let second = TagMemory::new(HOUR);
        tokio::spawn(second.clone().keep_in(path));
        while second.recall(&repo, &tag, 2_000).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(second.recall(&repo, &tag, 2_000), Some(digest));
    }
}
