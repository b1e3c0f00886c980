//! An owner's registers on its disk.
//!
//! One redb file with three tables: registers by name (`repository:tag`, or that of a link), the number of tags by repository,
//! and what this owner is among the others. Every change is on disk when the call returns, so that a
//! crash leaves either what was before or what is after it.

use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, RwLock};

use kraken_core::storage::database::{DatabaseFile, make_once};
use kraken_proto::Digest;
use kraken_proto::tags::list::{ListId, Lists};
use kraken_proto::tags::record::{Change, Refusal, TagState};
use kraken_proto::tags::register::{Ballot, Outbid, Register};
use kraken_proto::tags::rejoin::Standing;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::backend::BACKEND;
use super::pending;
use super::standing::{LIVES_KEY, STANDING, lists, lives, put_standing, standing};
use super::watch::Watch;
use super::writer::Writer;
use super::{TagError, encoding};
use crate::link::RegisterName;

/// What one owner holds of all tags. Clones share one file; a second process cannot open it.
#[derive(Clone)]
pub struct TagStore {
    db: Arc<DatabaseFile>,
    pub(super) writer: Writer,
    pub(super) standing: Arc<RwLock<Standing>>,
    pub(super) lists: Arc<RwLock<Option<Lists>>>,
    /// Those of them that are on the disk: what others are told is not taken back.
    pub(super) kept_lists: Arc<RwLock<Option<Lists>>>,
    pub(super) watch: Watch,
}

/// An attempt that an owner has promised to, and on whose promises it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Its name.
    pub ballot: Ballot,
    /// In which life the owner that is asked has promised.
    pub incarnation: u64,
    /// All that have promised so far, and in which life.
    pub promised: Vec<(String, u64)>,
    /// The lists of build-indexes whose owners are asked.
    pub lists: Vec<ListId>,
}

/// A register in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The register's: of a tag `repository:tag`.
    pub name: String,
    /// The attempt that left it as it is: of two lists, the one with the later one is right.
    pub accepted: Ballot,
    /// What it points to; nothing once that was removed.
    pub digest: Option<Digest>,
}

/// The memory for pages of the file, in bytes.
const CACHE: usize = 64 << 20;

impl TagStore {
    /// Opens the file, or creates it. Blocks on the disk.
    ///
    /// # Errors
    /// The file is in use, damaged beyond repair, or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TagStoreError> {
        let path = path.as_ref();
        let made = make_once(path, |new| create(new).map(drop));
        made.map_err(|error| TagStoreError::database(error.into()))?;
        let db = Arc::new(create(path).map_err(TagStoreError::database)?);
        let (standing, lists) = db.read(|db| {
            let is_old = |it: redb::ReadTransaction| it.open_table(OLD_TAGS).is_ok();
            match db.begin_read().is_ok_and(is_old) {
                true => Err(TagStoreError::Old),
                false => Ok((standing(db)?, lists(db)?)),
            }
        })?;
        Ok(Self {
            writer: Writer::start(db.clone()),
            kept_lists: Arc::new(RwLock::new(lists.clone())),
            lists: Arc::new(RwLock::new(lists)),
            watch: Watch::default(),
            standing: Arc::new(RwLock::new(standing)),
            db,
        })
    }

    /// Why its file cannot be written now; after a write that failed this tries again, and blocks on the disk.
    /// Nothing when it can.
    pub fn why_not_writable(&self) -> Option<String> {
        self.db.why_not_writable()
    }

    /// Whether its last write failed.
    pub fn has_failed(&self) -> bool {
        self.db.failure().is_some()
    }

    /// What it holds of a tag, for one that asks the owners by these lists.
    ///
    /// # Errors
    /// The database failed, or the lists are others now.
    pub async fn look(
        &self,
        name: &RegisterName,
        lists: &[ListId],
    ) -> Result<Register, TagStoreError> {
        if !self.allows(lists) {
            return Err(TagStoreError::OtherList);
        }
        self.held(name).await
    }

    /// What it holds of a tag.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn held(&self, name: &RegisterName) -> Result<Register, TagStoreError> {
        let name = name.to_string();
        self.read(move |db| {
            let registers = db.begin_read()?.open_table(REGISTERS)?;
            let found = registers.get(name.as_str())?;
            Ok(found.map_or_else(
                || Some(Register::default()),
                |it| encoding::decode(it.value()),
            ))
        })
        .await?
        .ok_or(TagStoreError::Record)
    }

    /// Promises to take nothing of an earlier attempt, and tells what it holds.
    ///
    /// # Errors
    /// The database failed, or the lists are others now. The inner error: a later attempt came before.
    pub async fn prepare(
        &self,
        name: &RegisterName,
        ballot: Ballot,
        lists: Vec<ListId>,
    ) -> Result<Result<Register, Outbid>, TagStoreError> {
        let (name, store) = (name.clone(), self.clone());
        let promised = self.writer.run(move |write| {
            if !store.allows(&lists) {
                return Ok(Err(TagStoreError::OtherList));
            }
            let promised = update(write, &store.watch, &name, |register| {
                register.prepare(ballot).map(|()| register.clone())
            })?;
            Ok(promised.ok_or(TagStoreError::Record))
        });
        promised.await?
    }

    /// Takes a state, if this and all others that promised it are still in the lives in which they did,
    /// as far as is known here.
    ///
    /// # Errors
    /// The database failed, one of them has lost its disk since, or the lists are others now. The inner
    /// error: a later attempt came before.
    pub async fn accept(
        &self,
        name: &RegisterName,
        attempt: Attempt,
        state: Option<TagState>,
    ) -> Result<Result<(), Outbid>, TagStoreError> {
        if attempt.incarnation != self.standing().incarnation {
            return Err(TagStoreError::Forgot);
        }
        if state.as_ref().is_some_and(|state| !state.is_sound()) {
            return Err(TagStoreError::Record);
        }
        let (name, ballot, store) = (name.clone(), attempt.ballot, self.clone());
        let taken = self.writer.run(move |write| {
            if !store.allows(&attempt.lists) {
                return Ok(Err(TagStoreError::OtherList));
            }
            let promised = attempt.promised.iter().map(|(it, life)| (&**it, *life));
            let Some(lives) = lives(&write.open_table(STANDING)?)? else {
                return Ok(Err(TagStoreError::Record));
            };
            if !lives.allow(promised) {
                return Ok(Err(TagStoreError::Forgot));
            }
            let taken = update(write, &store.watch, &name, |register| {
                register.accept(ballot, state)
            })?;
            Ok(taken.ok_or(TagStoreError::Record))
        });
        taken.await?
    }

    /// Makes a change as the only owner, in one step.
    ///
    /// # Errors
    /// The database failed. The inner error: the change is not to be made.
    pub async fn change_alone(
        &self,
        name: &RegisterName,
        change: Change,
    ) -> Result<Result<Option<TagState>, Refusal>, TagStoreError> {
        self.with(name, move |register| {
            let state = change.apply(register.state.as_ref())?;
            if state != register.state {
                let ballot = Ballot {
                    round: register.promised.round + 1,
                    proposer: register.promised.proposer,
                };
                register
                    .accept(ballot, state.clone())
                    .expect("it is later than what was promised");
            }
            Ok(state)
        })
        .await
    }

    /// Some registers behind `after`, for the new life of an owner that has lost its disk: attempts that
    /// are under way find this one outbid, and what the earlier life promised counts for nothing here.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hand_over(
        &self,
        (owner, incarnation): (String, u64),
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, Register)>, TagStoreError> {
        let after = after.to_owned();
        self.writer
            .run(move |write| {
                let known = lives(&write.open_table(STANDING)?)?;
                let Some(mut lives) = known else {
                    return Ok(None);
                };
                lives.began(&owner, incarnation);
                let text = serde_json::to_string(&lives).unwrap_or_default();
                put_standing(write, LIVES_KEY, &text)?;
                let mut registers = write.open_table(REGISTERS)?;
                let mut page = Vec::new();
                let behind = (Bound::Excluded(after.as_str()), Bound::Unbounded);
                for entry in registers.range::<&str>(behind)?.take(limit) {
                    let (name, bytes) = entry?;
                    let Some(mut register) = encoding::decode(bytes.value()) else {
                        // What is left out would be forgotten.
                        return Ok(None);
                    };
                    register.hand_over();
                    page.push((name.value().to_owned(), register));
                }
                for (name, register) in &page {
                    let bytes = encoding::encode(register);
                    registers.insert(name.as_str(), bytes.as_slice())?;
                }
                Ok(Some(page))
            })
            .await?
            .ok_or(TagStoreError::Record)
    }

    /// Learns what another owner holds, before it votes.
    ///
    /// # Errors
    /// The database failed.
    pub async fn learn(&self, page: Vec<(RegisterName, Register)>) -> Result<(), TagStoreError> {
        let watch = self.watch.clone();
        self.writer
            .run(move |write| {
                let sound = |it: &Register| it.state.as_ref().is_none_or(TagState::is_sound);
                for (name, other) in page {
                    if !sound(&other) {
                        return Ok(None);
                    }
                    let learnt = update(write, &watch, &name, |it| it.learn(&other))?;
                    if learnt.is_none() {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
            .await?
            .ok_or(TagStoreError::Record)
    }

    /// Takes what the backend holds, before it votes: any attempt since then is a later one.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn restore(
        &self,
        page: Vec<(RegisterName, TagState)>,
    ) -> Result<(), TagStoreError> {
        let watch = self.watch.clone();
        self.writer
            .run(move |write| {
                for (name, state) in page {
                    let restored = update(write, &watch, &name, |it| it.restore(&state))?;
                    match restored {
                        // It came from there.
                        Some(true) => pending::strike(write, BACKEND, &name)?,
                        Some(false) => {}
                        None => return Ok(None),
                    }
                }
                Ok(Some(()))
            })
            .await?
            .ok_or(TagStoreError::Record)
    }

    /// Up to `n` registers whose names begin with `prefix`, in the order of their bytes, behind
    /// `after` if given; those whose tags or links were removed as well.
    ///
    /// # Errors
    /// The database failed.
    pub async fn page(
        &self,
        prefix: &str,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<Listed>, TagStoreError> {
        let (prefix, after) = (prefix.to_string(), after.map(str::to_string));
        self.read(move |db| {
            let registers = db.begin_read()?.open_table(REGISTERS)?;
            let from = match after.as_deref() {
                Some(after) if *after >= *prefix => Bound::Excluded(after),
                _ => Bound::Included(prefix.as_str()),
            };
            let mut page = Vec::new();
            for entry in registers.range::<&str>((from, Bound::Unbounded))? {
                let (name, bytes) = entry?;
                if page.len() == n || !name.value().starts_with(&prefix) {
                    break;
                }
                let register = encoding::decode(bytes.value()).unwrap_or_default();
                page.push(Listed {
                    name: name.value().to_owned(),
                    accepted: register.accepted,
                    digest: register.state.and_then(|state| state.now.digest),
                });
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
        self.read(move |db| {
            let repositories = db.begin_read()?.open_table(REPOSITORIES)?;
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let range = repositories.range::<&str>((from, Bound::Unbounded))?;
            let names = range.take(n).map(|entry| Ok(entry?.0.value().to_owned()));
            names.collect()
        })
        .await
    }

    async fn with<R: Send + 'static>(
        &self,
        name: &RegisterName,
        change: impl FnOnce(&mut Register) -> R + Send + 'static,
    ) -> Result<R, TagStoreError> {
        let (name, watch) = (name.clone(), self.watch.clone());
        self.writer
            .run(move |write| update(write, &watch, &name, change))
            .await?
            .ok_or(TagStoreError::Record)
    }

    /// Runs `job` where it may block.
    pub(super) async fn read<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<R, redb::Error> + Send + 'static,
    ) -> Result<R, TagStoreError> {
        let db = self.db.clone();
        let done = tokio::task::spawn_blocking(move || db.read(job)).await;
        done.map_err(|_| TagStoreError::Interrupted)?
            .map_err(TagStoreError::database)
    }
}

impl fmt::Debug for TagStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagStore").finish_non_exhaustive()
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
    #[error("a tag's record cannot be read: was the database written by another version?")]
    Record,
    /// It holds tags in the form of a version that was never released.
    #[error(
        "the tag database is of an earlier version, whose tags this one cannot read: export them with \
         that one, move the file away, and set them again"
    )]
    Old,
    /// More changes wait for the disk than may.
    #[error("too many changes of tags wait for the disk")]
    Busy,
    /// It has lost its disk since it promised.
    #[error("this build-index has lost its disk since it promised")]
    Forgot,
    /// An attempt by a list of build-indexes that was closed.
    #[error("the list of build-indexes is another one now")]
    OtherList,
    /// The runtime shut down meanwhile.
    #[error("interrupted by the shutdown of the process, or by a failure of the disk")]
    Interrupted,
}

impl TagStoreError {
    pub(super) fn database(error: redb::Error) -> Self {
        Self::Database(Box::new(error))
    }
}

impl From<redb::DatabaseError> for TagStoreError {
    fn from(error: redb::DatabaseError) -> Self {
        Self::database(error.into())
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

pub(super) const REGISTERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("registers");
const REPOSITORIES: TableDefinition<'_, &str, u64> = TableDefinition::new("repositories");
/// Of versions before the first release.
const OLD_TAGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tags");

/// Makes the tables too, so that readers need not handle their absence.
fn create(path: &Path) -> Result<DatabaseFile, redb::Error> {
    let file = DatabaseFile::open(path, CACHE)?;
    file.write(|db| {
        let mut write = db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        write.open_table(REGISTERS)?;
        write.open_table(REPOSITORIES)?;
        write.open_table(STANDING)?;
        pending::create(&write)?;
        Ok::<_, redb::Error>(write.commit()?)
    })?;
    Ok(file)
}

fn is_set(register: &Register) -> bool {
    register
        .state
        .as_ref()
        .is_some_and(|state| state.now.digest.is_some())
}

/// Changes one register, and counts the tags of its repository. Nothing when the register cannot be
/// read: what it promised is not known then, and it must not promise anything else.
fn update<R>(
    write: &WriteTransaction,
    watch: &Watch,
    name: &RegisterName,
    change: impl FnOnce(&mut Register) -> R,
) -> Result<Option<R>, redb::Error> {
    let key = name.to_string();
    let mut registers = write.open_table(REGISTERS)?;
    let found = registers.get(key.as_str())?;
    let found = found.map(|bytes| encoding::decode(bytes.value()));
    let mut register = match found {
        None => Register::default(),
        Some(Some(register)) => register,
        Some(None) => return Ok(None),
    };
    let before = register.clone();
    let result = change(&mut register);
    if register == before {
        return Ok(Some(result));
    }
    registers.insert(key.as_str(), encoding::encode(&register).as_slice())?;
    if register.state != before.state {
        watch.note(write, name)?;
    }
    let (was, is) = (is_set(&before), is_set(&register));
    if was != is && matches!(name, RegisterName::Tag(_)) {
        let mut repositories = write.open_table(REPOSITORIES)?;
        let repo = name.repo().as_str();
        let count = repositories.get(repo)?.map_or(0, |count| count.value());
        match if is {
            count + 1
        } else {
            count.saturating_sub(1)
        } {
            0 => drop(repositories.remove(repo)?),
            count => drop(repositories.insert(repo, count)?),
        }
    }
    Ok(Some(result))
}
