//! What other clusters lack, as far as an owner of tags knows: written down together with the change that
//! makes it so, and struck out once the other cluster has it.
//!
//! A tag is on the list of every owner that took it, so that none is forgotten with one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use regex::Regex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::encoding;
use super::standing::{STANDING, put_standing};
use super::store::{REGISTERS, TagStore, TagStoreError};
use crate::link::{Link, RegisterName};
use crate::platform::Platform;
use crate::replicate::Known;

/// By `remote`, NUL, and the register's name: since when, in milliseconds since 1970.
const PENDING: TableDefinition<'_, &str, u64> = TableDefinition::new("pending");
/// By `remote`, NUL, and what a blob is called there: the upload by which it goes there.
const UPLOADS: TableDefinition<'_, &str, &str> = TableDefinition::new("uploads");
/// The rules by which the list was made.
const RULES_KEY: &str = "remotes";
/// Those remotes that nothing is sent to.
const PAUSED_KEY: &str = "paused";
/// Registers that are looked at in one step when the rules have changed.
const STEP: usize = 1000;

/// Which registers another cluster is to have, or the backend.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The other cluster's name, or that of the backend.
    pub remote: String,
    /// Which ones it is to have.
    pub what: What,
    /// For which platforms; all when there are none.
    pub platforms: Vec<Platform>,
}

/// Which registers somebody is to have.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Tags of which one matches somewhere in `repository:tag`, and what belongs to them.
    Tags(Vec<Regex>),
    /// All of them, at this place.
    All(String),
}

impl Wanted {
    pub(crate) fn wants(&self, name: &RegisterName) -> bool {
        let What::Tags(tags) = &self.what else {
            return true;
        };
        match name {
            RegisterName::Tag(name) => {
                let name = name.to_string();
                tags.iter().any(|it| it.is_match(&name))
            }
            // Whether it is about an image that the other cluster has is asked there.
            RegisterName::Link(_, Link::Referrer { .. }) => true,
            // Whether it was ever there is asked there; it goes with its tag first.
            RegisterName::Link(_, Link::Manifest(_)) => true,
            RegisterName::Link(_, Link::Blob(_) | Link::Sparse(_)) => false,
        }
    }
}

/// Notes what other clusters lack.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<OnceLock<Watched>>);

struct Watched {
    wanted: RwLock<Vec<Wanted>>,
    changed: Arc<Notify>,
    /// When something was noted last.
    noted: Mutex<Option<Instant>>,
}

impl Watch {
    /// A register is another one than before.
    pub(super) fn note(
        &self,
        write: &WriteTransaction,
        name: &RegisterName,
    ) -> Result<(), redb::Error> {
        let Some(watched) = self.0.get() else {
            return Ok(());
        };
        let wanted = watched
            .wanted
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let remotes = wanted.iter().filter(|it| it.wants(name));
        for wanted in remotes {
            let mut pending = write.open_table(PENDING)?;
            let key = key(&wanted.remote, &name.to_string());
            if pending.get(key.as_str())?.is_none() {
                pending.insert(key.as_str(), unix_ms())?;
            }
            watched.told();
        }
        Ok(())
    }
}

impl Watched {
    /// Something was noted, or is about to be: whoever reads the list after this sees it, or is told again.
    fn told(&self) {
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.changed.notify_waiters();
    }
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
    /// From now on what these want is noted: before anything is changed, or before
    /// [`TagStore::note_new_rules`] notes what is there already.
    pub(crate) fn watch(&self, wanted: Vec<Wanted>) -> Arc<Notify> {
        let watched = self.watch.0.get_or_init(|| Watched {
            wanted: RwLock::default(),
            changed: Arc::new(Notify::new()),
            noted: Mutex::default(),
        });
        let mut now = watched
            .wanted
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *now = wanted;
        watched.changed.clone()
    }

    /// When something was noted last, since the start.
    pub(crate) fn noted_at(&self) -> Option<Instant> {
        let watched = self.watch.0.get()?;
        *watched.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes all that a remote wants whose rules are not those of the last time, and forgets what was noted
    /// for those that are not there any more.
    pub(crate) async fn note_new_rules(&self, wanted: &[Wanted]) -> Result<(), TagStoreError> {
        let rules = |it: &Wanted| -> Vec<String> {
            let platforms = it.platforms.iter().map(|it| format!("platform {it}"));
            match &it.what {
                What::Tags(tags) => {
                    let tags = tags.iter().map(|it| it.as_str().to_owned());
                    tags.chain(platforms).collect()
                }
                What::All(place) => vec![place.clone()],
            }
        };
        let now: BTreeMap<String, Vec<String>> = wanted
            .iter()
            .map(|it| (it.remote.clone(), rules(it)))
            .collect();
        // What was written by other rules is there once this is.
        self.writer.run(|_| Ok(())).await?;
        let before: BTreeMap<String, Vec<String>> = self.kept(RULES_KEY).await?.unwrap_or_default();
        for gone in before.keys().filter(|it| !now.contains_key(*it)) {
            self.forget_remote(gone.clone()).await?;
        }
        for wanted in wanted {
            if before.get(&wanted.remote) != now.get(&wanted.remote) {
                self.note_all(wanted).await?;
            }
        }
        self.keep(RULES_KEY, &now).await
    }

    async fn forget_remote(&self, remote: String) -> Result<(), TagStoreError> {
        let forget = move |write: &WriteTransaction| {
            let (from, to) = all_of(&remote);
            let range = from.as_str()..to.as_str();
            write
                .open_table(PENDING)?
                .retain_in(range.clone(), |_, _| false)?;
            write.open_table(UPLOADS)?.retain_in(range, |_, _| false)?;
            Ok(())
        };
        self.writer.run(forget).await
    }

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

    /// A remote may lack these.
    pub(crate) async fn note_pending(
        &self,
        remote: &str,
        names: Vec<String>,
    ) -> Result<(), TagStoreError> {
        let remote = remote.to_owned();
        let note = move |write: &WriteTransaction| {
            let mut pending = write.open_table(PENDING)?;
            for name in names {
                pending.insert(key(&remote, &name).as_str(), unix_ms())?;
            }
            Ok(())
        };
        self.writer.run(note).await?;
        if let Some(watched) = self.watch.0.get() {
            watched.told();
        }
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

    /// A remote has this of a register. Whether it is still that here; otherwise it stays on the list.
    pub(crate) async fn sent(
        &self,
        remote: &str,
        name: &str,
        known: Known,
    ) -> Result<bool, TagStoreError> {
        let (key, name) = (key(remote, name), name.to_owned());
        let strike = move |write: &WriteTransaction| {
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
        let key = key(remote, blob);
        let set = move |write: &WriteTransaction| {
            let mut uploads = write.open_table(UPLOADS)?;
            match upload {
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
