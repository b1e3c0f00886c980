//! What other clusters lack, as far as an owner of tags knows: written down together with the change that
//! makes it so, and struck out once the other cluster has it.
//!
//! A tag is on the list of every owner that took it, so that none is forgotten with one of them.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::encoding;
use super::standing::{STANDING, put_standing};
use super::store::{REGISTERS, TagStore, TagStoreError};
use super::watch::Wanted;
use crate::link::RegisterName;
use crate::replicate::Known;

/// By `remote`, NUL, and the register's name: since when, in milliseconds since 1970.
const PENDING: TableDefinition<'_, &str, u64> = TableDefinition::new("pending");
/// By `remote`, NUL, and what a blob is called there: the upload by which it goes there.
const UPLOADS: TableDefinition<'_, &str, &str> = TableDefinition::new("uploads");
/// Those remotes that nothing is sent to.
const PAUSED_KEY: &str = "paused";
/// Registers that are looked at in one step when the rules have changed.
const STEP: usize = 1000;

/// A remote may lack a register, since now if it did not before.
pub(super) fn add(
    write: &WriteTransaction,
    remote: &str,
    name: &RegisterName,
) -> Result<(), redb::Error> {
    let mut pending = write.open_table(PENDING)?;
    let key = key(remote, &name.to_string());
    if pending.get(key.as_str())?.is_none() {
        pending.insert(key.as_str(), unix_ms())?;
    }
    Ok(())
}

/// Strikes out a register that a remote has.
pub(super) fn strike(
    write: &WriteTransaction,
    remote: &str,
    name: &RegisterName,
) -> Result<(), redb::Error> {
    let key = key(remote, &name.to_string());
    write.open_table(PENDING)?.remove(key.as_str())?;
    Ok(())
}

/// Forgets by which uploads blobs go to a remote.
pub(super) fn forget_uploads(write: &WriteTransaction, remote: &str) -> Result<(), redb::Error> {
    let (from, to) = all_of(remote);
    let range = from.as_str()..to.as_str();
    Ok(write.open_table(UPLOADS)?.retain_in(range, |_, _| false)?)
}

/// Forgets all that was written down for others than these remotes.
pub(super) fn forget_but(
    write: &WriteTransaction,
    stays: impl Fn(&str) -> bool,
) -> Result<(), redb::Error> {
    forget_in(&mut write.open_table(PENDING)?, &stays)?;
    forget_in(&mut write.open_table(UPLOADS)?, &stays)
}

fn forget_in<V: redb::Value>(
    table: &mut redb::Table<'_, &'static str, V>,
    stays: impl Fn(&str) -> bool,
) -> Result<(), redb::Error> {
    let mut behind = String::new();
    loop {
        let first = table.range(behind.as_str()..)?.next().transpose()?;
        let Some(first) = first.map(|(key, _)| key.value().to_owned()) else {
            return Ok(());
        };
        let remote = first.split('\0').next().unwrap_or_default();
        let (from, to) = all_of(remote);
        if !stays(remote) {
            table.retain_in(from.as_str()..to.as_str(), |_, _| false)?;
        }
        behind = to;
    }
}

/// Makes the tables.
pub(super) fn create(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(PENDING)?;
    write.open_table(UPLOADS)?;
    Ok(())
}

fn key(remote: &str, name: &str) -> String {
    format!("{remote}\0{name}")
}

/// All keys of a remote are from here to there.
fn all_of(remote: &str) -> (String, String) {
    (format!("{remote}\0"), format!("{remote}\u{1}"))
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX))
}

/// A register that another cluster may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) name: String,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: u64,
}

impl TagStore {
    /// A remote may lack all that it wants.
    pub(crate) async fn note_all(&self, wanted: &Wanted) -> Result<(), TagStoreError> {
        let mut after = None::<String>;
        loop {
            let page = self.page("", STEP, after.as_deref()).await?;
            let is_last = page.len() < STEP;
            after = page.last().map(|it| it.name.clone());
            let names = page.into_iter().filter_map(|listed| {
                let name: RegisterName = listed.name.parse().ok()?;
                wanted.wants(&name).then_some(listed.name)
            });
            self.note_pending(&wanted.remote, names.collect()).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// A remote may lack these, if it is still there.
    pub(crate) async fn note_pending(
        &self,
        remote: &str,
        names: Vec<String>,
    ) -> Result<(), TagStoreError> {
        let (remote, watch) = (remote.to_owned(), self.watch.clone());
        let note = move |write: &WriteTransaction| {
            if !watch.has(write, &remote)? {
                return Ok(());
            }
            let mut pending = write.open_table(PENDING)?;
            for name in names {
                pending.insert(key(&remote, &name).as_str(), unix_ms())?;
            }
            Ok(())
        };
        self.writer.run(note).await?;
        self.watch.tell();
        Ok(())
    }

    /// Up to `n` names that a remote may lack, behind `after`.
    pub(crate) async fn pending(
        &self,
        remote: &str,
        n: usize,
        after: Option<&str>,
    ) -> Result<Vec<Pending>, TagStoreError> {
        let (first, end) = all_of(remote);
        let from = after.map_or_else(|| first.clone(), |after| format!("{first}{after}\0"));
        self.read(move |db| {
            let pending = db.begin_read()?.open_table(PENDING)?;
            let range = pending.range(from.as_str()..end.as_str())?;
            let entry =
                |entry: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, u64>), _>| {
                    let (key, since) = entry?;
                    let name = key.value()[first.len()..].to_owned();
                    Ok(Pending {
                        name,
                        since_ms: since.value(),
                    })
                };
            range.take(n).map(entry).collect()
        })
        .await
    }

    /// Whether a remote may lack a name.
    pub(crate) async fn is_pending(&self, remote: &str, name: &str) -> Result<bool, TagStoreError> {
        let key = key(remote, name);
        self.read(move |db| {
            let pending = db.begin_read()?.open_table(PENDING)?;
            Ok(pending.get(key.as_str())?.is_some())
        })
        .await
    }

    /// How many names a remote may lack, and since when the first of them.
    pub(crate) async fn count_pending(
        &self,
        remote: &str,
    ) -> Result<(u64, Option<u64>), TagStoreError> {
        let (from, to) = all_of(remote);
        self.read(move |db| {
            let pending = db.begin_read()?.open_table(PENDING)?;
            let (mut count, mut first) = (0, None::<u64>);
            for entry in pending.range(from.as_str()..to.as_str())? {
                let since = entry?.1.value();
                count += 1;
                first = Some(first.map_or(since, |it| it.min(since)));
            }
            Ok((count, first))
        })
        .await
    }

    /// By the rules of this number, a remote has this of a register. Whether it is still that here, and these are
    /// the rules; otherwise it stays on the list.
    pub(crate) async fn sent(
        &self,
        (remote, turn): (&str, u64),
        name: &str,
        known: Known,
    ) -> Result<bool, TagStoreError> {
        let (key, name, watch) = (key(remote, name), name.to_owned(), self.watch.clone());
        let strike = move |write: &WriteTransaction| {
            if !watch.is_at(turn) {
                return Ok(false);
            }
            let registers = write.open_table(REGISTERS)?;
            let found = registers.get(name.as_str())?;
            let register = found.and_then(|bytes| encoding::decode(bytes.value()));
            // This owner may have missed what most have.
            let is_same = register.and_then(|it| it.state).is_none_or(|state| {
                let version = state.now.version;
                version < known.version || known.state == Some(state.id())
            });
            if is_same {
                write.open_table(PENDING)?.remove(key.as_str())?;
            }
            Ok(is_same)
        };
        self.writer.run(strike).await
    }

    /// The upload by which a blob goes to a remote.
    pub(crate) async fn upload(
        &self,
        remote: &str,
        blob: &str,
    ) -> Result<Option<String>, TagStoreError> {
        let key = key(remote, blob);
        self.read(move |db| {
            let uploads = db.begin_read()?.open_table(UPLOADS)?;
            let found = uploads.get(key.as_str())?;
            Ok(found.map(|it| it.value().to_owned()))
        })
        .await
    }

    /// Remembers that upload, or forgets it.
    pub(crate) async fn set_upload(
        &self,
        remote: &str,
        blob: &str,
        upload: Option<String>,
    ) -> Result<(), TagStoreError> {
        let (key, watch, remote) = (key(remote, blob), self.watch.clone(), remote.to_owned());
        let set = move |write: &WriteTransaction| {
            // What is stopped may still be about to write it.
            let is_there = watch.has(write, &remote)?;
            let mut uploads = write.open_table(UPLOADS)?;
            match upload.filter(|_| is_there) {
                Some(upload) => drop(uploads.insert(key.as_str(), upload.as_str())?),
                None => drop(uploads.remove(key.as_str())?),
            }
            Ok(())
        };
        self.writer.run(set).await
    }

    /// Those remotes that nothing is sent to until somebody says so.
    pub(crate) async fn paused(&self) -> Result<BTreeSet<String>, TagStoreError> {
        Ok(self.kept(PAUSED_KEY).await?.unwrap_or_default())
    }

    /// Remembers them.
    pub(crate) async fn set_paused(&self, paused: &BTreeSet<String>) -> Result<(), TagStoreError> {
        self.keep(PAUSED_KEY, paused).await
    }

    pub(super) async fn kept<T: serde::de::DeserializeOwned>(
        &self,
        key: &'static str,
    ) -> Result<Option<T>, TagStoreError> {
        let text = self.read(move |db| {
            let table = db.begin_read()?.open_table(STANDING)?;
            let found = table.get(key)?;
            Ok(found.map(|text| text.value().to_owned()))
        });
        let text = text.await?;
        let read = text.map(|text| serde_json::from_str(&text)).transpose();
        read.map_err(|_| TagStoreError::Record)
    }

    pub(super) async fn keep(
        &self,
        key: &'static str,
        what: &impl serde::Serialize,
    ) -> Result<(), TagStoreError> {
        let text = serde_json::to_string(what).map_err(|_| TagStoreError::Record)?;
        self.writer
            .run(move |write| put_standing(write, key, &text))
            .await
    }
}
