//! What an owner is among the others, and which lists of these it knows, on its disk.

use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use kraken_proto::tags::list::{ListId, Lists};
use kraken_proto::tags::rejoin::{Beginning, Lives, Standing, Told};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::store::{TagStore, TagStoreError};

pub(super) const STANDING: TableDefinition<'_, &str, &str> = TableDefinition::new("standing");
const STANDING_KEY: &str = "standing";
pub(super) const LIVES_KEY: &str = "lives";
const LISTS_KEY: &str = "lists";

impl TagStore {
    /// What this owner is among the others.
    pub fn standing(&self) -> Standing {
        let standing = self.standing.read();
        standing.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which lists of owners there are; nothing while it does not vote.
    pub fn lists(&self) -> Option<Lists> {
        let lists = self.lists.read();
        lists.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All that it tells others of itself.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn told(&self) -> Result<Told, TagStoreError> {
        let lives = self.read(|db| {
            let table = db.begin_read()?.open_table(STANDING)?;
            lives(&table)
        });
        Ok(Told {
            lives: lives.await?.ok_or(TagStoreError::Record)?,
            standing: self.standing(),
            lists: self
                .kept_lists
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }

    /// Goes by these lists, without having them on disk yet: they are those it had, or ask more.
    pub(super) fn assume(&self, lists: Lists) {
        let mut current = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(lists);
    }

    /// From now on the lists are these: what asks only others is refused.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_lists(&self, lists: Lists) -> Result<(), TagStoreError> {
        let text = serde_json::to_string(&lists).map_err(|_| TagStoreError::Record)?;
        let (store, now) = (self.clone(), lists.clone());
        let before = self.lists();
        let written = self.writer.run(move |write| {
            put_standing(write, LISTS_KEY, &text)?;
            // Here: what is written after this in the same transaction goes by them.
            store.assume(now);
            Ok(())
        });
        if let Err(error) = written.await {
            // Nobody was told of them: what is not known to be on the disk does not count as a step taken.
            *self.lists.write().unwrap_or_else(PoisonError::into_inner) = before;
            return Err(error);
        }
        self.tell_of(lists);
        Ok(())
    }

    /// Others may be told of these.
    fn tell_of(&self, lists: Lists) {
        let mut kept = self
            .kept_lists
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *kept = Some(lists);
    }

    /// Another incarnation, for one that does not vote yet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn renew(&self, incarnation: u64) -> Result<(), TagStoreError> {
        let standing = Standing {
            incarnation,
            ..self.standing()
        };
        self.stand(standing, None).await
    }

    /// This owner votes from now on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn begin(&self, beginning: Beginning, replicas: usize) -> Result<(), TagStoreError> {
        let standing = Standing {
            incarnation: self.standing().incarnation,
            founders: beginning.founders,
            replicas,
        };
        self.stand(standing, Some(beginning.lists)).await
    }

    async fn stand(&self, standing: Standing, lists: Option<Lists>) -> Result<(), TagStoreError> {
        let wrong = |_| TagStoreError::Record;
        let text = serde_json::to_string(&standing).map_err(wrong)?;
        let listed = lists.as_ref().map(serde_json::to_string).transpose();
        let listed = listed.map_err(wrong)?;
        self.writer
            .run(move |write| {
                put_standing(write, STANDING_KEY, &text)?;
                listed.map_or(Ok(()), |text| put_standing(write, LISTS_KEY, &text))
            })
            .await?;
        if let Some(lists) = lists {
            self.assume(lists.clone());
            self.tell_of(lists);
        }
        let mut current = self
            .standing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = standing;
        Ok(())
    }

    /// Whether an attempt may come to its end here.
    pub(super) fn allows(&self, asked: &[ListId]) -> bool {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        lists.as_ref().is_some_and(|lists| lists.allow(asked))
    }
}

pub(super) fn put_standing(
    write: &WriteTransaction,
    key: &str,
    text: &str,
) -> Result<(), redb::Error> {
    write.open_table(STANDING)?.insert(key, text)?;
    Ok(())
}

/// Which lives of other owners began with what this one told them; nothing when it cannot be read.
pub(super) fn lives(
    table: &impl ReadableTable<&'static str, &'static str>,
) -> Result<Option<Lives>, redb::Error> {
    let found = table.get(LIVES_KEY)?;
    let Some(text) = found else {
        return Ok(Some(Lives::default()));
    };
    Ok(serde_json::from_str(text.value()).ok())
}

/// The lists of owners in the file; nothing in that of one that does not vote.
pub(super) fn lists(db: &Database) -> Result<Option<Lists>, TagStoreError> {
    let read = || {
        let table = db.begin_read()?.open_table(STANDING)?;
        let found = table.get(LISTS_KEY)?;
        Ok(found.map(|text| text.value().to_owned()))
    };
    let text = read().map_err(TagStoreError::database)?;
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|_| TagStoreError::Record)
}

/// A later one than all before, if the clock was right.
fn new_incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(0));
    millis << 16 | (super::chance() & 0xffff)
}

/// What the file says, or a new incarnation that does not vote.
pub(super) fn standing(db: &Database) -> Result<Standing, TagStoreError> {
    let read = || {
        let table = db.begin_read()?.open_table(STANDING)?;
        let found = table.get(STANDING_KEY)?;
        Ok(found.map(|text| text.value().to_owned()))
    };
    if let Some(text) = read().map_err(TagStoreError::database)? {
        return serde_json::from_str(&text).map_err(|_| TagStoreError::Record);
    }
    let standing = Standing {
        incarnation: new_incarnation(),
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
