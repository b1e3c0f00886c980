//! Tags on disk.
//!
//! One redb file with three tables: tags by `repository:tag`, the number of tags by repository,
//! and one counter. Every change is one transaction that is on disk when the call returns, so a
//! crash leaves either the old tag or the new one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kraken_core::storage::database::make_once;
use kraken_proto::Digest;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::{TagError, TagService};
use crate::name::{RepoName, Tag};

/// Durable tags. Clones share one file; a second process cannot open it.
#[derive(Clone)]
pub struct TagStore {
    db: Arc<Database>,
}

/// What a tag points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest or other blob.
    pub digest: Digest,
    /// Grows with every change of any tag in this store, and never falls back: of two records of
    /// one tag, the one with the higher version is the later.
    pub version: u64,
    /// When the tag was set, to the millisecond.
    pub time: SystemTime,
}

impl TagStore {
    /// Opens the file, or creates it. Blocks on the disk.
    ///
    /// # Errors
    /// The file is in use, damaged beyond repair, or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TagStoreError> {
        let path = path.as_ref();
        let made = make_once(path, |new| create(new).map(drop));
        made.map_err(|error| TagStoreError::database(error.into()))?;
        let db = create(path).map_err(TagStoreError::database)?;
        Ok(Self { db: Arc::new(db) })
    }

    /// The tag's record.
    ///
    /// # Errors
    /// The database failed.
    pub async fn lookup(
        &self,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, TagStoreError> {
        let key = key(repo, tag);
        self.run(move |db| {
            let tags = db.begin_read()?.open_table(TAGS)?;
            let found = tags.get(key.as_str())?;
            Ok(found.map(|bytes| TagRecord::decode(bytes.value())))
        })
        .await?
        .transpose()
    }

    /// Lets the tag point to `digest`, and returns its record. Setting what is there already
    /// changes nothing, its version included.
    ///
    /// # Errors
    /// The database failed; the tag is as it was.
    pub async fn set(
        &self,
        repo: &RepoName,
        tag: &Tag,
        digest: Digest,
    ) -> Result<TagRecord, TagStoreError> {
        if let Some(record) = self.lookup(repo, tag).await?
            && record.digest == digest
        {
            return Ok(record);
        }
        let (repo, key) = (repo.clone(), key(repo, tag));
        self.run(move |db| {
            let write = begin(db)?;
            let time = SystemTime::now();
            let version = next_version(&write)?;
            let record = TagRecord {
                digest,
                version,
                time,
            };
            let encoded = record.encode();
            let is_new = write
                .open_table(TAGS)?
                .insert(key.as_str(), encoded.as_slice())?
                .is_none();
            if is_new {
                let mut repositories = write.open_table(REPOSITORIES)?;
                let tags = repositories
                    .get(repo.as_str())?
                    .map_or(0, |count| count.value());
                repositories.insert(repo.as_str(), tags + 1)?;
            }
            write.commit()?;
            Ok(record)
        })
        .await
    }

    /// Removes the tag; whether there was one.
    ///
    /// # Errors
    /// The database failed; the tag is as it was.
    pub async fn remove(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagStoreError> {
        let (repo, key) = (repo.clone(), key(repo, tag));
        self.run(move |db| {
            let write = begin(db)?;
            if write.open_table(TAGS)?.remove(key.as_str())?.is_none() {
                write.abort()?;
                return Ok(false);
            }
            next_version(&write)?;
            {
                let mut repositories = write.open_table(REPOSITORIES)?;
                let tags = repositories
                    .get(repo.as_str())?
                    .map_or(0, |count| count.value());
                if tags > 1 {
                    repositories.insert(repo.as_str(), tags - 1)?;
                } else {
                    repositories.remove(repo.as_str())?;
                }
            }
            write.commit()?;
            Ok(true)
        })
        .await
    }

    /// Up to `n` entries `repository:tag` that begin with `prefix`, in the order of their bytes,
    /// behind `after` if given.
    ///
    /// # Errors
    /// The database failed.
    pub async fn page(
        &self,
        prefix: &str,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<String>, TagStoreError> {
        let (prefix, after) = (prefix.to_string(), after.map(str::to_string));
        self.run(move |db| {
            let tags = db.begin_read()?.open_table(TAGS)?;
            let start = after
                .as_deref()
                .map_or(prefix.as_str(), |after| after.max(&prefix));
            let mut page = Vec::new();
            for entry in tags.range(start..)? {
                let (key, _) = entry?;
                let name = key.value();
                if page.len() == n || !name.starts_with(&prefix) {
                    break;
                }
                if after.as_deref() != Some(name) {
                    page.push(name.to_string());
                }
            }
            Ok(page)
        })
        .await
    }

    /// Up to `n` repositories that have tags, in the order of their bytes, behind `after` if given.
    ///
    /// # Errors
    /// The database failed.
    pub async fn page_repositories(
        &self,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<String>, TagStoreError> {
        let after = after.map(str::to_string);
        self.run(move |db| {
            let repositories = db.begin_read()?.open_table(REPOSITORIES)?;
            let start = after.as_deref().unwrap_or("");
            let mut page = Vec::new();
            for entry in repositories.range(start..)? {
                let (name, _) = entry?;
                if page.len() == n {
                    break;
                }
                if after.as_deref() != Some(name.value()) {
                    page.push(name.value().to_string());
                }
            }
            Ok(page)
        })
        .await
    }

    /// Runs `job` where it may block.
    async fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<R, redb::Error> + Send + 'static,
    ) -> Result<R, TagStoreError> {
        let db = self.db.clone();
        let done = tokio::task::spawn_blocking(move || job(&db)).await;
        done.map_err(|_| TagStoreError::Interrupted)?
            .map_err(TagStoreError::database)
    }
}

impl fmt::Debug for TagStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagStore").finish_non_exhaustive()
    }
}

impl TagService for TagStore {
    async fn get(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Digest>, TagError> {
        Ok(self.lookup(repo, tag).await?.map(|record| record.digest))
    }

    async fn put(&self, repo: &RepoName, tag: &Tag, digest: Digest) -> Result<(), TagError> {
        self.set(repo, tag, digest).await?;
        Ok(())
    }

    async fn list(
        &self,
        repo: &RepoName,
        n: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, TagError> {
        let prefix = format!("{repo}:");
        let after = last.map(|last| format!("{prefix}{last}"));
        let entries = self.page(&prefix, n, after.as_deref()).await?;
        Ok(entries
            .iter()
            .map(|entry| entry[prefix.len()..].to_string())
            .collect())
    }

    async fn repositories(&self, n: usize, last: Option<&str>) -> Result<Vec<String>, TagError> {
        Ok(self.page_repositories(n, last).await?)
    }

    async fn delete(&self, repo: &RepoName, tag: &Tag) -> Result<bool, TagError> {
        Ok(self.remove(repo, tag).await?)
    }
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TagStoreError {
    /// The database did: its disk, its file, or a second process that has it open.
    #[error("the tag database failed")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record is not one that this version writes.
    #[error("a tag's record cannot be read: was the database written by a newer version?")]
    Record,
    /// The runtime shut down meanwhile.
    #[error("interrupted by the shutdown of the process")]
    Interrupted,
}

impl TagStoreError {
    fn database(error: redb::Error) -> Self {
        Self::Database(Box::new(error))
    }
}

impl From<TagStoreError> for TagError {
    fn from(error: TagStoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self::Unavailable(match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

impl TagRecord {
    /// Version and milliseconds since 1970 in little endian, then the digest.
    fn encode(&self) -> [u8; RECORD] {
        let since = self.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..16].copy_from_slice(&millis.to_le_bytes());
        bytes[16..].copy_from_slice(self.digest.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, TagStoreError> {
        let (version, rest) = bytes.split_first_chunk().ok_or(TagStoreError::Record)?;
        let (millis, digest) = rest.split_first_chunk().ok_or(TagStoreError::Record)?;
        let digest = digest.try_into().map_err(|_| TagStoreError::Record)?;
        let since = Duration::from_millis(u64::from_le_bytes(*millis));
        Ok(Self {
            digest: Digest::from_bytes(digest),
            version: u64::from_le_bytes(*version),
            time: UNIX_EPOCH.checked_add(since).ok_or(TagStoreError::Record)?,
        })
    }
}

const TAGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tags");
const REPOSITORIES: TableDefinition<'_, &str, u64> = TableDefinition::new("repositories");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const RECORD: usize = 8 + 8 + 32;

/// Makes the tables too, so that readers need not handle their absence.
fn create(path: &Path) -> Result<Database, redb::Error> {
    let db = Database::create(path)?;
    let write = begin(&db)?;
    write.open_table(TAGS)?;
    write.open_table(REPOSITORIES)?;
    write.open_table(COUNTERS)?;
    write.commit()?;
    Ok(db)
}

fn key(repo: &RepoName, tag: &Tag) -> String {
    format!("{repo}:{tag}")
}

/// A transaction that is on disk once it is committed.
fn begin(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut write = db.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    Ok(write)
}

fn next_version(write: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut counters = write.open_table(COUNTERS)?;
    let version = counters
        .get("version")?
        .map_or(0, |counter| counter.value())
        + 1;
    counters.insert("version", version)?;
    Ok(version)
}
