//! The queue's tables and the changes that keep them in step.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::record::{name_of, read_record, write_record};
use super::{QueueError, Task};

/// (priority, due, id) to the task's record.
const TASKS: TableDefinition<'_, Place, &[u8]> = TableDefinition::new("tasks");
/// The id of a task to its priority and when it is due.
const DUE: TableDefinition<'_, u64, (u8, u64)> = TableDefinition::new("due");
/// Kind and key to the id of the current task.
const CURRENT: TableDefinition<'_, &[u8], u64> = TableDefinition::new("current");
/// The id of a dead letter to its priority, when it was due last, and its record.
const DEAD: TableDefinition<'_, u64, (u8, u64, &[u8])> = TableDefinition::new("dead");
/// Kind and key to the id of the dead letter.
const DEAD_NAMES: TableDefinition<'_, &[u8], u64> = TableDefinition::new("dead names");
/// `NEXT_ID`: ids are not used twice, so that a late `done` cannot hit another task.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const NEXT_ID: &str = "next_id";

/// Where a task stands: its priority, when it is due, and its id.
pub(super) type Place = (u8, u64, u64);

pub(super) fn place_of(task: &Task) -> Place {
    (task.priority as u8, task.due_ms, task.id)
}

pub(super) struct Reading {
    pub(super) tasks: redb::ReadOnlyTable<Place, &'static [u8]>,
    due: redb::ReadOnlyTable<u64, (u8, u64)>,
    pub(super) current: redb::ReadOnlyTable<&'static [u8], u64>,
    pub(super) dead: redb::ReadOnlyTable<u64, (u8, u64, &'static [u8])>,
    dead_names: redb::ReadOnlyTable<&'static [u8], u64>,
}

impl Reading {
    pub(super) fn new(begun: &ReadTransaction) -> Result<Self, QueueError> {
        Ok(Self {
            tasks: begun.open_table(TASKS)?,
            due: begun.open_table(DUE)?,
            current: begun.open_table(CURRENT)?,
            dead: begun.open_table(DEAD)?,
            dead_names: begun.open_table(DEAD_NAMES)?,
        })
    }

    /// Whether a task, also a dead letter, has a name that begins so.
    pub(super) fn has_prefix(&self, prefix: &[u8]) -> Result<bool, QueueError> {
        for names in [&self.current, &self.dead_names] {
            if let Some(first) = names.range(prefix..)?.next()
                && first?.0.value().starts_with(prefix)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The names that begin so, of dead letters too.
    pub(super) fn with_prefix(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, QueueError> {
        let mut found = Vec::new();
        for names in [&self.current, &self.dead_names] {
            for entry in names.range(prefix..)? {
                let name = entry?.0.value().to_vec();
                if !name.starts_with(prefix) {
                    break;
                }
                found.push(name);
            }
        }
        Ok(found)
    }

    /// The task of an id.
    pub(super) fn task(&self, id: u64) -> Result<Option<Task>, QueueError> {
        let Some((priority, due_ms)) = self.due.get(id)?.map(|due| due.value()) else {
            return Ok(None);
        };
        let place = (priority, due_ms, id);
        let record = self.tasks.get(place)?;
        record
            .map(|record| read_record(place, record.value()))
            .transpose()
    }

    /// The earliest birth among the `most` tasks that were pushed first.
    pub(super) fn first_born(&self, most: usize) -> Result<Option<u64>, QueueError> {
        let mut first = None;
        for entry in self.due.range(0..)?.take(most) {
            let born = self.task(entry?.0.value())?.map(|task| task.born_ms);
            first = first.into_iter().chain(born).min();
        }
        Ok(first)
    }

    pub(super) fn is_current(&self, task: &Task) -> Result<bool, QueueError> {
        let current = self.current.get(&*name_of(&task.kind, &task.key))?;
        Ok(current.is_some_and(|id| id.value() == task.id))
    }
}

pub(super) struct Writing<'txn> {
    tasks: redb::Table<'txn, Place, &'static [u8]>,
    due: redb::Table<'txn, u64, (u8, u64)>,
    current: redb::Table<'txn, &'static [u8], u64>,
    counters: redb::Table<'txn, &'static str, u64>,
    dead: redb::Table<'txn, u64, (u8, u64, &'static [u8])>,
    dead_names: redb::Table<'txn, &'static [u8], u64>,
}

impl<'txn> Writing<'txn> {
    pub(super) fn new(begun: &'txn WriteTransaction) -> Result<Self, QueueError> {
        Ok(Self {
            tasks: begun.open_table(TASKS)?,
            due: begun.open_table(DUE)?,
            current: begun.open_table(CURRENT)?,
            counters: begun.open_table(COUNTERS)?,
            dead: begun.open_table(DEAD)?,
            dead_names: begun.open_table(DEAD_NAMES)?,
        })
    }

    /// Adds the task under a new id, as the current one of its name.
    pub(super) fn add(&mut self, mut task: Task) -> Result<u64, QueueError> {
        task.id = self.counters.get(NEXT_ID)?.map_or(1, |id| id.value());
        self.counters.insert(NEXT_ID, task.id + 1)?;
        let name = name_of(&task.kind, &task.key);
        // The new one makes up for it.
        if let Some(dead) = self.dead_names.remove(&*name)?.map(|id| id.value()) {
            self.dead.remove(dead)?;
        }
        self.current.insert(&*name, task.id)?;
        self.insert(&task)?;
        Ok(task.id)
    }

    pub(super) fn put_back(&mut self, id: u64, due_ms: u64) -> Result<(), QueueError> {
        let Some(mut task) = self.remove(id)? else {
            return Ok(());
        };
        let name = name_of(&task.kind, &task.key);
        if self.current.get(&*name)?.is_some() {
            return Ok(());
        }
        task.attempts = task.attempts.saturating_add(1);
        task.due_ms = due_ms;
        self.current.insert(&*name, id)?;
        self.insert(&task)
    }

    /// Lets a current task be due at another time.
    pub(super) fn hurry(&mut self, id: u64, due_ms: u64) -> Result<(), QueueError> {
        let Some(mut task) = self.remove(id)? else {
            return Ok(());
        };
        task.due_ms = due_ms;
        self.current.insert(&*name_of(&task.kind, &task.key), id)?;
        self.insert(&task)
    }

    /// Puts a task aside. It goes instead when another of its name was added since it was taken.
    pub(super) fn bury(&mut self, id: u64) -> Result<(), QueueError> {
        let Some(mut task) = self.remove(id)? else {
            return Ok(());
        };
        let name = name_of(&task.kind, &task.key);
        if self.current.get(&*name)?.is_some() {
            return Ok(());
        }
        task.attempts = task.attempts.saturating_add(1);
        if let Some(older) = self.dead_names.remove(&*name)?.map(|id| id.value()) {
            self.dead.remove(older)?;
        }
        let record = write_record(&task);
        self.dead
            .insert(id, (task.priority as u8, task.due_ms, &*record))?;
        self.dead_names.insert(&*name, id)?;
        Ok(())
    }

    /// Takes a dead letter out.
    pub(super) fn unbury(&mut self, id: u64) -> Result<Option<Task>, QueueError> {
        let Some(entry) = self.dead.remove(id)? else {
            return Ok(None);
        };
        let (priority, due_ms, record) = entry.value();
        let task = read_record((priority, due_ms, id), record)?;
        drop(entry);
        self.dead_names.remove(&*name_of(&task.kind, &task.key))?;
        Ok(Some(task))
    }

    /// Puts a dead letter among the others again, as if it were new.
    pub(super) fn revive(&mut self, id: u64, due_ms: u64) -> Result<bool, QueueError> {
        let Some(mut task) = self.unbury(id)? else {
            return Ok(false);
        };
        (task.attempts, task.due_ms, task.born_ms) = (0, due_ms, due_ms);
        self.current.insert(&*name_of(&task.kind, &task.key), id)?;
        self.insert(&task)?;
        Ok(true)
    }

    fn insert(&mut self, task: &Task) -> Result<(), QueueError> {
        self.tasks.insert(place_of(task), &*write_record(task))?;
        self.due
            .insert(task.id, (task.priority as u8, task.due_ms))?;
        Ok(())
    }

    /// Takes the task out, and its name if it is the current one.
    pub(super) fn remove(&mut self, id: u64) -> Result<Option<Task>, QueueError> {
        let Some((priority, due_ms)) = self.due.remove(id)?.map(|due| due.value()) else {
            return Ok(None);
        };
        let at = (priority, due_ms, id);
        let task = match self.tasks.remove(at)? {
            Some(record) => read_record(at, record.value())?,
            None => return Ok(None),
        };
        let name = name_of(&task.kind, &task.key);
        let current = self.current.get(&*name)?.map(|id| id.value());
        if current == Some(id) {
            self.current.remove(&*name)?;
        }
        Ok(Some(task))
    }
}
