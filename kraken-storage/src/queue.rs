//! Tasks that survive a crash until they are done.
//!
//! Every call waits for the disk: from async code, call it in `spawn_blocking`. A call that
//! changes the queue is durable when it returns, except [`DurableQueue::take_due`], which marks
//! tasks as taken in memory only, so that a crash gives them back, and [`DurableQueue::give_back`].
//!
//! Tasks are kept in the order of (priority, due, id), and nothing holds more of them in memory than a
//! call asks for, besides the ids of the taken ones. Always true: of the tasks with one kind and key, at
//! most one is the *current* one, the one pushed last; one that is not current was taken when the
//! current one was pushed, and the current one makes up for it.

mod record;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{ReadableDatabase, ReadableTableMetadata};

use self::record::{name_of, read_record};
use self::tables::{Place, Reading, Writing, place_of};
use crate::database::{DatabaseFile, make_once};

/// The database's page cache, in bytes; its own default would be 1 GiB.
const CACHE: usize = 16 << 20;

/// Which of the tasks that are due is taken first. One in four is the one that has been due for the
/// longest time, whatever its priority, so that none waits for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Before all others.
    High = 0,
    /// Before those that can wait.
    #[default]
    Normal = 1,
    /// When nothing else is due.
    Low = 2,
}

impl Priority {
    const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

/// One in so many tasks is taken for its age, not its priority.
const FOR_ITS_AGE: u64 = 4;

/// So many of the first tasks may hold the oldest one: a dead letter that is revived keeps its id, and is
/// born anew.
const LOOKED_AT: usize = 1000;

/// A piece of work to do at or after a time, until it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Task {
    /// Names the task in this queue.
    pub id: u64,
    /// How much it matters.
    pub priority: Priority,
    /// What sort of work it is.
    pub kind: String,
    /// What it is about; kind and key together tell tasks apart.
    pub key: String,
    /// What the work needs to know.
    pub payload: Vec<u8>,
    /// How often it has been tried and put back.
    pub attempts: u32,
    /// When it is to be done, in milliseconds on the caller's clock.
    pub due_ms: u64,
    /// When it was to be done first.
    pub born_ms: u64,
}

/// A queue of [`Task`]s in a file. Clones share it. Synchronous: see the [module](self).
#[derive(Clone)]
pub struct DurableQueue {
    inner: Arc<Inner>,
}

struct Inner {
    database: DatabaseFile,
    /// Locked over every call.
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// The tasks that were taken and are neither done nor put back.
    ids: BTreeSet<u64>,
    /// How many were taken so far.
    count: u64,
}

impl DurableQueue {
    /// Opens the queue in the file `path`, which is made when it is missing. No task is taken.
    ///
    /// # Errors
    /// [`QueueError::InUse`], or the file cannot be read or written, or is no queue.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, QueueError> {
        let path = path.as_ref();
        make_once(path, |new| Inner::open(new).map(drop)).map_err(failed("be made"))?;
        Ok(Self {
            inner: Arc::new(Inner::open(path)?),
        })
    }

    /// Adds a task of no particular priority: see [`DurableQueue::push_ranked`].
    ///
    /// # Errors
    /// The file cannot be written; the task is not there then.
    pub fn push(
        &self,
        kind: &str,
        key: &str,
        payload: &[u8],
        due_ms: u64,
    ) -> Result<u64, QueueError> {
        self.push_ranked(Priority::Normal, kind, key, payload, due_ms)
    }

    /// Adds a task and gives its id.
    ///
    /// When a task of this kind and key waits already, nothing is added: that task stays as it is,
    /// with its priority, payload and due time, and its id is given. A taken task does not count, as the work
    /// on it may have missed what this one is about.
    ///
    /// # Errors
    /// The file cannot be written; the task is not there then.
    pub fn push_ranked(
        &self,
        priority: Priority,
        kind: &str,
        key: &str,
        payload: &[u8],
        due_ms: u64,
    ) -> Result<u64, QueueError> {
        let taken = self.inner.taken();
        let name = name_of(kind, key);
        if let Some(id) = self
            .inner
            .current(&name)?
            .filter(|id| !taken.ids.contains(id))
        {
            return Ok(id);
        }
        let task = Task {
            id: 0,
            priority,
            kind: kind.to_string(),
            key: key.to_string(),
            payload: payload.to_vec(),
            attempts: 0,
            due_ms,
            born_ms: due_ms,
        };
        self.inner.change(|tables| tables.add(task))
    }

    /// Takes up to `max` tasks that are due at `now_ms`: those that matter most, and of those the
    /// longest due; see [`Priority`]. Until [`DurableQueue::done`] or [`DurableQueue::retry`] no other
    /// call takes them; when the process ends before that, they wait again.
    ///
    /// # Errors
    /// The file cannot be read or written; nothing is taken then.
    pub fn take_due(&self, now_ms: u64, max: usize) -> Result<Vec<Task>, QueueError> {
        let mut taken = self.inner.taken();
        let mut stale = Vec::new();
        let levels = self.inner.look(|tables| {
            let mut levels = Priority::ALL.map(|_| VecDeque::new());
            for (level, priority) in levels.iter_mut().zip(0_u8..) {
                let due = (priority, 0, 0)..=(priority, now_ms, u64::MAX);
                for entry in tables.tasks.range(due)? {
                    if level.len() == max {
                        break;
                    }
                    let (at, record) = entry?;
                    if taken.ids.contains(&at.value().2) {
                        continue;
                    }
                    let task = read_record(at.value(), record.value())?;
                    match tables.is_current(&task)? {
                        true => level.push_back(task),
                        false => stale.push(task),
                    }
                }
            }
            Ok(levels)
        })?;
        if !stale.is_empty() {
            self.inner.change(|tables| {
                stale
                    .iter()
                    .try_for_each(|task| tables.remove(task.id).map(drop))
            })?;
        }
        let due = chosen(levels, max, taken.count);
        taken.count += due.len() as u64;
        taken.ids.extend(due.iter().map(|task| task.id));
        Ok(due)
    }

    /// Forgets a task. Not an error when it is not there.
    ///
    /// # Errors
    /// The file cannot be written; the task stays as it is then.
    pub fn done(&self, id: u64) -> Result<(), QueueError> {
        let mut taken = self.inner.taken();
        self.inner.change(|tables| tables.remove(id).map(drop))?;
        taken.ids.remove(&id);
        Ok(())
    }

    /// Puts a task back, due at `due_ms` and with one attempt more. It goes instead when another of
    /// its kind and key was pushed since it was taken. Not an error when it is not there.
    ///
    /// # Errors
    /// The file cannot be written; the task stays as it is then.
    pub fn retry(&self, id: u64, due_ms: u64) -> Result<(), QueueError> {
        let mut taken = self.inner.taken();
        self.inner.change(|tables| tables.put_back(id, due_ms))?;
        taken.ids.remove(&id);
        Ok(())
    }

    /// Gives a task back as it was taken, in memory only: for one whose end cannot be written.
    pub fn give_back(&self, id: u64) {
        self.inner.taken().ids.remove(&id);
    }

    /// Puts a task aside as a dead letter: nobody takes it any more, until it is
    /// [revived](DurableQueue::revive) or another of its kind and key is pushed. It goes instead when
    /// that has happened since it was taken. Not an error when it is not there.
    ///
    /// # Errors
    /// The file cannot be written; the task stays as it is then.
    pub fn bury(&self, id: u64) -> Result<(), QueueError> {
        let mut taken = self.inner.taken();
        self.inner.change(|tables| tables.bury(id))?;
        taken.ids.remove(&id);
        Ok(())
    }

    /// Up to `max` dead letters by their ids, from the one after `after` on.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn dead(&self, after: Option<u64>, max: usize) -> Result<Vec<Task>, QueueError> {
        let from = after.map_or(0, |id| id.saturating_add(1));
        self.inner.look(|tables| {
            let mut page = Vec::new();
            for entry in tables.dead.range(from..)?.take(max) {
                let (id, letter) = entry?;
                let (priority, due_ms, record) = letter.value();
                page.push(read_record((priority, due_ms, id.value()), record)?);
            }
            Ok(page)
        })
    }

    /// How many dead letters there are.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn dead_len(&self) -> Result<u64, QueueError> {
        self.inner.look(|tables| Ok(tables.dead.len()?))
    }

    /// Makes a dead letter a task again, due at `due_ms`, and says whether there was one.
    ///
    /// # Errors
    /// The file cannot be written; it stays a dead letter then.
    pub fn revive(&self, id: u64, due_ms: u64) -> Result<bool, QueueError> {
        self.inner.change(|tables| tables.revive(id, due_ms))
    }

    /// Forgets a dead letter, and says whether there was one.
    ///
    /// # Errors
    /// The file cannot be written; it stays then.
    pub fn drop_dead(&self, id: u64) -> Result<bool, QueueError> {
        self.inner.change(|tables| Ok(tables.unbury(id)?.is_some()))
    }

    /// When the first task that waits is due, in milliseconds; `None` when none waits.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_due(&self) -> Result<Option<u64>, QueueError> {
        let taken = self.inner.taken();
        self.inner.look(|tables| {
            let mut first = None;
            for priority in 0..Priority::ALL.len() as u8 {
                let level = (priority, 0, 0)..=(priority, u64::MAX, u64::MAX);
                for entry in tables.tasks.range(level)? {
                    let (_, due_ms, id) = entry?.0.value();
                    if !taken.ids.contains(&id) {
                        first = Some(first.map_or(due_ms, |first: u64| first.min(due_ms)));
                        break;
                    }
                }
            }
            Ok(first)
        })
    }

    /// Whether a task of this kind and key waits or is taken.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn contains(&self, kind: &str, key: &str) -> Result<bool, QueueError> {
        Ok(self.inner.current(&name_of(kind, key))?.is_some())
    }

    /// Whether there is a task of this kind whose key begins with `prefix`: waiting, taken or a dead
    /// letter. Takes as long for a million tasks as for one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn contains_prefix(&self, kind: &str, prefix: &str) -> Result<bool, QueueError> {
        let prefix = name_of(kind, prefix);
        self.inner.look(|tables| tables.has_prefix(&prefix))
    }

    /// The keys that begin with `prefix` of the tasks of this kind: waiting, taken and dead letters.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn keys(&self, kind: &str, prefix: &str) -> Result<Vec<String>, QueueError> {
        let (names, kind) = (name_of(kind, prefix), name_of(kind, ""));
        let names = self.inner.look(|tables| tables.with_prefix(&names))?;
        let keys = names
            .iter()
            .map(|name| String::from_utf8_lossy(&name[kind.len()..]));
        Ok(keys.map(Into::into).collect())
    }

    /// Drops the tasks of this kind whose keys begin with `prefix`, but for those that are taken: what they
    /// are about is gone. Gives how many.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn forget(&self, kind: &str, prefix: &str) -> Result<usize, QueueError> {
        let mut forgotten = 0;
        for key in self.keys(kind, prefix)? {
            let waiting = {
                let taken = self.inner.taken();
                let id = self.inner.current(&name_of(kind, &key))?;
                id.filter(|id| !taken.ids.contains(id))
            };
            if let Some(id) = waiting {
                self.done(id)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Lets the tasks of this kind whose keys begin with `prefix`, and that were not tried yet, be due at `due_ms` if
    /// they are due later.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn hurry(&self, kind: &str, prefix: &str, due_ms: u64) -> Result<(), QueueError> {
        for key in self.keys(kind, prefix)? {
            let taken = self.inner.taken();
            let id = self.inner.current(&name_of(kind, &key))?;
            let Some(id) = id.filter(|id| !taken.ids.contains(id)) else {
                continue;
            };
            let task = self.inner.look(|tables| tables.task(id))?;
            // Every change waits for the disk.
            if task.is_some_and(|task| task.attempts == 0 && task.due_ms > due_ms) {
                self.inner.change(|tables| tables.hurry(id, due_ms))?;
            }
        }
        Ok(())
    }

    /// Whether a task of this kind and key is taken, or was before.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn was_taken(&self, kind: &str, key: &str) -> Result<bool, QueueError> {
        let taken = self.inner.taken();
        let Some(id) = self.inner.current(&name_of(kind, key))? else {
            return Ok(false);
        };
        let task = self.inner.look(|tables| tables.task(id))?;
        Ok(taken.ids.contains(&id) || task.is_some_and(|task| task.attempts > 0))
    }

    /// Why tasks cannot be added now; after a write that failed this tries again. Nothing when they can.
    pub fn why_not_writable(&self) -> Option<String> {
        let why = self.inner.database.why_not_writable()?;
        Some(format!("its queue cannot be written: {why}"))
    }

    /// How many tasks there are, waiting and taken.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn len(&self) -> Result<u64, QueueError> {
        self.inner.look(|tables| Ok(tables.tasks.len()?))
    }

    /// Whether there is no task, neither waiting nor taken.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_empty(&self) -> Result<bool, QueueError> {
        Ok(self.len()? == 0)
    }

    /// When the oldest task, waiting or taken, was to be done first, in milliseconds; `None` when there is
    /// none. Of very many tasks it looks at those that were pushed first, to take no longer for a million.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn first_born(&self) -> Result<Option<u64>, QueueError> {
        self.inner.look(|tables| tables.first_born(LOOKED_AT))
    }

    /// Up to `max` tasks in the order of (priority, due, id), waiting and taken, from the one after `after`
    /// on. Give the last task of a page to get the next; tasks that move between the calls may be
    /// missed or seen twice.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn page(&self, after: Option<&Task>, max: usize) -> Result<Vec<Task>, QueueError> {
        let behind = |task| {
            let (priority, due_ms, id) = place_of(task);
            (priority, due_ms, id + 1)
        };
        let from: Place = after.map_or((0, 0, 0), behind);
        self.inner.look(|tables| {
            let mut page = Vec::new();
            for entry in tables.tasks.range(from..)?.take(max) {
                let (at, record) = entry?;
                page.push(read_record(at.value(), record.value())?);
            }
            Ok(page)
        })
    }
}

/// Up to `max` of the due tasks, which are given by priority and then by their due times, after
/// `before` others.
fn chosen(mut levels: [VecDeque<Task>; 3], max: usize, before: u64) -> Vec<Task> {
    let oldest = |levels: &[VecDeque<Task>; 3]| {
        let heads = levels.iter().map(VecDeque::front).enumerate();
        let heads = heads.filter_map(|(level, head)| Some((head?.due_ms, level)));
        heads.min().map(|(_, level)| level)
    };
    let foremost = |levels: &[VecDeque<Task>; 3]| levels.iter().position(|it| !it.is_empty());
    let pick = |count: u64| {
        let level = match count % FOR_ITS_AGE == FOR_ITS_AGE - 1 {
            true => oldest(&levels),
            false => foremost(&levels),
        };
        levels[level?].pop_front()
    };
    (before..).take(max).map_while(pick).collect()
}

impl fmt::Debug for DurableQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableQueue").finish_non_exhaustive()
    }
}

/// Why the queue failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The file is open already, in this process or another.
    #[error("queue {0} is open already: stop the other process or use another file")]
    InUse(String),
    /// The file cannot be read or written. Once a volume that was full has room again the queue goes on by
    /// itself; after any other failure of its disk it refuses everything until it is dropped and opened again.
    #[error("the queue cannot {doing}: {why}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the database says.
        why: String,
    },
    /// A record in the file is not one of ours.
    #[error("task {id} in the queue is damaged: {what}")]
    Damaged {
        /// The task.
        id: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl QueueError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

impl From<redb::StorageError> for QueueError {
    fn from(error: redb::StorageError) -> Self {
        failed("be read or written")(error)
    }
}

impl From<redb::DatabaseError> for QueueError {
    fn from(error: redb::DatabaseError) -> Self {
        failed("be opened")(error)
    }
}

impl From<redb::TableError> for QueueError {
    fn from(error: redb::TableError) -> Self {
        failed("be read or written")(error)
    }
}

fn failed<E: fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> QueueError {
    move |error| QueueError::Failed {
        doing,
        why: error.to_string(),
    }
}

impl Inner {
    fn open(path: &Path) -> Result<Self, QueueError> {
        let database = DatabaseFile::open(path, CACHE).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                QueueError::InUse(path.display().to_string())
            }
            error => failed("be opened")(error),
        })?;
        let inner = Self {
            database,
            taken: Mutex::default(),
        };
        // Makes the tables, so that readers find them.
        inner.change(|_| Ok(()))?;
        Ok(inner)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // It changes in one step each, after the database: no half state is seen.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look<T>(
        &self,
        look: impl FnOnce(&Reading) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        self.database.read(|database| {
            let begun = database.begin_read().map_err(failed("be read"))?;
            look(&Reading::new(&begun)?)
        })
    }

    /// Makes one change, all of it or nothing.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Writing<'_>) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        self.database.write(|database| {
            let begun = database.begin_write().map_err(failed("be written"))?;
            let result = change(&mut Writing::new(&begun)?)?;
            begun.commit().map_err(failed("be written"))?;
            Ok(result)
        })
    }

    fn current(&self, name: &[u8]) -> Result<Option<u64>, QueueError> {
        self.look(|tables| Ok(tables.current.get(name)?.map(|id| id.value())))
    }
}
