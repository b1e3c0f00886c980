//! An owner's registers on its disk.
//!
//! One redb file with three tables: registers by name (`repository:tag`, or that of a link), the number of tags by repository,
//! and what this owner is among the others. Every change is on disk when the call returns, so that a
//! crash leaves either what was before or what is after it.

use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use kraken_core::storage::database::make_once;
use kraken_proto::Digest;
use kraken_proto::tags::record::{Change, Refusal, TagState};
use kraken_proto::tags::register::{Ballot, Outbid, Register};
use kraken_proto::tags::rejoin::{Lives, Standing};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::writer::Writer;
use super::{TagError, encoding};
use crate::link::RegisterName;

/// What one owner holds of all tags. Clones share one file; a second process cannot open it.
#[derive(Clone)]
pub struct TagStore {
    db: Arc<Database>,
    writer: Writer,
    standing: Arc<RwLock<Standing>>,
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
        if db
            .begin_read()
            .is_ok_and(|it| it.open_table(OLD_TAGS).is_ok())
        {
            return Err(TagStoreError::Old);
        }
        let standing = standing(&db)?;
        Ok(Self {
            writer: Writer::start(db.clone()),
            standing: Arc::new(RwLock::new(standing)),
            db,
        })
    }

    /// Whether its file can be written: false once a write has failed, until it is opened anew.
    pub fn is_writable(&self) -> bool {
        self.writer.is_well()
    }

    /// What this owner is among the others.
    pub fn standing(&self) -> Standing {
        let standing = self.standing.read();
        standing.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This owner votes from now on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn begin(&self, founders: Vec<u64>, replicas: usize) -> Result<(), TagStoreError> {
        let standing = Standing {
            incarnation: self.standing().incarnation,
            founders,
            replicas,
        };
        let text = serde_json::to_string(&standing).map_err(|_| TagStoreError::Record)?;
        self.writer
            .run(move |write| {
                write
                    .open_table(STANDING)?
                    .insert(STANDING_KEY, text.as_str())?;
                Ok(())
            })
            .await?;
        let mut current = self
            .standing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = standing;
        Ok(())
    }

    /// What it holds of a tag.
    ///
    /// # Errors
    /// The database failed.
    pub async fn look(&self, name: &RegisterName) -> Result<Register, TagStoreError> {
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
    /// The database failed. The inner error: a later attempt came before.
    pub async fn prepare(
        &self,
        name: &RegisterName,
        ballot: Ballot,
    ) -> Result<Result<Register, Outbid>, TagStoreError> {
        self.with(name, move |register| {
            register.prepare(ballot).map(|()| register.clone())
        })
        .await
    }

    /// Takes a state, if this and all others that promised it are still in the lives in which they did,
    /// as far as is known here.
    ///
    /// # Errors
    /// The database failed, or one of them has lost its disk since. The inner error: a later attempt
    /// came before.
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
        let (name, ballot) = (name.clone(), attempt.ballot);
        let taken = self.writer.run(move |write| {
            let promised = attempt.promised.iter().map(|(it, life)| (&**it, *life));
            let Some(lives) = lives(write)? else {
                return Ok(Err(TagStoreError::Record));
            };
            if !lives.allow(promised) {
                return Ok(Err(TagStoreError::Forgot));
            }
            let taken = update(write, &name, |register| register.accept(ballot, state))?;
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
                let Some(mut lives) = lives(write)? else {
                    return Ok(None);
                };
                lives.began(&owner, incarnation);
                let text = serde_json::to_string(&lives).unwrap_or_default();
                write
                    .open_table(STANDING)?
                    .insert(LIVES_KEY, text.as_str())?;
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
        self.writer
            .run(move |write| {
                let sound = |it: &Register| it.state.as_ref().is_none_or(TagState::is_sound);
                for (name, other) in page {
                    if !sound(&other) {
                        return Ok(None);
                    }
                    let learnt = update(write, &name, |register| register.learn(&other))?;
                    if learnt.is_none() {
                        return Ok(None);
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
        let name = name.clone();
        self.writer
            .run(move |write| update(write, &name, change))
            .await?
            .ok_or(TagStoreError::Record)
    }

    /// Runs `job` where it may block.
    async fn read<R: Send + 'static>(
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
    /// The runtime shut down meanwhile.
    #[error("interrupted by the shutdown of the process, or by a failure of the disk")]
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

const REGISTERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("registers");
const REPOSITORIES: TableDefinition<'_, &str, u64> = TableDefinition::new("repositories");
const STANDING: TableDefinition<'_, &str, &str> = TableDefinition::new("standing");
const STANDING_KEY: &str = "standing";
const LIVES_KEY: &str = "lives";
/// Of versions before the first release.
const OLD_TAGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tags");

/// Which lives of other owners began with what this one told them; nothing when it cannot be read.
fn lives(write: &WriteTransaction) -> Result<Option<Lives>, redb::Error> {
    let table = write.open_table(STANDING)?;
    let found = table.get(LIVES_KEY)?;
    let Some(text) = found else {
        return Ok(Some(Lives::default()));
    };
    Ok(serde_json::from_str(text.value()).ok())
}

/// Makes the tables too, so that readers need not handle their absence.
fn create(path: &Path) -> Result<Database, redb::Error> {
    let db = Database::builder().set_cache_size(CACHE).create(path)?;
    let mut write = db.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    write.open_table(REGISTERS)?;
    write.open_table(REPOSITORIES)?;
    write.open_table(STANDING)?;
    write.commit()?;
    Ok(db)
}

/// What the file says, or a new incarnation that does not vote.
fn standing(db: &Database) -> Result<Standing, TagStoreError> {
    let read = || {
        let table = db.begin_read()?.open_table(STANDING)?;
        let found = table.get(STANDING_KEY)?;
        Ok(found.map(|text| text.value().to_owned()))
    };
    if let Some(text) = read().map_err(TagStoreError::database)? {
        return serde_json::from_str(&text).map_err(|_| TagStoreError::Record);
    }
    let standing = Standing {
        incarnation: super::chance(),
        founders: Vec::new(),
        replicas: 0,
    };
    let text = serde_json::to_string(&standing).map_err(|_| TagStoreError::Record)?;
    let write = || {
        let mut write = db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        write
            .open_table(STANDING)?
            .insert(STANDING_KEY, text.as_str())?;
        Ok(write.commit()?)
    };
    write().map_err(TagStoreError::database)?;
    Ok(standing)
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
