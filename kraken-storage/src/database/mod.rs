//! Database files that come into being whole, and that go on by themselves once a full volume has room again.

mod health;
mod once;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableTable as _, StorageBackend, StorageError,
    TableDefinition,
};

use self::health::{Health, State, Watched};
pub use self::once::make_once;

/// How long writes are refused after one that found no room: each such write makes the file be opened anew,
/// which takes the longer the more there is in it.
const PAUSE: Duration = Duration::from_secs(2);

/// What [`DatabaseFile::prove`] writes.
const PROOF: TableDefinition<'_, (), u64> = TableDefinition::new("proof");

type Opening = Box<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// A redb database in a file, which is opened anew after its volume was full. Every call waits for the disk.
///
/// After any error of its file redb refuses all that comes later, until it is opened anew. When a write found no
/// room that can be done at any time: a transaction writes where nothing refers to yet, and all before it is as it
/// was. When the disk itself failed, and above all when it could not sync, the kernel may take for written what
/// is not on the disk (<https://wiki.postgresql.org/wiki/Fsync_Errors>): then everything is refused until the
/// process is started anew, as somebody has to look at the disk first.
pub struct DatabaseFile {
    path: PathBuf,
    cache: usize,
    opening: Opening,
    pause: Duration,
    opened: RwLock<Opened>,
    refused: Mutex<Option<Refused>>,
}

/// The file as it is open now.
struct Opened {
    /// Nothing after the file could not be opened anew.
    database: Option<Database>,
    health: Arc<Health>,
}

/// The last write failed.
struct Refused {
    until: Instant,
    why: String,
}

impl Opened {
    fn is_to_be_opened(&self) -> bool {
        self.database.is_none() || self.health.state() == State::Full
    }

    fn database(&self) -> Result<&Database, DatabaseError> {
        match self.health.state() {
            State::Broken => Err(error(
                io::ErrorKind::Other,
                "its disk has failed: once that is mended, start the process anew",
            )),
            _ => self.database.as_ref().ok_or_else(no_room),
        }
    }
}

impl DatabaseFile {
    /// Opens the file `path`, or creates it. Up to `cache` bytes of it are kept in memory.
    ///
    /// # Errors
    /// It is open already, cannot be read or written, or is no database.
    pub fn open(path: impl AsRef<Path>, cache: usize) -> Result<Self, DatabaseError> {
        let path = path.as_ref().to_owned();
        let file = path.clone();
        let opening = move || -> io::Result<Box<dyn StorageBackend>> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let backend = FileBackend::new(options.open(&file)?);
            Ok(Box::new(backend.map_err(io::Error::other)?))
        };
        Self::with(path, (cache, PAUSE), Box::new(opening))
    }

    fn with(
        path: PathBuf,
        (cache, pause): (usize, Duration),
        opening: Opening,
    ) -> Result<Self, DatabaseError> {
        let opened = opened(&opening, cache)?;
        Ok(Self {
            path,
            cache,
            opening,
            pause,
            opened: RwLock::new(opened),
            refused: Mutex::new(None),
        })
    }

    /// Looks into the database.
    ///
    /// # Errors
    /// Those of `look`; the file cannot be opened anew.
    pub fn read<T, E: From<DatabaseError>>(
        &self,
        look: impl FnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, E> {
        look(self.opened()?.database()?)
    }

    /// Changes the database.
    ///
    /// # Errors
    /// Those of `change`, of which nothing may be made then; a write found no room a moment ago.
    pub fn write<T, E: From<DatabaseError>>(
        &self,
        change: impl FnOnce(&Database) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.is_refused_now() {
            return Err(no_room().into());
        }
        let opened = self.opened()?;
        let changed = change(opened.database()?);
        match opened.health.failure() {
            Some(why) => self.failed(why),
            None if changed.is_ok() => self.succeeded(),
            None => {}
        }
        changed
    }

    /// Makes a small change that is durable afterwards, to see whether it can be made.
    ///
    /// # Errors
    /// It cannot.
    pub fn prove(&self) -> Result<(), redb::Error> {
        self.write(|database| {
            let mut write = database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            {
                let mut table = write.open_table(PROOF)?;
                let before = table.get(())?.map_or(0, |count| count.value());
                table.insert((), before.wrapping_add(1))?;
            }
            Ok(write.commit()?)
        })
    }

    /// Why the last write failed; nothing once one has succeeded again.
    pub fn failure(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().map(|refused| refused.why.clone())
    }

    /// Why it cannot be written now: after a write that failed it tries again.
    pub fn why_not_writable(&self) -> Option<String> {
        self.failure()?;
        let error = self.prove().err()?;
        Some(self.failure().unwrap_or_else(|| error.to_string()))
    }

    /// The file, opened anew if it has to be.
    fn opened(&self) -> Result<RwLockReadGuard<'_, Opened>, DatabaseError> {
        let look = || self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let seen = look();
        if !seen.is_to_be_opened() {
            return Ok(seen);
        }
        drop(seen);
        {
            // Nobody reads now, so that the file is closed with its database.
            let mut current = self.opened.write().unwrap_or_else(PoisonError::into_inner);
            if current.is_to_be_opened() {
                current.database = None;
                *current = opened(&self.opening, self.cache)?;
            }
        }
        Ok(look())
    }

    fn is_refused_now(&self) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let until = refused.as_ref().map(|refused| refused.until);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn failed(&self, why: String) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_ref().is_none_or(|before| before.why != why) {
            let file = self.path.display();
            tracing::error!(%file, error = why, "a database cannot be written");
        }
        let until = Instant::now() + self.pause;
        *refused = Some(Refused { until, why });
    }

    fn succeeded(&self) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.take().is_some() {
            let file = self.path.display();
            tracing::info!(%file, "the database can be written again");
        }
    }
}

impl fmt::Debug for DatabaseFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DatabaseFile");
        shown.field("path", &self.path).finish_non_exhaustive()
    }
}

fn opened(opening: &Opening, cache: usize) -> Result<Opened, DatabaseError> {
    let health = Arc::new(Health::default());
    let file = Watched::new(opening()?, health.clone());
    let database = Database::builder()
        .set_cache_size(cache)
        .create_with_backend(file)?;
    Ok(Opened {
        database: Some(database),
        health,
    })
}

fn no_room() -> DatabaseError {
    let why = "its volume was full a moment ago: make room, and it goes on by itself";
    error(io::ErrorKind::StorageFull, why)
}

fn error(kind: io::ErrorKind, why: &str) -> DatabaseError {
    DatabaseError::Storage(StorageError::Io(io::Error::new(kind, why)))
}
